"""What an audit trains: a model for each fold, and what the models say about images that they were not trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cifar_jax.data import arrays
from cifar_jax.data.duplicates import exact_groups, unit_vectors
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


@dataclass(frozen=True)
class Said:
    """What the models of the folds say about a split.

    The probabilities of a training image are those of the one model that was not trained on it; of another image they
    are the mean over all models. The embeddings are those of all models side by side, so that a cosine of two images is
    the mean of the models' cosines; None where the model has no module `head`.
    """

    probabilities: np.ndarray  # float32 [N, classes]
    embeddings: np.ndarray | None  # float32 [N, folds * D], of length 1


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
    models: Sequence[Classifier], train: arrays.Split, fold_of: np.ndarray, others: Mapping[str, arrays.Split]
) -> dict[str, Said]:
    """What the models say about "train" and the other splits."""
    said = {}
    probabilities = np.zeros((len(train.labels), len(train.classes)), np.float32)
    for fold, model in enumerate(models):
        probabilities[fold_of == fold] = model.probabilities(train.images[fold_of == fold])
    said["train"] = Said(probabilities, embeddings(models, train.images))
    for name, split in others.items():
        means = np.mean([model.probabilities(split.images) for model in models], axis=0)
        said[name] = Said(means.astype(np.float32), embeddings(models, split.images))
    return said


def embeddings(models: Sequence[Classifier], images: np.ndarray) -> np.ndarray | None:
    """As in `Said`."""
    try:
        parts = [unit_vectors(model.embeddings(images)) for model in models]
    except InputError:  # no head
        return None
    return np.concatenate(parts, -1) / np.float32(np.sqrt(len(parts)))
