"""What a trained model says about image files: rows that are written as they come, and files sorted by them."""

import functools
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from cifar_jax.data.image_files import find_images
from cifar_jax.errors import InputError
from cifar_jax.inference.outputs import FORMATS, OUTCOMES, Format, Output, Row
from cifar_jax.inference.sorting import WAYS, Sorter, by_class, by_outcome, check_folder, check_names
from cifar_jax.runs.classifier import Classifier, FileBatch
from cifar_jax.runs.thresholds import decide
from cifar_jax.training import augment
from cifar_jax.training.objectives import objective_of

UNSURE = "unsure"
BY = ("class", "outcome")


@dataclass(frozen=True)
class Options:
    """How files are predicted, written and sorted."""

    top: int = 3  # classes of a row, at most those of the model
    threshold: float = 0.0  # an image whose highest probability is below it is "unsure"
    views: str | None = None  # as for `Classifier.logits`
    format: str = "table"
    out: Path | None = None  # standard output if None
    copy_to: Path | None = None
    copy_as: str = "copy"
    by: str = "class"  # outcome: by the true class too, which is the folder of an image
    resume: bool = False
    force: bool = False
    progress: bool = True

    def check(self, classifier: Classifier) -> None:
        """Raises InputError on values that make no sense, alone or for this model."""
        if self.top < 1:
            raise InputError(f"--top={self.top} names no class; it must be at least 1")
        if not 0 <= self.threshold <= 1:
            raise InputError(f"--threshold={self.threshold} is no probability; it must be in 0..1")
        for name, value, known in (
            ("format", self.format, FORMATS),
            ("by", self.by, BY),
            ("copy_as", self.copy_as, WAYS),
        ):
            if value not in known:
                raise InputError(f"--{name}={value} is unknown; it is one of {', '.join(known)}")
        augment.views(self.views or "one")  # raises where they are unknown
        if self.resume and (self.out is None or self.format == "table"):
            raise InputError("--resume continues a file; add --out=FILE, and --format=jsonl or csv")
        if self.by == "outcome" and self.copy_to is None:
            raise InputError("--by=outcome sorts copies; add --copy_to=DIR")
        if self.threshold and UNSURE in classifier.classes:
            raise InputError(f"the model has a class '{UNSURE}', which --threshold uses; leave it out")
        if not objective_of(classifier.recipe).predicts:
            raise InputError(
                "the objective of this run makes no class predictions; search by similarity instead (index)"
            )


@dataclass(frozen=True)
class Summary:
    """What came out of a call; the images of earlier calls that it continued are not counted."""

    images: int
    counts: dict[str, int]  # of each class, "unsure", and "" for those that could not be read
    outcomes: dict[str, int]
    kept: int  # rows of earlier calls
    seconds: float

    def __str__(self) -> str:
        broken, unsure = self.counts.get("", 0), self.counts.get(UNSURE, 0)
        parts = [f"{self.images} images in {self.seconds:.1f} s"]
        parts += [f"{self.kept} were there already"] if self.kept else []
        parts += [f"{unsure} unsure"] if unsure else []
        parts += [", ".join(f"{self.outcomes.get(name, 0)} {name}" for name in OUTCOMES)] if self.outcomes else []
        return "; ".join([*parts, f"{broken} could not be read"] if broken else parts)


def predict_files(
    classifier: Classifier, arguments: Sequence[str], options: Options, listed: Sequence[str] = ()
) -> Summary:
    """Writes a row for each image that the arguments and the list name (see `find_images`), and sorts the files.

    Raises InputError, before anything is written, where an option makes no sense, no images are found, the output
    exists, or a folder for the copies lies inside a source.
    """
    options.check(classifier)
    files = find_images(arguments, listed)
    labels = set(classifier.classes) if options.by == "outcome" else set()
    if labels and not any(_label(file, labels) for file in files):
        raise InputError(
            f"--by=outcome needs folders named as the classes, and none of the {len(files)} images lies in one;"
            f" the classes are {', '.join(classifier.classes)}"
        )
    sorter = None
    if options.copy_to is not None:
        check_names(classifier.classes)
        sources = [*arguments, *(name for name in listed if os.path.isdir(name))]
        check_folder(options.copy_to, sources, files, options.force or options.resume)
        sorter = Sorter(options.copy_to, options.copy_as, by_outcome if options.by == "outcome" else by_class)
    top = min(options.top, len(classifier.classes))
    form = Format(options.format, top, bool(labels), files)
    call = _call(classifier, options, top) if options.out else {}
    output = Output(options.out, form, call, options.resume, options.force)
    try:
        return _write_rows(classifier, files, options, output, sorter, top, labels)
    finally:
        output.close()


def _call(classifier: Classifier, options: Options, top: int) -> dict[str, Any]:
    """What the rows depend on, beside the files."""
    return {
        "model": classifier.digest,
        "temperature": classifier.temperature,
        "views": options.views or classifier.recipe.evaluation.views,
        "format": options.format,
        "top": top,
        "threshold": options.threshold,
        "thresholds": dict(classifier.thresholds),
        "by": options.by,
    }


def _write_rows(
    classifier: Classifier,
    files: list[str],
    options: Options,
    output: Output,
    sorter: Sorter | None,
    top: int,
    labels: set[str],
) -> Summary:
    start, counts, outcomes = time.perf_counter(), Counter[str](), Counter[str]()
    left = [file for file in files if file not in output.paths]
    kept = len(files) - len(left)
    shown = sys.stderr.isatty() and sys.stdout.isatty() and options.out is None
    bar = tqdm(total=len(files), initial=kept, desc="predict", unit=" images", disable=not options.progress or shown)
    with bar:
        probabilities = functools.partial(classifier.probabilities, views=options.views)
        for batch in classifier.of_files(probabilities, left):
            rows = list(_rows(classifier, batch, top, options.threshold, labels))
            for row in rows if sorter else ():
                sorter.sort(row)  # type: ignore[union-attr]
            output.write(rows)
            counts.update(row.name for row in rows)
            outcomes.update(row.outcome for row in rows if row.outcome)
            bar.update(len(rows))
    return Summary(len(left), dict(counts), dict(outcomes), kept, time.perf_counter() - start)


def ranked(probabilities: np.ndarray, classes: tuple[str, ...], top: int) -> list[tuple[tuple[str, float], ...]]:
    """The `top` most probable classes of each image with their probabilities, the first first; equal ones in the order
    of the classes. `probabilities` are float [N, classes]."""
    order = np.argsort(-probabilities, axis=-1, kind="stable")[:, :top]
    best = np.take_along_axis(probabilities, order, -1).astype(float).tolist()
    named = [[classes[index] for index in row] for row in order.tolist()]
    return [tuple(zip(*pair, strict=True)) for pair in zip(named, best, strict=True)]


def _rows(classifier: Classifier, batch: FileBatch, top: int, threshold: float, labels: set[str]) -> Iterator[Row]:
    """An image is "unsure" where the probability of its class is below the threshold: that of the class where it has
    one of its own, which `decide` applies."""
    classes = classifier.classes
    chosen = decide(batch.values, classes, classifier.thresholds)
    ranks = ranked(batch.values, classes, top)
    for path, reason, place in zip(batch.paths, batch.reasons, batch.rows(), strict=True):
        label = _label(path, labels) if labels else ""
        if place is None:
            yield Row(path, "", (), reason or "", label)
            continue
        best = ranks[place]
        name = classes[chosen[place]]
        if name not in classifier.thresholds and batch.values[place, chosen[place]] < threshold:
            name = UNSURE
        yield Row(path, name, best, "", label, _outcome(name, label))


def _label(path: str, labels: set[str]) -> str:
    """The true class of a file: the nearest folder above it that has the name of a class; "" where there is none."""
    parts = os.path.dirname(path).split(os.sep)
    return next((part for part in reversed(parts) if part in labels), "")


def _outcome(name: str, label: str) -> str:
    """ "correct", "wrong" (another class was named), "missed" (no class was named), "" without a true class."""
    if not label:
        return ""
    return "missed" if name == UNSURE else "correct" if name == label else "wrong"
