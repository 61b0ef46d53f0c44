"""Which images of a training set stand in which fold, and which of the others a fold's model is trained on. Pure."""

import numpy as np

from cifar_jax.errors import InputError

FEWEST_FOLDS = 2


def assign_folds(labels: np.ndarray, groups: np.ndarray, folds: int, seed: int, classes: tuple[str, ...]) -> np.ndarray:
    """The fold of each image, int32 [N]: stratified by class, with the images of a group in one fold.

    labels: integers [N], indices into `classes`. groups: integers [N], equal for images that must not be separated: a
    model that was trained on a copy of an image has seen its label. The folds have equally many images of each class,
    and differ in size by one image, where the groups allow it. The same arguments give the same folds everywhere.

    Raises InputError where `folds` is below 2, or a class would be missing from what some fold is trained on.
    """
    if folds < FEWEST_FOLDS:
        raise InputError(f"folds is {folds}; out-of-fold probabilities need at least {FEWEST_FOLDS}")
    if folds > len(labels):
        raise InputError(f"folds is {folds}, and there are {len(labels)} training images; choose fewer folds")
    check_seed(seed)
    _, first, group_of, sizes = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    shuffled = np.random.RandomState(seed).permutation(len(sizes))  # its stream is promised never to change
    ordered = shuffled[np.argsort(-sizes[shuffled], kind="stable")]  # single images fill the gaps
    class_of = labels[first].tolist()
    counts = [[0] * folds for _ in classes]  # images of each class and fold
    totals = [0] * folds
    chosen = np.zeros(len(sizes), np.int32)
    for group in ordered.tolist():
        own = counts[class_of[group]]
        fold = min(range(folds), key=lambda number: (own[number], totals[number]))
        chosen[group] = fold
        own[fold] += int(sizes[group])
        totals[fold] += int(sizes[group])
    fold_of = chosen[group_of]
    for label in np.unique(labels).tolist():
        present = np.unique(fold_of[labels == label])
        if len(present) < 2:
            count = int((labels == label).sum())
            stands = "1 training image, which stands" if count == 1 else f"{count} training images, which all stand"
            raise InputError(
                f"class '{classes[label]}' has {stands} in one fold; a class needs at least two different images"
            )
    return fold_of


def check_seed(seed: int) -> None:
    """Raises InputError where the seed is not one of RandomState."""
    if not 0 <= seed < 2**32:
        raise InputError(f"seed {seed} is not in [0, 2**32)")


def training_indices(fold_of: np.ndarray, fold: int, seed: int) -> np.ndarray:
    """The images that the model of a fold is trained on, sorted int64: equally many for every fold.

    All images of the other folds, without a few random ones where the folds differ in size: programs are compiled for a
    number of images, and so all folds share one.
    """
    others = np.flatnonzero(fold_of != fold)
    count = len(fold_of) - int(np.max(np.bincount(fold_of)))
    return np.sort(np.random.RandomState(seed).permutation(others)[:count])
