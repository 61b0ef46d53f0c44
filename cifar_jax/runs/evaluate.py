"""The evaluation of a run on a split of its data."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cifar_jax.data import arrays
from cifar_jax.data.external import check_classes, load_labelled
from cifar_jax.data.load import IMAGE_FOLDER, image_files, load_split
from cifar_jax.errors import InputError
from cifar_jax.runs import programs, stream
from cifar_jax.runs.calibration import scale
from cifar_jax.runs.devices import Placement
from cifar_jax.runs.log import wait
from cifar_jax.runs.thresholds import Threshold, decide, rates
from cifar_jax.runs.workdir import Run
from cifar_jax.training.metrics import Evaluation, SplitPredictions, of_confusion, summarise
from cifar_jax.training.objectives import objective_of
from cifar_jax.training.state import evaluated_weights

SPLITS = ("test", "validation", "train")


def evaluate(
    run: Run,
    split: str = "test",
    *,
    views: str | None = None,
    data_dir: str | Path | None = None,
    data: Mapping[str, Any] | str | None = None,
    progress: bool = True,
) -> Evaluation:
    """The run's model on "test", "validation" (what its training held out) or "train" (what it was trained on).

    `data` is as for `fit`, or names another data set or a folder of images, whose classes are matched by name (see
    cifar_jax/data/external.py); without it the run's data set is loaded by name. Raises InputError where the split
    does not exist, or is not the one that the run has seen.
    """
    return evaluate_and_predict(run, split, views=views, data_dir=data_dir, data=data, progress=progress)[0]


def evaluate_and_predict(
    run: Run,
    split: str,
    *,
    views: str | None = None,
    data_dir: str | Path | None = None,
    data: Mapping[str, Any] | str | None = None,
    progress: bool = True,
    placement: Placement | None = None,
    embeddings: bool = False,
) -> tuple[Evaluation, SplitPredictions]:
    """`evaluate`, and what the model says about each image, in the order of the split: as trained, without a
    temperature, and with embeddings where they are asked for and the model has a `head`."""
    if split not in SPLITS:
        raise InputError(f"split '{split}' is unknown; it is one of {', '.join(SPLITS)}")
    check_predicts(run.recipe, split)
    images, labels, indices = select(run, split, data, data_dir, progress)
    placement = placement or Placement()
    weights, sums, probabilities = placement.put(evaluated_weights(run.state)), None, []
    chosen = views or run.recipe.evaluation.views
    for block in stream.blocks(images, labels, run.recipe.evaluation.batch_size, placement):
        seen = programs.evaluate(run.recipe, weights, placement.put(block), chosen, placement.batch, sums)
        wait(seen)
        sums = seen[0]
        probabilities.append(np.asarray(seen[1], np.float32))
    features = _embeddings(run, images) if embeddings else None
    found = SplitPredictions(labels, np.concatenate(probabilities), indices, features)
    name = f"{data} {split}" if isinstance(data, str) else split
    return summarise(jax.device_get(sums), run.classes, name, len(images)), found


def predictions(
    run: Run,
    split: str = "test",
    *,
    views: str | None = None,
    data_dir: str | Path | None = None,
    data: Mapping[str, Any] | str | None = None,
    progress: bool = True,
) -> SplitPredictions:
    """Labels, probabilities, embeddings and indices of the images of a split, in its order; arguments as `evaluate`.

    The probabilities are those of the run's temperature (see `calibrate`). Indices are places in the data set's split:
    those of "validation" and "train" are places among all training images. The embeddings are None where the model has
    no module `head`.
    """
    options: dict[str, Any] = {"data_dir": data_dir, "data": data, "progress": progress}
    _, found = evaluate_and_predict(run, split, views=views, embeddings=True, **options)
    return at_temperature(run, found)


def at_temperature(run: Run, found: SplitPredictions) -> SplitPredictions:
    """The predictions with the run's temperature, and with all indices."""
    probabilities = scale(found.probabilities, run.temperature).astype(np.float32)
    indices = np.arange(len(found.labels)) if found.indices is None else found.indices
    return replace(found, probabilities=probabilities, indices=indices)


def at_thresholds(run: Run, found: SplitPredictions) -> list[Threshold]:
    """The run's thresholds with their recall and precision on these predictions."""
    chosen, reached = _decisions(run, found), []
    for name, threshold in run.thresholds.items():
        label = run.classes.index(name)
        recall, precision = rates(chosen == label, found.labels == label, 1)
        reached.append(replace(threshold, recall=recall, precision=precision))
    return reached


def by_thresholds(run: Run, found: SplitPredictions, evaluation: Evaluation) -> Evaluation:
    """The evaluation with the classes that the run's thresholds name in place of the most probable ones."""
    confusion = np.zeros_like(evaluation.confusion_matrix)
    np.add.at(confusion, (found.labels, _decisions(run, found)), 1)
    return replace(evaluation, **of_confusion(confusion))


def _decisions(run: Run, found: SplitPredictions) -> np.ndarray:
    """int64 [N], the classes that `Classifier.predict` names."""
    return decide(at_temperature(run, found).probabilities, run.classes, run.classifier.thresholds)


def image_names(
    run: Run,
    split: str,
    places: np.ndarray,
    *,
    data: Mapping[str, Any] | str | None = None,
    data_dir: str | Path | None = None,
    progress: bool = True,
) -> list[str]:
    """What images can be found by: their files in the folder of the run's data set, or their numbers in the data set's
    split, as "test 57". `places` are those of `select`; the others are as for `evaluate`."""
    source, settings = source_of(run, split), run.recipe.data
    if isinstance(data, str):
        return [f"{split} {place}" for place in places]
    if data is not None or settings.name != IMAGE_FOLDER:
        return [f"{source} {place}" for place in places]
    own = {source: load_split(settings, source, data_dir, progress)}
    files = image_files(settings, own, progress)[source]
    return [os.path.relpath(files[place], settings.path) for place in places]


def predictions_csv(run: Run, found: SplitPredictions, names: Sequence[str]) -> str:
    """A line for each image: its name, its class, that which `predict` names, and the probability of each class.

    `found` is as trained; the probabilities are those of the run's temperature.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["image", "label", "class", "outcome", *(f"probability_{name}" for name in run.classes)])
    chosen, probabilities = _decisions(run, found), at_temperature(run, found).probabilities
    for name, label, own, values in zip(names, found.labels, chosen, probabilities, strict=True):
        outcome = "correct" if label == own else "wrong"
        writer.writerow([name, run.classes[label], run.classes[own], outcome, *map(str, values)])
    return stream.getvalue()


def _embeddings(run: Run, images: np.ndarray) -> np.ndarray | None:
    try:
        return run.classifier.embeddings(images)
    except InputError:
        return None


def check_predicts(recipe: Any, split: str) -> None:
    """Raises InputError where the objective makes no class predictions."""
    if not objective_of(recipe).predicts:
        raise InputError(
            f"the objective of this run makes no class predictions, so split '{split}' cannot be evaluated; use"
            " fit(evaluate=None)"
        )


def source_of(run: Run, split: str) -> str:
    """The data set's split with the images of the run's `split`: "train" where validation is held out of it."""
    return split if split == "test" or (split == "validation" and "validation" in run.digests) else "train"


def select(
    run: Run, split: str, data: Mapping[str, Any] | str | None, data_dir: Any, progress: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The images and labels of a split, known to be those of the run, and their places in the data set's split where
    they are not all of it."""
    recipe = run.recipe
    if isinstance(data, str):
        shape, mode = tuple(recipe.data.image_shape), recipe.data.get("resize_mode", "stretch")
        return *load_labelled(data, split, run.classes, shape, mode, data_dir, progress), None
    source = source_of(run, split)
    if data is not None:
        if source not in data:
            raise InputError(f"data has no split '{source}'; it has {', '.join(map(repr, data))}")
        given = data[source]
        images = given if isinstance(given, arrays.Split) else arrays.dataset(given[0], given[1], run.classes)
    else:
        images = load_split(recipe.data, source, data_dir, progress)
    check_classes(images.classes, run.classes, f"data set '{recipe.data.name}'")
    # A test split that the caller gives may be another one; one that is loaded by name is that of the run.
    known = run.digests.get(source) if data is None or source != "test" else None
    if known and images.digest != known:
        where = f"'{recipe.data.path}'" if recipe.data.name == IMAGE_FOLDER else f"data set '{recipe.data.name}'"
        what = f"the {source} images of {where} are not those of the run"
        change = f"some were added, removed or changed ({known[:16]}, now {images.digest[:16]})"
        remedy = ", or evaluate on them as another data set (--data, data=)" if source == "test" else ""
        raise InputError(f"{what}: {change}; restore them{remedy}")
    if source == split and split != "train":
        return images.images, images.labels, None
    if split == "validation" and not recipe.data.validation:
        raise InputError(
            "this run held out no images (data.validation=0), so it has no split 'validation'; train with some"
        )
    chosen = arrays.hold_out(images.labels, recipe.data.validation, recipe.data.seed)[split == "validation"]
    return images.images[chosen], images.labels[chosen], chosen.astype(np.int64)
