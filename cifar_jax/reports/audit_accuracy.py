"""Accuracy with and without doubtful and duplicated images: what the audit's findings would change. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cifar_jax.data.duplicates import Pair


@dataclass(frozen=True)
class Accuracy:
    """The share of correct predictions among some images of a split, a fraction."""

    split: str
    images: str  # which ones, in words
    count: int
    correct: int

    @property
    def value(self) -> float:
        return self.correct / self.count if self.count else float("nan")


def has_copy(pairs: Sequence[Pair], trained: np.ndarray) -> np.ndarray:
    """bool [N]: the images that are a duplicate of one that models are trained on; `trained` is bool [N]."""
    found = np.zeros(len(trained), bool)
    for pair in pairs:
        found[pair.first] |= trained[pair.second]
        found[pair.second] |= trained[pair.first]
    return found


def accuracies(split: str, correct: np.ndarray, doubtful: np.ndarray, copied: np.ndarray) -> list[Accuracy]:
    """All arrays are bool [N], over the images of one split; `copied` as `has_copy` gives it."""
    chosen = {
        "all": np.ones(len(correct), bool),
        "without doubtful labels": ~doubtful,
        "without duplicates of training images": ~copied,
        "without either": ~doubtful & ~copied,
    }
    return [Accuracy(split, name, int(kept.sum()), int(correct[kept].sum())) for name, kept in chosen.items()]
