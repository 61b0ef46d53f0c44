"""The CSV files of an audit."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from cifar_jax.data.duplicates import image_digests
from cifar_jax.reports.audit_result import Audit

DIGEST = 16  # hexadecimal digits of the sha256 of an image's pixels: enough to tell images apart


LABELS = (
    "split", "rank", "index", "image", "label", "suggested", "doubtful", "quality", "label_probability",
    "suggested_probability", "fold", "file",
)  # fmt: skip
DUPLICATES = (
    "kind", "similarity", "same_label", "first_split", "first_index", "first_label", "first_file", "second_split",
    "second_index", "second_label", "second_file",
)  # fmt: skip


def written(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    """A CSV file."""
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


def label_rows(found: Audit) -> Iterator[dict[str, Any]]:
    """A row for each image, the most doubtful label of each split first."""
    for name, judged in found.labels.items():
        split, suggested = found.data[name], judged.suggested
        digests = image_digests(split.images)
        for rank, index in enumerate(judged.ranked.tolist(), 1):
            label, other = int(judged.labels[index]), int(suggested[index])
            yield {
                "split": name,
                "rank": rank,
                "index": index,
                "image": digests[index].hex()[:DIGEST],
                "label": split.classes[label],
                "suggested": split.classes[other],
                "doubtful": int(judged.doubtful[index]),
                "quality": f"{judged.quality[index]:.6f}",
                "label_probability": f"{judged.probabilities[index, label]:.6f}",
                "suggested_probability": f"{judged.probabilities[index, other]:.6f}",
                "fold": int(found.folds[index]) if name == "train" else "",
                "file": found.file(name, index),
            }


def duplicate_rows(found: Audit) -> Iterator[dict[str, Any]]:
    """A row for each pair of duplicates, exact ones first."""
    for pair in found.duplicates:
        row: dict[str, Any] = {"kind": pair.kind, "similarity": f"{pair.similarity:.4f}"}
        labels = []
        for side, place in (("first", pair.first), ("second", pair.second)):
            name, index = found.place(place)
            labels.append(found.data[name].classes[found.data[name].labels[index]])
            row |= {f"{side}_split": name, f"{side}_index": index, f"{side}_label": labels[-1]}
            row |= {f"{side}_file": found.file(name, index)}
        yield {**row, "same_label": int(labels[0] == labels[1])}
