"""From sums and a confusion matrix to the figures people quote. NumPy only; every ratio over nothing is 0."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from cifar_jax.errors import InputError

CALIBRATION_BINS = 15  # Guo et al. 2017, section 4


@dataclass(frozen=True)
class Evaluation:
    """What a model does on one split; C classes.

    confusion_matrix [C, C] counts images by (true class, predicted class); precision, recall, f1 are [C].
    expected_calibration_error is Guo et al. 2017, eq. 3, over 15 bins of equal width. The loss is in nats.
    """

    split: str
    classes: tuple[str, ...]
    count: int
    loss: float
    accuracy: float
    top5_accuracy: float
    confusion_matrix: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    macro_precision: float
    macro_recall: float
    macro_f1: float
    expected_calibration_error: float

    def to_json(self) -> dict[str, Any]:
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Evaluation":
        arrays = {name: np.array(values[name]) for name in ("confusion_matrix", "precision", "recall", "f1")}
        return cls(**{**values, **arrays, "classes": tuple(values["classes"])})

    def __str__(self) -> str:
        """A table, a row for each class, and a line of figures."""
        summary = f"{self.split} accuracy {self.accuracy:.2%} ({self.count} images), "
        summary += f"top-5 {self.top5_accuracy:.2%}, " if len(self.classes) > 5 else ""
        summary += f"loss {self.loss:.4f}, calibration error {self.expected_calibration_error:.2%}"
        return f"{self.table()}\n{summary}"

    def table(self) -> str:
        """A row for each class."""
        width = max(len("macro mean"), *map(len, self.classes))
        rows = [f"{'class':{width}}  precision   recall       F1  images"]
        figures = zip(self.classes, self.precision, self.recall, self.f1, self.confusion_matrix.sum(1), strict=True)
        means = ("macro mean", self.macro_precision, self.macro_recall, self.macro_f1, self.count)
        for name, precision, recall, f1, images in [*figures, means]:
            rows.append(f"{name:{width}}  {precision:9.2%}  {recall:7.2%}  {f1:7.2%}  {images:6d}")
        return "\n".join(rows)


@dataclass(frozen=True)
class SplitPredictions:
    """What a model says about the N images of a split, and what they are."""

    labels: np.ndarray  # int32 [N]
    probabilities: np.ndarray  # float32 [N, C]
    indices: np.ndarray | None = None  # int64 [N], places in the data set's split; None where they are all, in order
    embeddings: np.ndarray | None = None  # float32 [N, D], where they were asked for

    @property
    def correct(self) -> np.ndarray:
        """bool [N]."""
        return self.probabilities.argmax(-1) == self.labels

    def arrays(self) -> dict[str, np.ndarray]:
        """Those that are there, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


def summarise(sums: dict[str, Any], classes: tuple[str, ...], split: str, count: int) -> Evaluation:
    """`sums` as evaluation.sums gives them for `count` images: loss_sum, top5, confusion [C, C], calibration [bins, 3].

    Raises InputError where the confusion matrix does not hold every image.
    """
    confusion = np.asarray(sums["confusion"]).astype(np.int64)
    if confusion.sum() != count:
        missing = (
            f"only {confusion.sum()} of {count} images of split '{split}' have a label of the {len(classes)} classes"
        )
        raise InputError(f"{missing}; labels are 0 to {len(classes) - 1}")
    images, confidence, correct = np.asarray(sums["calibration"], np.float64).T
    gaps = np.abs(_ratio(correct, images) - _ratio(confidence, images))
    return Evaluation(
        split=split,
        classes=tuple(classes),
        count=count,
        loss=float(sums["loss_sum"]) / count,
        top5_accuracy=float(sums["top5"]) / count,
        expected_calibration_error=float((gaps * images).sum() / count),
        **of_confusion(confusion),
    )


def of_confusion(confusion: np.ndarray) -> dict[str, Any]:
    """The fields of an evaluation that follow from its confusion matrix, int64 [C, C]."""
    right = np.diag(confusion)
    precision, recall = _ratio(right, confusion.sum(0)), _ratio(right, confusion.sum(1))
    f1 = _ratio(2 * right, confusion.sum(0) + confusion.sum(1))
    return {
        "accuracy": float(right.sum()) / int(confusion.sum()),
        "confusion_matrix": confusion,
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "macro_precision": float(precision.mean()),
        "macro_recall": float(recall.mean()),
        "macro_f1": float(f1.mean()),
    }


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole != 0)
