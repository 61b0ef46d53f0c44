"""Checkpoints on disk: Orbax writes them, a sha256 manifest of our own says which of them are whole.

Orbax notices neither a flipped bit nor an empty step folder, which becomes its newest step. So a manifest is
written once Orbax has committed, and a step that does not match its manifest is never returned.

    <run>/checkpoints/<step>/      Orbax's files; the directory given to `Checkpoints`
    <run>/manifests/<step>.json    {"files": {relative name: {"sha256", "bytes"}}, "score": number or null,
                                    "leaves": {name: dtype and shape}, "identity": of recipe and data,
                                    "beside": what was saved beside the arrays, "digest": of all this}
    <run>/quarantine/<step>[-n]    steps that were found damaged, each with its manifest, <step>[-n].json
"""

import functools
import logging
import math
import os
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import jax
import numpy as np
from jax.experimental import multihost_utils

from cifar_jax.errors import InputError
from cifar_jax.process import finish_before_end
from cifar_jax.runs.files import digest_of_file, digest_of_json, read_json, write_json

PyTree = Any

# What reading a garbled manifest can raise; InputError is a ValueError.
NOT_A_MANIFEST = (ValueError, TypeError, KeyError, AttributeError)


class Checkpoints:
    """The checkpoints of one run: asynchronous saves; the newest `keep` and the best stay, each with a manifest.

    In a run of several processes each calls every method, on a shared file system, with whole (replicated)
    arrays; process 0 alone writes manifests, deletes and moves.
    """

    def __init__(self, directory: Path, keep: int = 2, reader: bool = False, identity: dict[str, str] | None = None):
        """Touches nothing on disk. A `reader` never does: it tells of damage, and passes over unfinished saves.

        `identity` says what the run is made of, {"recipe": digest, "data": digest}: it is stored with each step, and a
        step of another identity is refused.
        """
        if keep < 1:
            raise InputError(f"keep is {keep}; at least 1 checkpoint must be kept.")
        self.directory = Path(directory).absolute()
        self.keep = keep
        self.reader = reader
        self.identity = identity
        self._manifests = self.directory.parent / "manifests"
        self._quarantine = self.directory.parent / "quarantine"
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="manifest")
        self._pending: tuple[int, Future[None]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """`finish`, and the end of the worker thread."""
        try:
            self.finish()
        finally:
            self._worker.shutdown()

    def steps(self) -> list[int]:
        """The steps that have a manifest, ascending."""
        return sorted(int(path.stem) for path in self._manifests.glob("*.json") if path.stem.isdecimal())

    def save(self, step: int, state: PyTree, score: float | None, beside: Any = None) -> None:
        """Starts to save `state`, a tree of arrays of any shape; it may be donated as soon as this returns. `beside` is
        a JSON value that is kept with it.

        An existing step is overwritten. Best is the earliest step with the highest score. Raises InputError if this
        save cannot start, if the one before failed, or if the score is not finite.
        """
        self.finish()
        if score is not None and not math.isfinite(score):
            raise InputError(f"the score of step {step} is {score}; it must be finite.")
        # Real copies: on CPU device_get is a view of the buffer that the caller donates next. (Orbax 0.12 copies numpy
        # arrays once more before save_async returns, but does not promise it.)
        # A numpy scalar, on which Orbax would raise and then hang at exit, becomes a 0-d array.
        leaves = {name: np.array(leaf) for name, leaf in jax.device_get(_named_leaves(state)).items()}
        try:
            if jax.process_index() == 0:
                self._manifest_path(step).unlink(missing_ok=True)
            checkpointer = self._open_checkpointer()
            response = checkpointer.save_async(step, leaves, force=True, overwrite=True)
        except Exception as error:
            raise self._failure(step, error) from error
        self._pending = (
            step,
            self._worker.submit(
                self._complete,
                step,
                {"score": score, "beside": beside, "leaves": _descriptions(leaves)},
                checkpointer,
                response,
            ),
        )
        finish_before_end(self._pending[1])

    def finish(self) -> None:
        """Waits until the last save has its manifest. Raises InputError if it failed, say on a full disk."""
        if self._pending is None:
            return
        (step, future), self._pending = self._pending, None
        try:
            future.result()
        except Exception as error:
            raise self._failure(step, error) from error

    def beside(self, step: int) -> Any:
        """What was saved beside the arrays of a valid step."""
        return read_json(self._manifest_path(step))["beside"]

    def restore(self, like: PyTree, which: str = "last", recipe: str | None = None) -> tuple[PyTree, int] | None:
        """The newest or, by `which`, "best" valid step -> (a tree like `like`, step); None if there is none.

        `like` holds arrays or ShapeDtypeStructs; a leaf goes where its `sharding` says, or to the default device.
        A damaged step is moved to quarantine with a warning, and the next one is tried. A valid step that does
        not fit `like`, or is of another identity, raises InputError, and stays. A `reader` reads the leaves of
        `like`, whatever else was saved; it knows no more of the identity than the digest of the `recipe`.
        """
        if which not in ("last", "best"):
            raise InputError(f"checkpoint {which!r} is unknown; known: last, best.")
        self.finish()
        found = self._first_valid(which) if jax.process_index() == 0 else -1
        step = int(multihost_utils.broadcast_one_to_all(np.int32(found)))
        if step < 0:
            return None
        # Saved from the host, so it comes back as numpy arrays, whatever the devices were then or are now.
        self._check_identity(step, self.identity or ({"recipe": recipe} if recipe else {}))
        expected = _named_leaves(like)
        saved_leaves = read_json(self._manifest_path(step))["leaves"]
        if problems := _misfits(saved_leaves, _descriptions(expected), self.reader):
            first = "; ".join(problems[:3]) + ("; and more" if len(problems) > 3 else "")
            raise InputError(f"checkpoint {step} in {self.directory} is of another model: {first}.")
        where = {name: getattr(leaf, "sharding", None) for name, leaf in expected.items()}
        saved = self._load(step, expected)
        placed = [jax.device_put(saved[name], sharding) for name, sharding in where.items()]
        return jax.tree.unflatten(jax.tree.structure(like), placed), step

    def _check_identity(self, step: int, identity: Mapping[str, str]) -> None:
        """Raises InputError where a step was saved by a run of another recipe or other data."""
        stored = read_json(self._manifest_path(step))["identity"] or {}
        if parts := [name for name in identity if stored.get(name) != identity[name]]:
            raise InputError(
                f"checkpoint {step} in {self.directory} was saved by a run with another {' and other '.join(parts)};"
                " name another folder, or remove this one"
            )

    def _load(self, step: int, expected: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The saved arrays of these names."""
        orbax = _orbax()
        context = orbax.Context()
        context.pytree.loading.partial_load = True
        like = {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in expected.items()}
        with context:
            return orbax.load(self.directory / str(step), like)

    def _open_checkpointer(self) -> Any:
        """A Checkpointer for one save: a used one reports its failed save again at each later call."""
        orbax = _orbax()
        # A directory that cannot be made fails at once; made in the background, it would hang the exit instead.
        at_once = orbax.options.AsyncOptions(create_directories_asynchronously=False)
        return orbax.training.Checkpointer(
            self.directory,
            context=orbax.Context(async_options=at_once),
            # Orbax would delete before the new step has its manifest; `_prune` waits for it.
            preservation_policy=orbax.training.preservation_policies.PreserveAll(),
            cleanup_tmp_directories=True,
        )

    def _complete(self, step: int, known: dict[str, Any], checkpointer: Any, response: Any) -> None:
        """Runs in the worker thread, so that the manifest follows the commit and does not wait for a call."""
        with checkpointer:
            response.result()
        if jax.process_index() == 0:
            files = _digests(self.directory / str(step))
            manifest = {"files": files, "identity": self.identity, **known}
            write_json(self._manifest_path(step), manifest | {"digest": digest_of_json(manifest)})
            self._prune(step)

    def _prune(self, newest: int) -> None:
        """Deletes all but the step just saved, the newest `keep` and the best: first the manifest, then the folder.

        So a kill leaves at most a folder without a manifest, which the next call deletes.
        """
        kept = {newest, *self.steps()[-self.keep :]}
        kept.update([step for step in self._candidates("best") if math.isfinite(self._score(step))][:1])
        for step in set(self._candidates("last")) - kept:
            self._manifest_path(step).unlink(missing_ok=True)
            shutil.rmtree(self.directory / str(step), ignore_errors=True)

    def _candidates(self, which: str) -> list[int]:
        """The steps to try, in this order: newest first, or best first among those with a score."""
        if which == "last":
            names = os.listdir(self.directory) if self.directory.exists() else []
            return sorted({int(name) for name in names if name.isdecimal()} | {*self.steps()}, reverse=True)
        ranked = sorted((-self._score(step), step) for step in self.steps())
        return [step for negative, step in ranked if negative < math.inf]

    def _score(self, step: int) -> float:
        """From the manifest; -inf if it has none; inf, so as to be tried first, if the manifest is damaged."""
        try:
            score = read_json(self._manifest_path(step))["score"]
            return -math.inf if score is None else float(score)
        except NOT_A_MANIFEST:
            return math.inf

    def _first_valid(self, which: str) -> int:
        """The first candidate that matches its manifest, or -1; those before it are moved to quarantine."""
        for step in self._candidates(which):
            if (damage := self._damage(step)) is None:
                return step
            if not self.reader:
                self._move_to_quarantine(step, damage)
            elif self._manifest_path(step).exists():  # without one, a run that still goes on may be saving it
                warnings.warn(f"checkpoint {step} in {self.directory} is not used: {damage}.", stacklevel=4)
        return -1

    def _damage(self, step: int) -> str | None:
        """What is wrong with a step, in words; None if its files are those of its manifest."""
        if not self._manifest_path(step).exists():
            return "it has no manifest, so its save was not completed"
        try:
            manifest = read_json(self._manifest_path(step))
            if manifest.pop("digest") != digest_of_json(manifest):
                return "its manifest is damaged"
            listed = manifest["files"]
            found = _digests(self.directory / str(step))
            wrong = sorted(name for name in listed | found if listed.get(name) != found.get(name))
        except NOT_A_MANIFEST:
            return "its manifest is damaged"
        except OSError as error:
            return f"it cannot be read ({error})"
        if not found:  # Also when the manifest lists no files.
            return "its folder is empty or missing"
        if not wrong:
            return None
        kinds = {(True, True): "altered", (True, False): "missing", (False, True): "not in its manifest"}
        kind = kinds[wrong[0] in listed, wrong[0] in found]
        return f"{wrong[0]} is {kind}" + (f", and {len(wrong) - 1} more differ" if wrong[1:] else "")

    def _move_to_quarantine(self, step: int, damage: str) -> None:
        name, count = str(step), 1
        while any((self._quarantine / taken).exists() for taken in (name, f"{name}.json")):
            count += 1
            name = f"{step}-{count}"
        try:
            self._quarantine.mkdir(parents=True, exist_ok=True)
            for source, target in (
                (self.directory / str(step), name),
                (self._manifest_path(step), f"{name}.json"),
            ):
                if source.exists():
                    os.replace(source, self._quarantine / target)
            outcome = f"it was moved to {self._quarantine / name}"
        except OSError as error:  # A reader without the right to write still gets the next step.
            outcome = f"it could not be moved to quarantine ({error})"
        sentence = f"checkpoint {step} in {self.directory} is not used: {damage}; {outcome}."
        warnings.warn(sentence, stacklevel=4)  # the caller of `restore`

    def _manifest_path(self, step: int) -> Path:
        return self._manifests / f"{step}.json"

    def _failure(self, step: int, error: Exception) -> InputError:
        cause = (str(error).splitlines() or [type(error).__name__])[0][:300]
        hint = "is the disk full, or the directory not writable?"
        return InputError(f"checkpoint {step} could not be saved in {self.directory}; {hint} ({cause})")


@functools.cache
def _orbax() -> ModuleType:
    """Orbax, imported on first use (0.33 s) and silenced: it logs, many times over, each failure that we raise."""
    from orbax.checkpoint import v1

    logging.getLogger("absl").addFilter(lambda record: f"{os.sep}orbax{os.sep}" not in record.pathname)
    return v1


def _named_leaves(tree: PyTree) -> dict[str, Any]:
    """{".params['head']['kernel']": leaf}: a plain dict, for which Orbax needs no registry."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _descriptions(leaves: Mapping[str, Any]) -> dict[str, str]:
    """{name: "float32[3, 2]"}."""
    return {name: f"{np.dtype(leaf.dtype)}{list(leaf.shape)}" for name, leaf in leaves.items()}


def _misfits(saved: Mapping[str, str], expected: Mapping[str, str], partial: bool) -> list[str]:
    """Where the descriptions of a saved tree differ from the expected ones, in words."""
    problems = [f"{name} is missing" for name in expected if name not in saved]
    problems += [f"{name} is not expected" for name in saved if name not in expected and not partial]
    for name in expected.keys() & saved.keys():
        if saved[name] != expected[name]:
            problems.append(f"{name} is {saved[name]}, expected {expected[name]}")
    return sorted(problems)


def _digests(folder: Path) -> dict[str, dict[str, str | int]]:
    """{relative name: {"sha256", "bytes"}} of every file below `folder`; empty if there is none."""
    digests: dict[str, dict[str, str | int]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        sha256, size = digest_of_file(path), path.stat().st_size
        digests[str(path.relative_to(folder))] = {"sha256": sha256, "bytes": size}
    return digests
