"""What callbacks see: `callback(event) -> bool | None`, called on the host after each chunk of steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifar_jax.errors import InputError


@dataclass(frozen=True)
class Event:
    """A chunk of steps is done. The first event comes before training, with the earlier lines of a resumed run."""

    recipe: Any  # FrozenConfigDict, resolved
    workdir: Path | None
    lines: Sequence[dict[str, Any]]  # those of metrics.jsonl that are new: one for each epoch that ended
    step: int  # optimiser steps done
    total_steps: int
    make_classifier: Callable[[], Any] | None = None

    def classifier(self) -> Any:
        """The model as it is after `step`, a Classifier. Raises InputError without `fit(stoppable=True)`."""
        if self.make_classifier is None:
            raise InputError("event.classifier() needs fit(stoppable=True), where the next chunk waits for callbacks")
        return self.make_classifier()


Callback = Callable[[Event], bool | None]


def notify(callbacks: Sequence[Callback], event: Event) -> tuple[bool, Exception | None]:
    """Calls each with the event -> (whether one asks the run to stop, the first exception that one raised)."""
    stop, error = False, None
    for callback in callbacks:
        try:
            stop |= callback(event) is True
        except Exception as raised:
            error = error or raised
    return stop, error
