"""When a run ends and when it saves."""

from typing import Any

SAVE_SECONDS = 2.0  # at least so long between two saves at the ends of epochs, where checkpoint.every_epochs is 0


def score(recipe: Any, line: dict[str, Any]) -> float | None:
    """What early stopping and the best checkpoint compare, larger is better; None without a validation split."""
    value = line[recipe.early_stopping.metric]
    return value if value is None or recipe.early_stopping.metric == "validation_accuracy" else -value


def best_epoch(recipe: Any, history: list[dict[str, Any]]) -> int:
    """The first epoch with the highest score, among those that end a chunk: only there is a state to return to."""
    ends = [line for line in history if line["epoch"] % recipe.chunk_epochs == 0 or line["epoch"] == recipe.epochs]
    return max(ends, key=lambda line: (score(recipe, line), -line["epoch"]), default={"epoch": 0})["epoch"]


def ended(recipe: Any, history: list[dict[str, Any]], epoch: int) -> bool:
    """Whether all epochs are done, or the validation metric has not improved for `patience` of them."""
    patience = recipe.early_stopping.patience
    return epoch >= recipe.epochs or bool(patience and epoch and epoch - best_epoch(recipe, history) >= patience)


def may_save(recipe: Any, start: int, end: int) -> bool:
    """Whether a checkpoint may belong after the epochs start..end; where the time decides, `save_is_due` knows."""
    every = recipe.checkpoint.every_epochs
    return not every or end // every > start // every or end == recipe.epochs


def save_is_due(recipe: Any, end: int, seconds: float) -> bool:
    """Whether a checkpoint belongs after the epoch `end`, after which it may be saved, so long after the last one.
    A run of 20 epochs of 0.2 s took 5.8 s with a save after each of them, and 4.5 s with one in two seconds
    (benchmarks/results/studies_quickstart*.json)."""
    return bool(recipe.checkpoint.every_epochs) or end == recipe.epochs or seconds >= SAVE_SECONDS
