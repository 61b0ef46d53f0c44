"""Does the label audit find flipped labels? Precision and recall on CIFAR-10 with 5% of the training labels flipped.

    python benchmarks/audit.py --folder=/tmp/audit           # narrow convnet, 3 folds, on two processor cores
    python benchmarks/audit.py --folder=/tmp/audit --config=configs/resnet18_fast.py --folds=5 --name=audit_resnet18
    python benchmarks/audit.py --smoke                       # digits, one epoch: finds errors, measures nothing

A label is flipped to any other class ("uniform"), or to the class that is confused with its own ("similar"). Which ones
follows from --seed; the models of the folds see the flipped labels only. A figure is given for the doubtful images of
the audit, and for its ranking: the precision where a recall of 0.7 is reached. The original labels of CIFAR-10 have
errors too, which count here as false alarms. Fields of the recipe are set by --config.FIELD=VALUE. Writes NAME.json to
--out; the folder keeps the models, and the same command continues an interrupted run.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import commit, machine, recipe_fields
from worker import HERE

sys.path.insert(0, str(HERE.parent))
SHARE = 0.05  # of the labels that are flipped
RECALL = 0.7  # where the precision of the ranking is read
# Classes that a network confuses; those of Patrini et al. 2017 (arXiv 1609.03683), and the missing four.
SIMILAR = {
    "airplane": "ship", "automobile": "truck", "bird": "airplane", "cat": "dog", "deer": "horse",
    "dog": "cat", "frog": "bird", "horse": "deer", "ship": "airplane", "truck": "automobile",
}  # fmt: skip
NARROW: dict[str, Any] = {
    "epochs": 8,
    "model.widths": (16, 32, 64),
    "model.convolutions": (1,),
    "loss.label_smoothing": 0.0,  # probabilities near 0 and 1 are what a label is judged by
}


def flipped(labels: np.ndarray, classes: tuple[str, ...], kind: str, share: float, seed: int) -> np.ndarray:
    """The labels with a share of each class flipped, rounded; `kind` is "uniform" or "similar"."""
    random = np.random.RandomState(seed)
    result = labels.copy()
    for label, name in enumerate(classes):
        own = np.flatnonzero(labels == label)
        chosen = random.permutation(own)[: round(share * len(own))]
        others = np.array([other for other in range(len(classes)) if other != label])
        uniform = others[random.randint(0, len(others), len(chosen))]
        similar = classes.index(SIMILAR[name]) if name in SIMILAR else (label + 1) % len(classes)
        result[chosen] = uniform if kind == "uniform" else similar
    return result
