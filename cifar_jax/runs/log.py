"""What a run tells: metrics.jsonl, a line an epoch, and a progress bar."""

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


class MetricsFile:
    """metrics.jsonl. Lines are whole or absent: a half-written last line is dropped by every reader."""

    def __init__(self, path: Path) -> None:
        self.path = path

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
    """Returns when the device has computed the arrays; open to Ctrl-C, which a wait inside the runtime is not."""
    pause = 0.0005
    while not all(leaf.is_ready() for leaf in jax.tree.leaves(results)):
        time.sleep(pause)
        pause = min(0.2, pause * 1.5)
        if pause >= 0.2:
            meanwhile()


class Progress:
    """A bar that counts epochs and keeps its clock running while the device works; in a file, a line for each chunk."""

    def __init__(self, epochs: int, done: int, shown: bool) -> None:
        form = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} epochs [{elapsed}<{remaining}{postfix}]"
        self.in_file = shown and not sys.stderr.isatty()
        hidden = self.in_file or not shown
        self.bar = tqdm(total=epochs, initial=done, desc="training", bar_format=form, disable=hidden, leave=True)
        self.start = time.monotonic()

    def wait(self, results: Any) -> None:
        """`wait`, with the bar's clock going on."""
        wait(results, self.bar.refresh)

    def update(self, lines: list[dict[str, Any]]) -> None:
        last = lines[-1]
        shown = {"loss": f"{last['train_loss']:.3f}", "train": f"{last['train_accuracy']:.1%}"}
        if last["validation_accuracy"] is not None:
            shown["validation"] = f"{last['validation_accuracy']:.1%}"
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update(len(lines))
        if self.in_file:
            elapsed = tqdm.format_interval(time.monotonic() - self.start)
            figures = ", ".join(f"{name}={value}" for name, value in shown.items())
            print(
                f"training: {last['epoch']}/{self.bar.total} epochs [{elapsed}, {figures}]", file=sys.stderr, flush=True
            )

    def close(self) -> None:
        self.bar.close()
