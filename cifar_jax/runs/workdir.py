"""A run as it lies on disk, and `Run`, what is known of a trained model.

run.json           what the run is: format, whether and why it is complete, its last step, digests of its recipe, its
                   functions, its data, and of the files below; later commands update it, foreign files are ignored
recipe.json        the resolved recipe; `--config=<workdir>/recipe.json` repeats the run
environment.json   versions, devices, classes
metrics.jsonl      a line an epoch: see `log`
checkpoints/       with manifests/ and quarantine/: see `checkpoint`
evaluation.json    the test split; evaluation_validation.json: the validation split
predictions.npz    labels and probabilities of the test split; predictions_validation.npz: of the validation split
"""

import contextlib
import dataclasses
import fcntl
import functools
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import FrozenConfigDict

from cifar_jax import training
from cifar_jax.errors import InputError
from cifar_jax.recipe import differences, to_json
from cifar_jax.runs.archive import is_archive, read_archive
from cifar_jax.runs.checkpoint import Checkpoints
from cifar_jax.runs.classifier import Classifier
from cifar_jax.runs.environment import environment
from cifar_jax.runs.files import (
    digest_of_file,
    read_json,
    unsealed,
    write_arrays,
    write_json,
    write_sealed,
)
from cifar_jax.runs.fingerprint import differences as function_differences
from cifar_jax.runs.functions import with_known_functions
from cifar_jax.runs.identity import Identity, fixed_fields
from cifar_jax.runs.log import read_metrics
from cifar_jax.runs.recipes import read_recipe
from cifar_jax.runs.thresholds import Threshold
from cifar_jax.training.metrics import Evaluation, SplitPredictions

FORMAT = 1
CHOSEN = ("temperature", "thresholds")  # on the validation split, see `calibrate`
EVALUATIONS = {"test": "evaluation.json", "validation": "evaluation_validation.json"}
PREDICTIONS = {"test": "predictions.npz", "validation": "predictions_validation.npz"}


@dataclasses.dataclass(repr=False)
class Run:
    """A trained model with its recipe and history."""

    recipe: Any  # FrozenConfigDict, resolved
    state: training.TrainState
    classes: tuple[str, ...]
    history: list[dict[str, Any]]  # the lines of metrics.jsonl
    workdir: Path | None
    evaluation: Evaluation | None  # of the test split, or of the validation split where that was asked for
    digests: dict[str, str]  # of each split of the data that the run has seen
    reason: str | None = None  # why it is complete: "finished", "early stopping" or "stopped"; None if it is not
    temperature: float = 1.0  # of the probabilities, see `calibrate`
    thresholds: dict[str, Threshold] = dataclasses.field(default_factory=dict)  # of classes, see `choose_threshold`

    @functools.cached_property
    def classifier(self) -> Classifier:
        weights, values = training.evaluated_weights(self.state), _values(self.thresholds)
        return Classifier(self.recipe, weights, self.classes, self.temperature, values)

    def use(self, temperature: float, thresholds: dict[str, Threshold]) -> None:
        """The classifier has them from now on; run.json is not written."""
        self.temperature, self.thresholds = temperature, thresholds
        self.__dict__.pop("classifier", None)

    def logits(self, images: np.ndarray, views: str | None = None) -> np.ndarray:
        """As `Classifier.logits`."""
        return self.classifier.logits(images, views)

    def __repr__(self) -> str:
        last = self.history[-1] if self.history else {}
        where = f"in {self.workdir}" if self.workdir else "without a workdir"
        losses = [f"{name} {last[name]:.4f}" for name in ("train_loss", "validation_accuracy") if last.get(name)]
        seen = self.evaluation
        return (
            f"Run of {self.recipe.model.name} on {self.recipe.data.name}, {where}\n"
            f"  {self.reason or 'not complete'} after epoch {last.get('epoch', 0)} of {self.recipe.epochs}"
            f"{', ' if losses else ''}{', '.join(losses)}\n"
            f"  {f'{seen.split} accuracy {seen.accuracy:.2%} ({seen.count} images)' if seen else 'not evaluated'}"
        )


def read_record(workdir: Path) -> dict[str, Any] | None:
    """run.json; None where the folder holds no run. Raises InputError where it is damaged or of another format."""
    path = workdir / "run.json"
    if not path.exists():
        if (workdir / "recipe.json").exists() and (workdir / "environment.json").exists():
            _refuse_format(workdir, 0)
        return None
    stored = read_json(path)
    if isinstance(stored, dict) and stored.get("format", FORMAT) != FORMAT:
        _refuse_format(workdir, stored["format"])
    record = unsealed(stored)
    if record is None:
        raise InputError(f"{path} is damaged; restore it, or train in another folder")
    return record


def _refuse_format(workdir: Path, found: Any) -> None:
    raise InputError(
        f"'{workdir}' holds a run of format {found}, and this version reads format {FORMAT}; train it in another folder"
    )


class Workdir:
    """The folder of a run that this process writes; use it inside `locked`."""

    def __init__(self, path: Path, identity: Identity, classes: tuple[str, ...]) -> None:
        """Claims the folder, or raises InputError where it holds another run; restores files that can be rebuilt."""
        self.path, self.identity = path, identity
        stored = read_record(path)
        self.record = stored or {"format": FORMAT, "files": {}, "metrics": {"bytes": 0, "sha256": None}, "data": {}}
        if stored:
            check_identity(path, stored, identity)
        total = training.steps_per_epoch(identity.recipe) * identity.recipe.epochs
        self.record |= {"complete": False, "reason": None, "step": self.record.get("step", 0), "total_steps": total}
        # An older version may have digested the recipe with other fields: checkpoints have the digest of the start.
        own = stored["recipe"] if stored else identity.digests()["recipe"]
        self.record |= {"recipe": own, "functions": identity.functions}
        self.record |= {"context": identity.context, "data": self.record["data"] | identity.data}
        self.record["classes"] = list(classes)
        if not (stored and self._whole("environment.json")):
            self.write("environment.json", {**environment(), "classes": classes})
        if not (stored and self._whole("recipe.json")):
            self.write("recipe.json", to_json(identity.recipe))

    def digests(self) -> dict[str, str]:
        """Those of its checkpoints."""
        return self.identity.digests() | {"recipe": self.record["recipe"]}

    def _whole(self, name: str) -> bool:
        damage = damage_of(self.path, self.record, name)
        if damage:
            warnings.warn(f"{self.path / name} {damage}; it is written again", stacklevel=4)
        return damage is None

    def write(self, name: str, value: Any, **facts: Any) -> None:
        """Writes a file and then its digest, with other facts of run.json."""
        write_json(self.path / name, value)
        self.record["files"][name] = digest_of_file(self.path / name)
        self.update(**facts)

    def write_evaluation(self, evaluation: Evaluation, predictions: SplitPredictions, **facts: Any) -> None:
        """Writes both files of a split; `facts` are true once both are there."""
        name = PREDICTIONS[evaluation.split]
        write_arrays(self.path / name, predictions.arrays())
        self.record["files"][name] = digest_of_file(self.path / name)
        self.write(EVALUATIONS[evaluation.split], evaluation.to_json(), **facts)

    def update(self, **facts: Any) -> None:
        self.record |= facts
        write_sealed(self.path / "run.json", self.record)

    def saved(self, step: int) -> None:
        """Before a checkpoint of `step` is saved: the digest of metrics.jsonl up to here.

        What was chosen and evaluated at an earlier step is of other weights, and is dropped.
        """
        if step > self.record["step"]:
            if self.record.keys() & set(CHOSEN):
                what = "the temperature and the thresholds were chosen at an earlier step, and are dropped"
                warnings.warn(f"{what}; calibrate the run again at its end", stacklevel=2)
            stale = {*EVALUATIONS.values(), *PREDICTIONS.values()}
            files = {name: digest for name, digest in self.record["files"].items() if name not in stale}
            self.record = {name: fact for name, fact in self.record.items() if name not in CHOSEN} | {"files": files}
        self.update(step=step, metrics=_metrics_digest(self.path / "metrics.jsonl"))


def _metrics_digest(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"bytes": 0, "sha256": None}
    size = path.stat().st_size
    return {"bytes": size, "sha256": digest_of_file(path, size)}


def check_identity(workdir: Path, record: dict[str, Any], identity: Identity) -> None:
    """Raises InputError, naming what differs, where the run in the folder is another one."""
    refuse = lambda what: InputError(f"workdir '{workdir}' holds a run of {what}; name another folder")
    if damage_of(workdir, record, "recipe.json") is None:
        old, new = fixed_fields(read_recipe(workdir / "recipe.json")), fixed_fields(identity.recipe)
        if changed := differences(old, new):
            raise refuse(f"another recipe ({'; '.join(changed)})")
    elif record["recipe"] != identity.digests()["recipe"]:
        raise refuse("another recipe, or of an older version, and its recipe.json is missing or damaged")
    check_functions(workdir, record, identity.functions)
    if record["context"] != identity.context:
        raise refuse("another context of the objective")
    for split, digest in identity.data.items():
        if (stored := record["data"].get(split, digest)) != digest:
            raise InputError(
                f"workdir '{workdir}' holds a run on data whose split '{split}' has digest {stored}; the data set now"
                f" has {digest}"
            )


def check_functions(workdir: Path, record: dict[str, Any], functions: Mapping[str, Any]) -> None:
    """Raises InputError where a function that the caller passed is another one, or cannot be compared."""
    for section in sorted(record["functions"].keys() | functions.keys()):
        old, new = record["functions"].get(section), functions.get(section)
        if old is None or new is None:
            given = "was given" if new is None else "was not given"
            raise InputError(f"workdir '{workdir}' holds a run for which {section}=... {given}; name another folder")
        for each in (old, new):
            if each["digest"] is None:
                raise InputError(
                    f"the run in '{workdir}' cannot be resumed: {section} '{each['name']}' cannot be compared with the"
                    f" one that it began with ({each['reason']}); name another folder"
                )
        if old["digest"] != new["digest"]:
            changed = "; ".join(function_differences({section: old}, {section: new}))
            raise InputError(f"workdir '{workdir}' holds a run of another {section} ({changed}); name another folder")


def damage_of(workdir: Path, record: dict[str, Any], name: str) -> str | None:
    """What is wrong with a file of the run, in words; None if it is as it was written."""
    if name not in record["files"]:
        return "was never written"
    if not (workdir / name).exists():
        return "is missing"
    return None if digest_of_file(workdir / name) == record["files"][name] else "is damaged, or was changed"


def load_run(workdir: str | Path, which: str | None = None, **functions: Any) -> Run:
    """The run in `workdir`, at its "last" or "best" checkpoint (by default the best where it could stop early).

    `functions` are those that `fit` was given, model=..., optimizer=..., loss=...: they stand in where the recipe names
    what is no part of cifar_jax. Raises InputError where there is no run, or none of its checkpoints is whole.
    """
    workdir = Path(workdir)
    record, recipe = _stored(workdir, functions)
    like = jax.eval_shape(lambda: training.init(recipe))
    if record.get("light"):
        like = without_optimizer(like)
    state = _restore(workdir, recipe, record, like, which)
    return Run(
        recipe=recipe,
        state=state,
        classes=read_classes(workdir, record),
        history=_history(workdir, record),
        workdir=workdir,
        evaluation=read_evaluation(workdir, "test") or read_evaluation(workdir, "validation"),
        digests=record["data"],
        reason=record["reason"],
        temperature=record.get("temperature", 1.0),
        thresholds=_thresholds(record),
    )


def _thresholds(record: Mapping[str, Any]) -> dict[str, Threshold]:
    return {name: Threshold.from_json(stored) for name, stored in record.get("thresholds", {}).items()}


def _values(thresholds: Mapping[str, Threshold]) -> dict[str, float]:
    return {name: threshold.value for name, threshold in thresholds.items()}


def without_optimizer(state: Any) -> Any:
    """The state without what only training needs."""
    return state.replace(opt_state=None, proxy=None)


def load_classifier(workdir: str | Path, which: str | None = None, **functions: Any) -> Classifier:
    """The trained model in `workdir`, without the optimiser's state; arguments as for `load_run`.

    The folder of an archive, which `export` writes, is read as well. It holds one set of weights: `which` is refused.
    """
    workdir = Path(workdir)
    if is_archive(workdir):
        return read_archive(workdir, which, functions)
    record, recipe = _stored(workdir, functions)
    like = jax.eval_shape(lambda: training.init(recipe))
    like = without_optimizer(like).replace(step=None)
    like = like.replace(params=None, batch_stats=None) if like.average else like.replace(average=None)
    state = _restore(workdir, recipe, record, like, which)
    weights = training.evaluated_weights(state)
    temperature, thresholds = record.get("temperature", 1.0), _values(_thresholds(record))
    return Classifier(recipe, weights, read_classes(workdir, record), temperature, thresholds)


def _stored(workdir: Path, functions: Mapping[str, Any]) -> tuple[dict[str, Any], FrozenConfigDict]:
    """run.json and the recipe, with the caller's functions in it."""
    record = read_record(workdir)
    if record is None:
        if (workdir / "study.json").exists():
            raise InputError(f"'{workdir}' is a study; name the workdir of one of its runs, {workdir}/runs/ARM/seedN")
        if below := sorted(path.parent for path in workdir.glob("*/run.json")):
            raise InputError(f"'{workdir}' holds no run itself; name one of the {len(below)} in it, such as {below[0]}")
        fault = "holds no run (no run.json)" if workdir.exists() else "does not exist"
        raise InputError(f"'{workdir}' {fault}; train one with --workdir={workdir}")
    if damage := damage_of(workdir, record, "recipe.json"):
        raise InputError(f"{workdir / 'recipe.json'} {damage}; the command that trained the run writes it again")
    stored = read_recipe(workdir / "recipe.json")
    return record, with_known_functions(stored, record["functions"], functions, f"the run in '{workdir}'")


def _restore(workdir: Path, recipe: Any, record: dict[str, Any], like: Any, which: str | None) -> Any:
    with Checkpoints(workdir / "checkpoints", reader=True) as checkpoints:
        which = which or ("best" if recipe.early_stopping.patience else "last")
        restored = checkpoints.restore(like, which, recipe=record["recipe"])
    if restored is None:
        raise InputError(f"the run in '{workdir}' has no whole checkpoint yet; train it with --workdir={workdir}")
    if not record["complete"]:
        at = f"step {restored[1]} of {record['total_steps']}"
        warnings.warn(f"the run in '{workdir}' is not finished; its checkpoint is used ({at})", stacklevel=3)
    return restored[0]


def _history(workdir: Path, record: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, with a warning where those up to the last checkpoint are not as they were written."""
    path, known = workdir / "metrics.jsonl", record["metrics"]
    if known["sha256"] and (not path.exists() or digest_of_file(path, known["bytes"]) != known["sha256"]):
        warnings.warn(f"{path} is damaged, or was changed; the lines that can be read are used", stacklevel=3)
    return read_metrics(path)


def read_classes(workdir: Path, record: dict[str, Any]) -> tuple[str, ...]:
    if damage := damage_of(workdir, record, "environment.json"):
        warnings.warn(f"{workdir / 'environment.json'} {damage}", stacklevel=3)
    return tuple(record["classes"])


def read_evaluation(workdir: Path, split: str) -> Evaluation | None:
    """The stored evaluation of a split; None where there is none, or, with a warning, where the file is damaged."""
    path = _stored_file(workdir, EVALUATIONS[split])
    return Evaluation.from_json(read_json(path)) if path else None


def read_predictions(workdir: Path, split: str) -> SplitPredictions | None:
    """The stored predictions of a split; None where there are none, or, with a warning, where the file is damaged."""
    path = _stored_file(workdir, PREDICTIONS[split])
    if path is None:
        return None
    with np.load(path, allow_pickle=False) as arrays:
        return SplitPredictions(**{key: arrays[key] for key in arrays.files})


def _stored_file(workdir: Path, name: str) -> Path | None:
    """A file of the run that is as it was written; None where there is none, or with a warning where it is damaged."""
    record = read_record(workdir)
    if record is None or name not in record["files"]:
        return None
    if damage := damage_of(workdir, record, name):
        warnings.warn(f"{workdir / name} {damage}; train again to write it anew", stacklevel=3)
        return None
    return workdir / name


def update_record(workdir: Path, **facts: Any) -> None:
    """Adds facts to run.json of a run that exists; use it inside `locked`."""
    write_sealed(workdir / "run.json", (read_record(workdir) or {}) | facts)


class LockedError(InputError):
    """Another process holds the lock of a folder."""


def open_lock(folder: Path, name: str) -> Any:
    """The file of a lock, in a folder that is made. Raises InputError where that cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / name).open("w")
    except OSError as error:
        raise InputError(f"folder '{folder}' cannot be written ({error.strerror}); name another folder") from error


@contextlib.contextmanager
def locked(workdir: Path, name: str = ".lock") -> Iterator[None]:
    """Makes the workdir and keeps other processes out of it; a killed process leaves no lock behind. `name` is that of
    the lock: a folder may have several.

    Raises LockedError where another process is in it.
    """
    with open_lock(workdir, name) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            what = f"folder '{workdir}' is in use by another process; wait for it or name another"
            raise LockedError(what) from error
        yield
