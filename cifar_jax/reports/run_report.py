"""What a report says of one run: curves, errors, calibration, galleries, filters, a map of the embeddings."""

import platform
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cifar_jax.errors import InputError
from cifar_jax.process import command_line
from cifar_jax.recipe import flatten, to_json
from cifar_jax.reports import gallery
from cifar_jax.reports.figures import COLOURS, INK, new_figure
from cifar_jax.runs.calibrate import calibrate
from cifar_jax.runs.calibration import Calibration, calibration, reliability, scale
from cifar_jax.runs.evaluate import (
    at_temperature,
    at_thresholds,
    by_thresholds,
    evaluate_and_predict,
    image_names,
    select,
)
from cifar_jax.runs.files import read_json
from cifar_jax.runs.thresholds import Threshold
from cifar_jax.runs.workdir import Run, read_predictions
from cifar_jax.training.metrics import Evaluation, SplitPredictions

MAPPED = 1000  # images on the map of the embeddings
Figure = tuple[str, Any, str]  # title, a figure of matplotlib, what it shows
EMBEDDINGS = ("pca", "tsne", "none")
NAMED = "The last line is the image's file or place in the data set."
OVERFIT = 0.01  # nats by which the last validation loss must exceed the least for a sentence about it


@dataclass
class Gallery:
    title: str
    text: str
    pictures: list[gallery.Picture]


@dataclass
class RunReport:
    """The parts of the page; what could not be made is None or empty, and `missing` says why."""

    name: str
    summary: list[tuple[str, str]]
    evaluation: Evaluation | None = None
    figures: list[Figure] = field(default_factory=list)
    calibration: list[tuple[str, Calibration]] = field(default_factory=list)
    thresholds: list[Threshold] = field(default_factory=list)  # with their recall and precision on the split
    galleries: list[Gallery] = field(default_factory=list)
    classes: list[tuple[str, list[gallery.Picture], list[gallery.Picture]]] = field(default_factory=list)
    filters: str | None = None
    recipe: list[tuple[str, str]] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    command: str = ""
    missing: list[str] = field(default_factory=list)


def run_report(
    run: Run,
    *,
    data: Mapping[str, Any] | None = None,
    data_dir: str | Path | None = None,
    embedding: str = "pca",
    progress: bool = True,
) -> RunReport:
    """The report of a run. Parts that cannot be made are named in `missing`, in a sentence each."""
    report = RunReport(name=str(run.workdir or run.recipe.model.name), summary=summary(run))
    if run.reason is None:
        report.missing.append("The run is not finished: this is the state of its last checkpoint.")
    if run.history:
        report.figures += curves(run)
    report.filters = first_filters(run)
    split = run.evaluation.split if run.evaluation else "validation" if _has_validation(run) else "test"
    options: dict[str, Any] = {"data": data, "data_dir": data_dir, "progress": progress}
    try:
        images, labels, places = select(run, split, data, data_dir, progress)
        evaluation, predictions = _predictions(run, split, labels, options)
        temperatures = find_temperatures(report, run, options)  # first: the galleries and thresholds are at it
        if run.thresholds:
            report.thresholds, evaluation = at_thresholds(run, predictions), by_thresholds(run, predictions, evaluation)
        report.evaluation = evaluation
        names = image_names(run, split, np.arange(len(labels)) if places is None else places, **options)
        add_errors(report, run, images, names, at_temperature(run, predictions), evaluation)
        add_calibration(report, predictions, split, temperatures)
        if embedding != "none":
            report.figures.append(embedding_map(run, images, predictions.labels, embedding))
    except InputError as error:
        report.missing.append(f"Predictions are missing: {error}.")
        warnings.warn(report.missing[-1], stacklevel=3)
    report.recipe = [(path, str(value)) for path, value in sorted(flatten(to_json(run.recipe)).items())]
    report.facts = facts(run)
    if run.workdir:
        report.command = command_line("train", f"--config={run.workdir / 'recipe.json'}", "--workdir=runs/repeated")
    return report


def _has_validation(run: Run) -> bool:
    return bool(run.recipe.data.validation) or "validation" in run.digests


def _predictions(
    run: Run, split: str, labels: np.ndarray, options: Mapping[str, Any]
) -> tuple[Evaluation, SplitPredictions]:
    """Those that the run keeps where they are of images with these labels, or new ones."""
    kept = read_predictions(run.workdir, split) if run.workdir and run.evaluation else None
    if kept is not None and run.evaluation and np.array_equal(kept.labels, labels):
        return run.evaluation, kept
    return evaluate_and_predict(run, split, **options)


def summary(run: Run) -> list[tuple[str, str]]:
    """The first lines of the page."""
    last, parameters = run.history[-1] if run.history else {}, jax.tree.leaves(run.classifier.weights["params"])
    lines = [("model", f"{run.recipe.model.name}, {sum(leaf.size for leaf in parameters):,} parameters")]
    lines.append(("data", f"{run.recipe.data.name}, {run.recipe.data.train_count:,} training images"))
    lines.append(("training", f"{run.reason or 'not finished'}, epoch {last.get('epoch', 0)} of {run.recipe.epochs}"))
    if run.evaluation:
        seen = run.evaluation
        lines.append((f"{seen.split} accuracy", f"{seen.accuracy:.2%} of {seen.count:,} images"))
    if seconds := sum(line["seconds"] for line in run.history):
        lines.append(("time", f"{seconds / 60:.1f} min of training"))
    return lines


def overfitting(history: Sequence[Mapping[str, Any]]) -> str:
    """From which epoch on the validation loss rises while that of training falls, and by how much; "" if unknown."""
    losses = [line["validation_loss"] for line in history]
    if not losses or None in losses:
        return ""
    least = int(np.argmin(losses))
    if losses[-1] - losses[least] < OVERFIT:
        return f"The validation loss is lowest in epoch {least + 1}; the run does not overfit."
    change = f"{losses[least]:.3f} to {losses[-1]:.3f}"
    train = f"{history[least]['train_loss']:.3f} to {history[-1]['train_loss']:.3f}"
    return (
        f"The run overfits from epoch {least + 1} on: the validation loss rises from {change} while the training loss"
        f" goes from {train}."
    )


def curves(run: Run) -> list[Figure]:
    """Loss and accuracy in training and validation, and the learning rate."""
    epochs = [line["epoch"] for line in run.history]
    column = lambda name: [line.get(name) for line in run.history]  # of Any: a column holds numbers, or only None
    figure, (left, middle, right) = new_figure(9.5, 2.9, columns=3)
    for axes, name, factor in ((left, "loss", 1), (middle, "accuracy", 100)):
        for split, colour in (("train", COLOURS[0]), ("validation", COLOURS[1])):
            values: list[Any] = column(f"{split}_{name}")
            if None not in values:
                scaled = [factor * value for value in values]
                axes.plot(
                    epochs, scaled, color=colour, linewidth=1.5, marker="." if len(epochs) < 20 else "", label=split
                )
        axes.set_title(f"{name} (%)" if factor == 100 else name, fontsize=10)
    left.legend(fontsize=8, frameon=False)
    right.plot(epochs, column("learning_rate"), color=COLOURS[2], linewidth=1.5)
    right.set_title("learning rate", fontsize=10)
    for axes in (left, middle, right):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
    text = overfitting(run.history)
    return [("Learning curves", figure, f"Loss, accuracy and learning rate over {len(epochs)} epochs. {text}")]


def confusion_figure(evaluation: Evaluation, has_thresholds: bool = False) -> Figure:
    """Shares of each true class, in percent."""
    matrix, classes = evaluation.confusion_matrix, evaluation.classes
    shares = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    size = min(9.0, 2.2 + 0.5 * len(classes))
    figure, axes = new_figure(size, size)
    axes.grid(False)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    for row, column in np.ndindex(*matrix.shape) if len(classes) <= 20 else ():
        if matrix[row, column]:
            colour = "white" if shares[row, column] > 50 else "#222222"
            axes.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(classes)), classes, rotation=60, ha="right", fontsize=8)
    axes.set_yticks(range(len(classes)), classes, fontsize=8)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    wrong = matrix - np.diag(np.diag(matrix))
    row, column = np.unravel_index(wrong.argmax(), wrong.shape)
    text = f"In percent of each true class. The most frequent error: {wrong[row, column]} images of {classes[row]}"
    text += f" are taken for {classes[column]}." if wrong.any() else " are wrong."
    text += " The predicted class is that of the thresholds." if has_thresholds else ""
    return "Confusion matrix", figure, text


def add_errors(
    report: RunReport,
    run: Run,
    images: np.ndarray,
    names: Sequence[str],
    predictions: SplitPredictions,
    evaluation: Evaluation,
) -> None:
    """The confusion matrix and the galleries."""
    labels, probabilities, classes = predictions.labels, predictions.probabilities, run.classes
    shown = lambda chosen: [gallery.picture(images[i], labels[i], probabilities[i], classes, names[i]) for i in chosen]
    report.figures.append(confusion_figure(evaluation, bool(run.thresholds)))
    report.galleries = [
        Gallery("The most confident errors", f"Wrong, with the highest probability. {NAMED}",
                shown(gallery.confident_errors(labels, probabilities))),
        Gallery("The least confident successes", "Correct, with the lowest probability.",
                shown(gallery.doubtful_successes(labels, probabilities))),
    ]  # fmt: skip
    for label, name in enumerate(run.classes):
        typical, hardest = gallery.of_class(labels, probabilities, label)
        report.classes.append((name, shown(typical), shown(hardest)))


def find_temperatures(report: RunReport, run: Run, options: Mapping[str, Any]) -> list[tuple[str, float]]:
    """1, and that which is fitted on the validation split: the run's from now on."""
    temperatures = [("as trained", 1.0)]
    try:
        _, fitted = calibrate(run, **options)
        temperatures.append((f"temperature {fitted.temperature:.3f}", fitted.temperature))
    except InputError as error:
        report.missing.append(f"There is no temperature: {error}.")
    return temperatures


def add_calibration(
    report: RunReport, predictions: SplitPredictions, split: str, temperatures: Sequence[tuple[str, float]]
) -> None:
    """Figures and diagram at the temperatures, of predictions as trained."""
    labels, probabilities = predictions.labels, predictions.probabilities
    report.calibration = [(name, calibration(probabilities, labels, at)) for name, at in temperatures]
    figure, axes = new_figure(4.2, 3.6)
    axes.plot([0, 100], [0, 100], color=INK, linewidth=0.8, linestyle="--")
    for (name, at), colour in zip(temperatures, COLOURS, strict=False):
        found = reliability(scale(probabilities, at), labels)
        filled = found.counts > 0
        confidence, accuracy = 100 * found.confidences[filled], 100 * found.accuracies[filled]
        axes.plot(confidence, accuracy, color=colour, marker="o", markersize=4, linewidth=1.2, label=name)
    axes.set_xlabel("mean probability of the prediction (%)")
    axes.set_ylabel("accuracy (%)")
    axes.legend(fontsize=8, frameon=False)
    errors = "; ".join(f"{name}: {found.expected_calibration_error:.2%}" for name, found in report.calibration)
    text = f"On the {split} split. Expected calibration error: {errors}."
    report.figures.append(("Reliability", figure, text))


def first_filters(run: Run) -> str | None:
    """The filters of the first convolution on images, as a data URI; None where there is none."""
    channels = run.recipe.data.image_shape[-1]
    for leaf in jax.tree.leaves(run.classifier.weights["params"]):
        if leaf.ndim == 4 and leaf.shape[2] == channels and min(leaf.shape[:2]) > 1 and channels in (1, 3):
            return gallery.data_uri(gallery.filters(np.asarray(leaf, np.float32)))
    return None


def embedding_map(run: Run, images: np.ndarray, labels: np.ndarray, method: str) -> Figure:
    """At most MAPPED images in two dimensions, coloured by class. Raises InputError where the model has no head."""
    chosen = np.random.RandomState(0).permutation(len(images))[:MAPPED]
    embeddings = run.classifier.embeddings(images[chosen])
    centred = embeddings - embeddings.mean(0)
    if method == "tsne":
        from sklearn.manifold import TSNE

        places, text = TSNE(init="pca", random_state=0).fit_transform(centred), "t-SNE"
    else:
        left, singular, _ = np.linalg.svd(centred, full_matrices=False)
        explained = (singular[:2] ** 2).sum() / max((singular**2).sum(), 1e-12)
        places, text = left[:, :2] * singular[:2], f"principal components, {explained:.0%} of the variance"
    figure, axes = new_figure(6.2, 4.4)
    axes.grid(False)
    axes.set_xticks([])
    axes.set_yticks([])
    for number, name in enumerate(run.classes[:20]):
        own = labels[chosen] == number
        marker, colour = "os^Dv"[number // 7 % 5], COLOURS[(0, 1, 2, 3, 4, 5, 7)[number % 7]]
        axes.scatter(*places[own].T, s=9, color=colour, marker=marker, alpha=0.7, linewidths=0, label=name)
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    text = f"The input of the last layer of {len(chosen):,} images: {text}."
    return "Map of the embeddings", figure, text


def facts(run: Run) -> list[tuple[str, str]]:
    """What the run was made of: digests of its data, and the environment that it began in."""
    lines = [(f"data, {split}", digest) for split, digest in sorted(run.digests.items())]
    path = run.workdir / "environment.json" if run.workdir else None
    if path and path.exists():
        stored = read_json(path)
        versions = ", ".join(f"{name} {version}" for name, version in stored["packages"].items())
        lines.append(("trained with", f"Python {stored['python']}, {versions}"))
        lines.append(("trained on", f"{', '.join(stored['devices'])}; {stored['platform']}"))
    return [*lines, ("read by", f"Python {platform.python_version()}, jax {jax.__version__}")]
