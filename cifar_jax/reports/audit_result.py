"""What an audit found."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cifar_jax.data import arrays
from cifar_jax.data.duplicates import EXACT, NEAR, Pair
from cifar_jax.reports.audit_accuracy import Accuracy
from cifar_jax.reports.audit_labels import Judged


@dataclass(frozen=True, repr=False)
class Audit:
    """What an audit found. Places of duplicates count through all splits in their order, "train" first."""

    folder: Path
    data: Mapping[str, arrays.Split]  # those that were audited, in their order
    labels: Mapping[str, Judged]  # of each split
    folds: np.ndarray  # int32 [N], of each training image
    duplicates: Sequence[Pair]
    accuracies: Sequence[Accuracy]
    files: Mapping[str, Sequence[str]]  # of the images of each split; empty where they do not come from files

    def file(self, split: str, index: int) -> str:
        """The file of an image, "" where there is none."""
        return self.files[split][index] if self.files else ""

    def place(self, place: int) -> tuple[str, int]:
        """The split and the index in it of an image among all."""
        for name, split in self.data.items():
            if place < len(split.labels):
                return name, place
            place -= len(split.labels)
        raise IndexError(place)

    def count(self, kind: str, across: bool) -> int:
        """How many pairs of duplicates there are, in one split or across two."""
        chosen = [pair for pair in self.duplicates if pair.kind == kind]
        return sum((self.place(pair.first)[0] != self.place(pair.second)[0]) == across for pair in chosen)

    def figures(self) -> dict[str, Any]:
        """As audit.json keeps them."""
        return {
            "doubtful": {name: int(judged.doubtful.sum()) for name, judged in self.labels.items()},
            "duplicates": {
                f"{kind}, {'across splits' if across else 'within a split'}": self.count(kind, across)
                for kind in (EXACT, NEAR)
                for across in (False, True)
            },
            "accuracies": [{**asdict(row), "accuracy": row.value if row.count else None} for row in self.accuracies],
        }

    def __repr__(self) -> str:
        found = self.figures()
        doubtful = [
            f"{count:,} of {len(self.data[name].labels):,} in {name}" for name, count in found["doubtful"].items()
        ]
        pairs = [f"{count:,} {name}" for name, count in found["duplicates"].items()]
        width = max(len(f"{row.split}, {row.images}") for row in self.accuracies)
        rows = [
            f"  {f'{row.split}, {row.images}':{width}}  {row.value:7.2%}  {row.count:7,d} images"
            for row in self.accuracies
        ]
        return "\n".join(
            [f"doubtful labels: {', '.join(doubtful)}", f"pairs of duplicates: {', '.join(pairs)}", "accuracy", *rows]
        )
