"""Data sets as uint8 arrays on this machine. Read arrays.py first.

`load` gives a split of a prepared TFDS data set, `dataset` makes one of the caller's arrays, and `splits` checks
those that belong together. `find` and `prepare` (store.py) look for a prepared folder and write one. Libraries
of data sets are imported where something is prepared or decoded.
"""

from cifar_jax.data.arrays import Split, dataset, hold_out, load, splits
from cifar_jax.data.store import cache_dir, find, prepare

__all__ = ["Split", "cache_dir", "dataset", "find", "hold_out", "load", "prepare", "splits"]
