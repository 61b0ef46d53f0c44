"""Where the figures of a run go while it trains, beside metrics.jsonl: TensorBoard and Weights & Biases, as callbacks.

cj.fit(recipe, "runs/cnn", callbacks=[TensorBoard()])
"""

import importlib
import json
import secrets
import time
from pathlib import Path
from typing import Any

from cifar_jax.errors import InputError
from cifar_jax.recipe import flatten, to_json
from cifar_jax.runs.events import Event

SINKS = ("tensorboard", "wandb")


def sink(name: str) -> Any:
    """The callback of that name."""
    return {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}[name]()


class TensorBoard:
    """Writes scalars to <workdir>/tensorboard by tensorboardX. Raises InputError where it is not installed.

    The events of an epoch are on the disk when the callback returns; those of its SummaryWriter wait in a queue.
    """

    def __init__(self) -> None:
        self.events = _library("tensorboardX.event_file_writer", "tensorboard")
        self.writer: Any = None

    def __call__(self, event: Event) -> None:
        folder = _folder(event, "tensorboard")
        if self.writer is None:
            folder.mkdir(parents=True, exist_ok=True)
            # A resumed run has written its earlier epochs; its first event brings their lines once more. The name of a
            # file holds the second of the start only, and a run may be resumed within it.
            self.skipped = _last_step(folder)
            self.writer = self.events.EventsWriter(str(folder / "events"), filename_suffix=f".{event.step}")
        for line in event.lines:
            if line["step"] > self.skipped:
                self._write(line)
                _remember(folder, line["step"])
        if event.step == event.total_steps:
            self.writer.close()

    def _write(self, line: dict[str, Any]) -> None:
        from tensorboardX.proto.event_pb2 import Event as Record
        from tensorboardX.summary import scalar

        for name, value in figures(line).items():
            self.writer.write_event(Record(wall_time=time.time(), step=line["step"], summary=scalar(name, value)))
        self.writer.flush()


class WeightsAndBiases:
    """Logs to Weights & Biases; the recipe is the run's config. WANDB_MODE=offline writes to <workdir>/wandb alone."""

    def __init__(self) -> None:
        self.library = _library("wandb", "wandb")
        self.run: Any = None

    def __call__(self, event: Event) -> None:
        if self.run is None:
            folder = _folder(event, "wandb")
            folder.mkdir(parents=True, exist_ok=True)
            self.skipped, known = _last_step(folder), folder / "run_id.txt"
            identity = known.read_text() if known.exists() else secrets.token_hex(4)
            known.write_text(identity)  # so that a resumed run goes on with the same one
            config = flatten(to_json(event.recipe))
            name = event.workdir.name if event.workdir else None
            where = {"dir": str(folder.parent), "id": identity, "resume": "allow", "name": name}
            self.run = self.library.init(project="cifar_jax", config=config, **where)
        for line in event.lines:
            if line["step"] > self.skipped:
                self.run.log(figures(line), step=line["step"])
                _remember(_folder(event, "wandb"), line["step"])
        if event.step == event.total_steps:
            self.run.finish()


def figures(line: dict[str, Any]) -> dict[str, float]:
    """{"train_loss": 0.5} -> {"loss/train": 0.5}: training and validation share a plot. What is None is left out."""
    named = {}
    for name, value in line.items():
        if value is not None and name not in ("epoch", "step"):
            split, _, figure = name.partition("_")
            named[f"{figure}/{split}" if split in ("train", "validation") else name] = value
    return named


def _folder(event: Event, name: str) -> Path:
    if event.workdir is None:
        raise InputError(f"the log '{name}' needs a workdir; give one to fit")
    return event.workdir / name


def _last_step(folder: Path) -> int:
    path = folder / "last_step.json"
    return int(json.loads(path.read_text())) if path.exists() else 0


def _remember(folder: Path, step: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "last_step.json").write_text(json.dumps(step))


def _library(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        remedy = f"install it with pip install -c constraints.txt -e '.[{extra}]'"
        raise InputError(f"the log needs {module.partition('.')[0]}, which is not installed; {remedy}") from error
