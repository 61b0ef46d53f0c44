"""What an audit trains: a model for each fold, and what the models say about images that they were not trained on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cifar_jax.data import arrays
from cifar_jax.data.duplicates import Features, exact_groups, shifted, unit_vectors
from cifar_jax.errors import InputError
from cifar_jax.recipe import override
from cifar_jax.reports.audit_folds import assign_folds, training_indices
from cifar_jax.runs.classifier import Classifier
from cifar_jax.runs.events import Callback
from cifar_jax.runs.fit import fit
from cifar_jax.runs.functions import with_functions
from cifar_jax.runs.light import lighten
from cifar_jax.runs.workdir import Run
from cifar_jax.training.objectives import objective_of

ALTERED = 500  # training images whose altered copies tell how near a near duplicate is
PASSED = 0.95  # the share of them that are near enough


def folds_of(train: arrays.Split, folds: int, seed: int) -> np.ndarray:
    """The fold of each training image; equal images are in one fold."""
    return assign_folds(train.labels, exact_groups(train.images), folds, seed, train.classes)


def recipe_of_folds(recipe: Any, functions: Mapping[str, Any]) -> Any:
    """The recipe of the models of the folds: nothing else is held out, and every epoch is trained.

    Raises InputError on early stopping, which would choose an epoch by the labels that are to be judged, and on an
    objective without class predictions.
    """
    if not objective_of(with_functions(recipe, functions)).predicts:
        raise InputError(
            "the objective makes no class predictions, which an audit judges labels by; use classification"
        )
    if recipe.early_stopping.patience:
        raise InputError(
            f"early_stopping.patience is {recipe.early_stopping.patience}; the models of an audit hold out nothing but"
            " their fold: set it to 0, and epochs to a number that does not overfit"
        )
    return override(recipe, {"data.validation": 0})


def train_models(
    recipe: Any,
    folder: Path,
    train: arrays.Split,
    fold_of: np.ndarray,
    *,
    seed: int,
    functions: Mapping[str, Any],
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> list[Run]:
    """The model of each fold, trained by `fit` in <folder>/folds/<number>, or read there where it is complete."""
    runs = []
    for fold in range(int(fold_of.max()) + 1):
        chosen = training_indices(fold_of, fold, seed)
        data = arrays.dataset(train.images[chosen], train.labels[chosen], train.classes, train.name)
        if progress:
            print(f"fold {fold + 1} of {int(fold_of.max()) + 1}: {len(chosen):,} images", flush=True)
        options: dict[str, Any] = {"evaluate": None, "callbacks": callbacks, "progress": progress, **functions}
        workdir = folder / "folds" / str(fold)
        runs.append(fit(recipe, workdir, data={"train": data}, **options))
        lighten(workdir, **functions)  # its optimiser is needed no more
    return runs


def ask_models(
    models: Sequence[Classifier], splits: Mapping[str, arrays.Split], fold_of: np.ndarray
) -> dict[str, np.ndarray]:
    """The probabilities float32 [N, classes] of each split.

    Those of a training image are by the one model that was not trained on it; those of another image are the mean over
    all models.
    """
    said = {}
    for name, split in splits.items():
        if name != "train":
            said[name] = np.mean([model.probabilities(split.images) for model in models], axis=0).astype(np.float32)
            continue
        said[name] = np.zeros((len(split.labels), len(split.classes)), np.float32)
        for fold, model in enumerate(models):
            said[name][fold_of == fold] = model.probabilities(split.images[fold_of == fold])
    return said


def embed_images(model: Classifier, images: np.ndarray, train_count: int) -> Features | None:
    """The embeddings of all images by one model, the training images first; None where it has no module `head`.

    An embedding is that of the image and its mirror image together, less its mean over the training images: the parts
    that all images share would make all cosines large. How large a cosine is differs from model to model, so the
    threshold is measured: PASSED of the copies of training images that are shifted by one pixel are nearer to their
    image.
    """
    chosen = np.sort(np.random.RandomState(0).permutation(train_count)[:ALTERED])
    try:
        found, altered = _both_views(model, images), _both_views(model, shifted(images[chosen]))
    except InputError:  # no head
        return None
    mean = found[:train_count].mean(0)
    vectors, copies = unit_vectors(found - mean), unit_vectors(altered - mean)
    cosines = (vectors[chosen] * copies).sum(-1)
    threshold = float(np.clip(np.quantile(cosines, 1 - PASSED), 1e-3, 1.0))
    return Features(vectors, threshold)


def _both_views(model: Classifier, images: np.ndarray) -> np.ndarray:
    return model.embeddings(images) + model.embeddings(np.ascontiguousarray(images[:, :, ::-1]))
