"""What a run tells, as callbacks: metrics.jsonl, a line an epoch, and a progress bar."""

import contextlib
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from cifar_jax.errors import InputError
from cifar_jax.runs.events import Event


class MetricsFile:
    """metrics.jsonl. Lines are whole or absent: a half-written last line is dropped by every reader."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, event: Event) -> None:
        """Appends the event's lines; the earlier lines of a resumed run are in the file already."""
        if event.lines and event.lines[-1]["step"] > self._last_step:
            self.append(list(event.lines))
        self._last_step = event.lines[-1]["step"] if event.lines else self._last_step

    _last_step = 0

    def append(self, lines: list[dict[str, Any]]) -> None:
        """Writes the lines through to the disk, so that a checkpoint saved afterwards never knows more than the log."""
        try:
            with self.path.open("a") as file:
                file.write("".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"{self.path} cannot be written ({error.strerror}); make room, then resume") from error

    def truncate(self, epoch: int) -> list[dict[str, Any]]:
        """Drops the lines after `epoch`, which a resumed run writes again; returns the others."""
        kept = [line for line in read_metrics(self.path) if line["epoch"] <= epoch]
        if len(kept) < epoch:
            warnings.warn(f"{self.path} lacks {epoch - len(kept)} of {epoch} epochs; the run goes on", stacklevel=2)
        draft = self.path.with_suffix(".tmp")
        try:
            draft.write_text("".join(json.dumps(line) + "\n" for line in kept))
            os.replace(draft, self.path)
        except OSError as error:
            raise InputError(f"{self.path} cannot be written ({error.strerror}); make room, then resume") from error
        self._last_step = kept[-1]["step"] if kept else 0
        return kept


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl in the order of their epochs, damaged ones left out; [] where there is no file."""
    if not path.exists():
        return []
    lines = {}
    for text in path.read_text(errors="replace").split("\n")[:-1]:  # what follows the last newline is not whole
        with contextlib.suppress(ValueError, KeyError, TypeError):
            line = json.loads(text)
            lines[int(line["epoch"])] = line
    return [lines[epoch] for epoch in sorted(lines)]


def wait(results: Any, meanwhile: Callable[[], Any] = lambda: None) -> None:
    """Polls until the device has computed the arrays; unlike block_until_ready, Ctrl-C interrupts it."""
    pause = 0.0005
    while not all(leaf.is_ready() for leaf in jax.tree.leaves(results)):
        time.sleep(pause)
        pause = min(0.2, pause * 1.5)
        if pause >= 0.2:
            meanwhile()


class Progress:
    """A bar that counts steps and keeps its clock running while the device works; in a file, a line for each chunk."""

    def __init__(self, shown: bool) -> None:
        self.in_file = shown and not sys.stderr.isatty()
        self.hidden = self.in_file or not shown
        self.bar: Any = None
        self.start = time.monotonic()
        self.figures: dict[str, str] = {}

    def __call__(self, event: Event) -> None:
        steps = event.total_steps // event.recipe.epochs
        if self.bar is None:
            form = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps [{elapsed}<{remaining}{postfix}]"
            self.bar = tqdm(total=event.total_steps, initial=event.step, bar_format=form, disable=self.hidden)
            self.first_step = event.step
        if event.lines:
            self.figures = self._figures(event.lines[-1])
        self.bar.set_description(f"epoch {event.step // steps}/{event.recipe.epochs}", refresh=False)
        self.bar.set_postfix(self.figures, refresh=False)
        self.bar.update(event.step - self.bar.n)
        if self.in_file and event.step > self.first_step:
            self._print(event, steps)

    def _figures(self, line: dict[str, Any]) -> dict[str, str]:
        names = {"train_accuracy": "train", "validation_accuracy": "validation"}
        accuracies = {name: f"{line[field]:.1%}" for field, name in names.items() if line[field] is not None}
        return {"loss": f"{line['train_loss']:.3f}", **accuracies}

    def _print(self, event: Event, steps: int) -> None:
        elapsed = time.monotonic() - self.start
        left = elapsed / (event.step - self.first_step) * (event.total_steps - event.step)
        shown = f"{tqdm.format_interval(elapsed)}<{tqdm.format_interval(left)}"
        figures = "".join(f", {name}={value}" for name, value in self.figures.items())
        epochs = f"{event.step / steps:.4g}/{event.recipe.epochs} epochs"
        print(f"training: {epochs} [{shown}{figures}]", file=sys.stderr, flush=True)

    def refresh(self) -> None:
        if self.bar is not None:
            self.bar.refresh()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
