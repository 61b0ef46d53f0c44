"""audit.html: galleries of doubtful labels and of duplicates, in the form of report.html."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cifar_jax.data.duplicates import EXACT, NEAR, Pair
from cifar_jax.reports.audit_result import Audit
from cifar_jax.reports.figures import new_figure, svg
from cifar_jax.reports.gallery import OF_CLASS, Picture, data_uri
from cifar_jax.reports.report import render
from cifar_jax.reports.run_report import Gallery
from cifar_jax.studies.tables import Table

SHOWN = 48  # doubtful labels of a split
SHOWN_PAIRS = 16  # of each kind of duplicates
MOST_NAMED = 20  # classes of a matrix whose counts are written in it


@dataclass
class SplitPart:
    """What the page says of the labels of a split."""

    name: str
    text: str
    pictures: list[Picture]
    figure: str | None
    caption: str
    classes: list[tuple[str, list[Picture]]]


def audit_page(found: Audit) -> str:
    """The page. Raises InputError where matplotlib or Jinja2 is missing."""
    contents = [("summary", "Summary"), *((name, f"Labels of {name}") for name in found.data)]
    return render(
        "audit.html",
        title=f"Label audit of {next(iter(found.data.values())).name}",
        contents=[*contents, ("duplicates", "Duplicates")],
        summary=summary(found),
        accuracies=accuracy_table(found),
        splits=[split_part(found, name) for name in found.data],
        duplicates=duplicate_galleries(found),
        duplicates_text=duplicates_text(found),
    )


def summary(found: Audit) -> list[tuple[str, str]]:
    lines = [("models", f"{found.folds.max() + 1}, each trained without one fold of the training images")]
    for name, judged in found.labels.items():
        count, total = int(judged.doubtful.sum()), len(judged.labels)
        lines.append((f"doubtful, {name}", f"{count:,} of {total:,} labels ({count / total:.1%})"))
    for name, count in found.figures()["duplicates"].items():
        lines.append((name.replace(",", " duplicates"), f"{count:,} {'pair' if count == 1 else 'pairs'}"))
    return lines


def accuracy_table(found: Audit) -> Table:
    rows = tuple(
        (f"{row.split}, {row.images}", f"{row.count:,}", f"{row.value:.2%}" if row.count else "none")
        for row in found.accuracies
    )
    title = "Accuracy: on train of the model that has not seen the image, elsewhere of the mean of all models"
    return Table(title, ("", "images", "accuracy"), rows)


def split_part(found: Audit, name: str) -> SplitPart:
    judged, classes = found.labels[name], found.data[name].classes
    doubtful = judged.ranked[judged.doubtful[judged.ranked]]
    shown = lambda places: [labelled_picture(found, name, place) for place in places]
    text = "No label is doubtful."
    if len(doubtful):
        text = f"{len(doubtful):,} labels are doubtful; labels.csv has them all. The most doubtful ones, that first."
    of_class = [(classes[label], shown(_of_label(judged.labels, doubtful, label))) for label in range(len(classes))]
    figure, caption = suggestion_figure(found, name) if len(doubtful) else (None, "")
    given = [(label, pictures) for label, pictures in of_class if pictures]
    return SplitPart(name, text, shown(doubtful[:SHOWN]), figure, caption, given)


def _of_label(labels: np.ndarray, doubtful: np.ndarray, label: int) -> np.ndarray:
    return doubtful[labels[doubtful] == label][:OF_CLASS]


def labelled_picture(found: Audit, name: str, place: int) -> Picture:
    """An image with its label and the most probable class."""
    judged, split = found.labels[name], found.data[name]
    label, suggested = int(judged.labels[place]), int(judged.suggested[place])
    said = judged.probabilities[place]
    return Picture(
        data_uri(split.images[place]),
        f"labelled {split.classes[label]} ({said[label]:.0%})",
        f"rather {split.classes[suggested]} ({said[suggested]:.0%}); {_name_of(found, name, place)}",
    )


def _name_of(found: Audit, split: str, index: int) -> str:
    """What an image can be found by: its file, or its number in the split."""
    return found.file(split, index).rpartition("/")[2] or f"{split} {index}"


def suggestion_figure(found: Audit, name: str) -> tuple[str, str]:
    """How often each class is suggested for each label among the doubtful ones."""
    classes = found.data[name].classes
    counts = found.labels[name].suggestions(len(classes))
    size = min(8.0, 2.2 + 0.45 * len(classes))
    figure, axes = new_figure(size, size)
    axes.grid(False)
    axes.imshow(counts, cmap="Blues", vmin=0)
    for row, column in np.ndindex(*counts.shape) if len(classes) <= MOST_NAMED else ():
        if counts[row, column]:
            colour = "white" if counts[row, column] > counts.max() / 2 else "#222222"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(classes)), classes, rotation=60, ha="right", fontsize=8)
    axes.set_yticks(range(len(classes)), classes, fontsize=8)
    axes.set_xlabel("suggested class")
    axes.set_ylabel("label")
    row, column = np.unravel_index(np.argmax(counts), counts.shape)
    text = f"Doubtful labels of {name}. The most frequent: {counts[row, column]:,} images are labelled"
    text += f" {classes[row]} and look like {classes[column]}."
    return svg(figure, f"Labels and suggested classes. {text}"), text


def duplicates_text(found: Audit) -> str:
    if not found.duplicates:
        return "No image is a duplicate of another."
    sentence = f"duplicates.csv has all {len(found.duplicates):,} pairs."
    return f"{sentence} A near duplicate may be a mirror image, or another picture of the same thing."


def duplicate_galleries(found: Audit) -> list[Gallery]:
    """Exact and near duplicates, those across splits, and those with different labels."""
    names = {EXACT: ("Exact duplicates", "All pixels are equal."),
             NEAR: ("Near duplicates", "The most similar ones, that first.")}  # fmt: skip
    galleries = []
    for kind, (title, text) in names.items():
        chosen = [pair for pair in found.duplicates if pair.kind == kind]
        for across, where in ((True, "across splits"), (False, "within a split")):
            own = [pair for pair in chosen if _across(found, pair) == across]
            galleries.append(_pair_gallery(found, f"{title} {where}", text, own))
        contradicting = [pair for pair in chosen if _labels(found, pair)[0] != _labels(found, pair)[1]]
        galleries.append(_pair_gallery(found, f"{title} with different labels", text, contradicting))
    return [gallery for gallery in galleries if gallery.pictures]


def _pair_gallery(found: Audit, title: str, text: str, pairs: Sequence[Pair]) -> Gallery:
    sentence = f"{len(pairs):,} {'pair' if len(pairs) == 1 else 'pairs'}. {text}"
    return Gallery(title, sentence, [pair_picture(found, pair) for pair in pairs[:SHOWN_PAIRS]])


def _across(found: Audit, pair: Pair) -> bool:
    return found.place(pair.first)[0] != found.place(pair.second)[0]


def _labels(found: Audit, pair: Pair) -> list[str]:
    places = [found.place(place) for place in (pair.first, pair.second)]
    return [found.data[name].classes[found.data[name].labels[index]] for name, index in places]


def pair_picture(found: Audit, pair: Pair) -> Picture:
    """Two images side by side."""
    (name, index), (other, other_index) = places = [found.place(place) for place in (pair.first, pair.second)]
    images: list[Any] = [found.data[split].images[place] for split, place in places]
    gap = np.full((images[0].shape[0], max(1, images[0].shape[1] // 16), images[0].shape[2]), 128, np.uint8)
    first, second = _labels(found, pair)
    labels = f"both {first}" if first == second else f"{first} and {second}"
    same = "equal" if pair.kind == EXACT else f"cosine {pair.similarity:.3f}"
    where = f"{_name_of(found, name, index)} and {_name_of(found, other, other_index)}"
    return Picture(data_uri(np.concatenate([images[0], gap, images[1]], 1)), f"{labels}; {same}", where)
