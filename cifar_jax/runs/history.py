"""The lines of metrics.jsonl, from the sums that the device returns; the sums of an epoch that is not over yet."""

from typing import Any

import numpy as np

from cifar_jax import training
from cifar_jax.errors import InputError

RESERVED = ("loss_sum", "count", "correct", "learning_rate", "validation_loss_sum", "validation_correct")


class PartialEpoch:
    """The sums of the parts of an epoch so far: numbers of each step, in a form that a checkpoint can hold."""

    def __init__(self, saved: dict[str, Any] | None = None) -> None:
        saved = saved or {"sums": {}, "seconds": 0.0}
        self.seconds = float(saved["seconds"])
        self.sums = {name: np.asarray(values, dtype) for name, (dtype, values) in saved["sums"].items()}

    def add(self, sums: dict[str, np.ndarray], seconds: float) -> None:
        self.seconds += seconds
        self.sums = {name: np.concatenate([self.sums.get(name, values[:0]), values]) for name, values in sums.items()}

    def to_json(self) -> dict[str, Any]:
        """float32 numbers survive as JSON's float64 bit for bit."""
        return {
            "sums": {name: [str(values.dtype), values.tolist()] for name, values in self.sums.items()},
            "seconds": self.seconds,
        }

    def whole(self) -> dict[str, np.ndarray]:
        """The sums as those of a chunk of one epoch, [1, steps]."""
        return {name: values[None] for name, values in self.sums.items()}


def lines_of(
    recipe: Any, sums: dict[str, np.ndarray], start: int, seconds: float, validation_count: int
) -> list[dict[str, Any]]:
    """The lines of the epochs after epoch `start`; `seconds` is shared among them. sums: [epochs, steps], those of
    validation [epochs]."""
    epochs, steps = sums["loss_sum"].shape
    lines = []
    for index in range(epochs):
        count = int(sums["count"][index].sum())
        of_validation = lambda name, index=index: float(sums[name][index]) / validation_count if name in sums else None
        others = {
            f"train_{name}": float(values[index].sum(dtype=np.float64)) / count
            for name, values in sums.items()
            if name not in RESERVED
        }
        lines.append(
            {
                "epoch": start + index + 1,
                "step": (start + index + 1) * steps,
                "train_loss": float(sums["loss_sum"][index].sum(dtype=np.float64)) / count,
                "train_accuracy": int(sums["correct"][index].sum()) / count if "correct" in sums else None,
                **others,
                "validation_loss": of_validation("validation_loss_sum"),
                "validation_accuracy": of_validation("validation_correct"),
                "learning_rate": float(sums["learning_rate"][index, -1]),
                "seconds": round(seconds / epochs, 3),
                "images_per_second": round(count * epochs / seconds, 1),
            }
        )
    return lines


def check_finite(recipe: Any, sums: dict[str, np.ndarray], finite: Any, start: int) -> None:
    """Raises InputError at the first step whose loss is not finite, or at the last one if it spoilt the weights.

    The sums are those of the steps after step `start`.
    """
    losses, rates = sums["loss_sum"].reshape(-1), sums["learning_rate"].reshape(-1)
    finite = bool(finite) and np.isfinite(sums.get("validation_loss_sum", 0.0)).all()
    bad = np.flatnonzero(~np.isfinite(losses))
    if len(bad) or not finite:
        where = int(bad[0]) if len(bad) else len(losses) - 1
        step = start + where
        raise InputError(
            f"the loss is not finite at step {step} (epoch {step // training.steps_per_epoch(recipe) + 1}, learning"
            f" rate {float(rates[where]):g}); what was saved before is kept: lower optimizer.learning_rate or set"
            " gradient_clip_norm"
        )
