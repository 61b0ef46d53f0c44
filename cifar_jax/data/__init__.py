"""Data sets as uint8 arrays on this machine. Read arrays.py first.

`load` reads a split of a prepared TFDS data set. `dataset` makes a split from the caller's arrays, and `splits`
checks splits that belong together. `find` looks for a prepared folder and `prepare` writes one (store.py); the data
sets in DATASETS can be prepared. TFDS, Pillow and scikit-learn are imported only when they are needed.
"""

from cifar_jax.data.arrays import Split, dataset, hold_out, load, splits
from cifar_jax.data.store import DATASETS, find, prepare
from cifar_jax.process import cache_dir

__all__ = ["DATASETS", "Split", "cache_dir", "dataset", "find", "hold_out", "load", "prepare", "splits"]
