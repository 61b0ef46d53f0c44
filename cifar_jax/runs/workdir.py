"""A run as it lies on disk, and `Run`, what is known of a trained model; everything but training meets it here.

recipe.json        the resolved recipe; `--config=<workdir>/recipe.json` repeats the run
environment.json   versions, devices, classes, digest of the training data
metrics.jsonl      a line an epoch: see `log`
checkpoints/       with manifests/ and quarantine/: see `checkpoint`
evaluation.json    the test split, written last: a run that has it is complete
"""

import contextlib
import dataclasses
import fcntl
import functools
import importlib.metadata
import platform
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from cifar_jax.training import evaluation, step as train
from cifar_jax.runs.checkpoint import Checkpoints, read_json, write_json
from cifar_jax.runs.devices import compute_dtype, jit
from cifar_jax.runs.log import read_metrics
from cifar_jax.training.metrics import Evaluation
from cifar_jax.errors import InputError
from cifar_jax.recipe import BUILT, differences, freeze, from_json, override, to_json

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "ml-collections", "numpy")


@dataclasses.dataclass
class Run:
    """A trained model with its recipe and history."""

    recipe: Any  # FrozenConfigDict, resolved
    state: train.TrainState
    classes: tuple[str, ...]
    history: list[dict[str, Any]]  # the lines of metrics.jsonl
    workdir: Path | None
    evaluation: Evaluation | None  # of the test split; None before the run is complete
    digest: str | None = None  # of the training data

    def logits(self, images: np.ndarray, views: str | None = None) -> np.ndarray:
        """images uint8 [N, H, W, C] -> float32 [N, classes]; `views` as in augment.VIEWS, the recipe's if None.

        Raises InputError on images of another type or size.
        """
        images, expected = np.asarray(images), tuple(self.recipe.data.image_shape)
        if images.dtype != np.uint8 or images.shape[1:] != expected:
            shown = f"{images.dtype} {list(images.shape)}"
            raise InputError(f"images are {shown}; this model takes uint8 [N, {', '.join(map(str, expected))}]")
        # Few images are padded to a power of two: a program for each size that a caller may come with is a compilation.
        size = min(self.recipe.evaluation.batch_size, 1 << max(0, len(images) - 1).bit_length())
        scores = [np.zeros((0, len(self.classes)), np.float32)]
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            padded = np.concatenate([batch, np.zeros((size - len(batch), *expected), np.uint8)])
            program = self._program(views or self.recipe.evaluation.views)
            scores.append(np.asarray(program(self.state, padded))[: len(batch)])
        return np.concatenate(scores)

    def sums(self, images: jax.Array, labels: jax.Array, views: str, placement: Any = None) -> Any:
        """evaluation.sums of arrays on the device, compiled once for each kind of views and placement."""
        return self._sums_program(views, placement)(self.state, images, labels)

    @functools.cached_property
    def _program(self) -> Any:
        """views -> the compiled logits."""
        return functools.cache(
            lambda views: jit(lambda state, images: evaluation.logits(self.recipe, state, images, views))
        )

    @functools.cached_property
    def _sums_program(self) -> Any:
        """views, placement -> the compiled sums."""

        def program(views: str, placement: Any) -> Any:
            return jit(
                lambda state, images, labels: evaluation.sums(self.recipe, state, images, labels, views, placement)
            )

        return functools.cache(program)


def load_run(workdir: str | Path, which: str | None = None, **functions: Any) -> Run:
    """The run in `workdir`, at its "last" or "best" checkpoint (by default the best where it could stop early).

    `functions` are those that `fit` was given, model=..., optimizer=..., loss=...: they stand in where the recipe names
    what is no part of cifar_jax. Raises InputError where there is no run, or none of its checkpoints is whole.
    """
    workdir = Path(workdir)
    if not (workdir / "recipe.json").exists():
        raise InputError(f"'{workdir}' holds no run (no recipe.json); train one with --workdir={workdir}")
    stored = read_recipe(workdir / "recipe.json")
    foreign = {name: function for name, function in functions.items() if "." in getattr(stored[name], "name", "")}
    recipe = freeze(with_functions(stored, foreign))
    like = jax.eval_shape(lambda: train.init(recipe))
    with Checkpoints(workdir / "checkpoints", reader=True) as checkpoints:
        restored = checkpoints.restore(like, which or ("best" if recipe.early_stopping.patience else "last"))
    if restored is None:
        raise InputError(f"the run in '{workdir}' has no whole checkpoint yet; train it with --workdir={workdir}")
    environment = read_json(workdir / "environment.json")
    return Run(
        recipe=recipe,
        state=restored[0],
        classes=tuple(environment["classes"]),
        history=read_metrics(workdir / "metrics.jsonl"),
        workdir=workdir,
        evaluation=read_evaluation(workdir),
        digest=environment["data_digest"],
    )


def completed(workdir: Path, recipe: Any, functions: Mapping[str, Any]) -> Run | None:
    """The run in `workdir` if it is complete and of this recipe, whatever became of its data; else None."""
    if not (workdir / "recipe.json").exists() or read_evaluation(workdir) is None:
        return None
    stored = read_recipe(workdir / "recipe.json")
    decided = {f"data.{field}": stored.data[field] for field in ("num_classes", "image_shape", "train_count")}
    same = override(recipe, {**decided, "dtype": compute_dtype(recipe.dtype)})
    return None if differences(stored, same) else load_run(workdir, **functions)


def read_recipe(path: Path) -> ConfigDict:
    """A run's recipe.json. Raises InputError where it is damaged."""
    values = read_json(path)
    if not isinstance(values, dict) or not {*BUILT, "data"} <= values.keys():
        raise InputError(f"{path} is damaged, it is not a recipe")
    return from_json(values)


def read_evaluation(workdir: Path) -> Evaluation | None:
    """evaluation.json; None where the run is not complete, or, with a warning, where the file is damaged."""
    if not (workdir / "evaluation.json").exists():
        return None
    try:
        return Evaluation.from_json(read_json(workdir / "evaluation.json"))
    except (ValueError, KeyError, TypeError):
        warnings.warn(f"{workdir / 'evaluation.json'} is damaged; train again to write it anew", stacklevel=2)
        return None


def with_functions(recipe: Any, functions: Mapping[str, Any]) -> ConfigDict:
    """The recipe with the caller's functions in place of the names; an optimiser keeps the learning rate."""
    changes = {}
    for section, function in functions.items():
        if function is not None:
            changes["augment" if section == "augment" else f"{section}.name"] = function
    if "optimizer.name" in changes:
        changes["optimizer.learning_rate"] = recipe.optimizer.learning_rate
    return override(recipe, changes)


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Makes the workdir and keeps other processes out of it; a killed process leaves no lock behind."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("w")
    except OSError as error:
        raise InputError(f"workdir '{workdir}' cannot be written ({error.strerror}); name another folder") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                f"workdir '{workdir}' is in use by another process; wait for it or name another"
            ) from error
        yield


def claim(workdir: Path, recipe: Any, data_digest: str, classes: tuple[str, ...]) -> None:
    """Writes recipe.json and environment.json, or raises InputError where they are of another run."""
    if (workdir / "recipe.json").exists():
        changed = differences(read_recipe(workdir / "recipe.json"), recipe)
        if changed:
            raise InputError(
                f"workdir '{workdir}' holds a run of another recipe; name another folder: {'; '.join(changed)}"
            )
        digest = read_json(workdir / "environment.json")["data_digest"]
        if digest != data_digest:
            raise InputError(
                f"workdir '{workdir}' was trained on data with digest {digest}; the data set now has {data_digest}"
            )
        return
    write_json(workdir / "environment.json", {**environment(data_digest), "classes": classes})
    write_json(workdir / "recipe.json", to_json(recipe))  # last: a workdir that has it has both


def environment(data_digest: str) -> dict[str, Any]:
    """What a run depended on beside its recipe."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "devices": [f"{device.platform} {device.device_kind}" for device in jax.devices()],
        "data_digest": data_digest,
    }
