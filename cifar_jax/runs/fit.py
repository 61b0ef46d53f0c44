"""fit: the only way to train. It resolves the recipe, loads the data, keeps a workdir, and evaluates at the end."""

import contextlib
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import FrozenConfigDict

from cifar_jax import training
from cifar_jax.data import arrays
from cifar_jax.data.load import IMAGE_FOLDER, load_splits
from cifar_jax.errors import InputError
from cifar_jax.recipe import differences, resolve
from cifar_jax.runs import pretrained, programs, stream
from cifar_jax.runs.checkpoint import Checkpoints
from cifar_jax.runs.devices import Placement, compute_dtype
from cifar_jax.runs.evaluate import check_predicts, evaluate_and_predict
from cifar_jax.runs.events import Callback
from cifar_jax.runs.files import check_free
from cifar_jax.runs.fingerprint import data_digest, fingerprint
from cifar_jax.runs.functions import with_functions
from cifar_jax.runs.history import PartialEpoch
from cifar_jax.runs.identity import Identity, fixed_fields, with_later_fields
from cifar_jax.runs.log import MetricsFile, Progress
from cifar_jax.runs.loop import Executor, Job, Loop
from cifar_jax.runs.recipes import read_recipe
from cifar_jax.runs.teacher import load_teacher
from cifar_jax.runs.workdir import (
    EVALUATIONS,
    Run,
    Workdir,
    check_functions,
    damage_of,
    load_run,
    locked,
    read_evaluation,
    read_record,
)
from cifar_jax.training.losses import balanced_weights

FUNCTIONS = ("model", "optimizer", "schedule", "loss", "augment", "objective")


@dataclass(frozen=True)
class Request:
    """What the caller of `fit` asked for, checked and complete."""

    recipe: Any  # with the caller's functions, not resolved
    functions: dict[str, Any]
    fingerprints: dict[str, Any]
    workdir: Path | None
    data: dict[str, arrays.Split] | None  # None is loaded by name
    data_dir: str | Path | None
    context: Any
    evaluate: str | None
    executor: Executor
    resume: bool
    progress: bool


def fit(
    recipe: Any,
    workdir: str | Path | None = None,
    *,
    data_dir: str | Path | None = None,
    data: Mapping[str, Any] | None = None,
    model: Any = None,
    optimizer: Any = None,
    schedule: Any = None,
    loss: Any = None,
    augment: Any = None,
    objective: Any = None,
    context: Any = None,
    evaluate: str | None = "test",
    callbacks: Sequence[Callback] = (),
    stoppable: bool = False,
    executor: Executor | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Run:
    """Trains what the recipe says, evaluates it once at the end, and returns the run.

    A workdir keeps everything; the same call resumes a run that was interrupted, and returns one that is complete as it
    is. Without a workdir nothing is written.

    data: {"train", "validation", "test"} in place of the data set that the recipe names, each a `Split` (see
        `cj.dataset`) or (images uint8 [N, H, W, C], labels); a "validation" split takes the place of data.validation.
    model, optimizer, schedule, loss, augment, objective: functions, or Linen modules, in place of those that the recipe
        names. model(num_classes=, dtype=) or a module; optimizer(learning_rate) -> optax.GradientTransformation;
        schedule(epoch, epochs) -> factor; loss(logits, targets) -> float32 [B]; augment(key, images, targets) -> both;
        objective: a `training.Objective`. `context` holds the arrays that the objective gets.
    evaluate: the split that is evaluated at the end, "test" or "validation", or None.
    callbacks: each is called with an `Event` after each chunk of steps, and may return True to stop the run; with
        `stoppable` the next chunk waits for the answer. A stopped run is complete; `resume=True` continues it.
    executor: where and how chunks are computed; by default on all local devices, one after another.

    Raises InputError on a mistake in any of these, or where the loss is not finite.
    """
    given = {"model": model, "optimizer": optimizer, "schedule": schedule, "loss": loss, "augment": augment}
    functions = {name: value for name, value in {**given, "objective": objective}.items() if value is not None}
    checked = arrays.splits(data) if data is not None else None
    options = {"executor": executor or Executor(), "resume": resume, "progress": progress}
    request = _request(recipe, workdir, functions, checked, data_dir, context, evaluate, **options)
    run = complete_run(request)
    return run if run and _is_evaluated(request, run) else _train_and_evaluate(request, run, callbacks, stoppable)


def _request(
    recipe: Any,
    workdir: str | Path | None,
    functions: dict[str, Any],
    data: dict[str, arrays.Split] | None,
    data_dir: str | Path | None,
    context: Any,
    evaluate: str | None,
    **options: Any,
) -> Request:
    programs.check_processes()
    if evaluate not in (*EVALUATIONS, None):
        raise InputError(f"evaluate is {evaluate!r}; it is one of 'test', 'validation', None")
    fingerprints = {name: fingerprint(value) for name, value in functions.items()}
    path = Path(workdir) if workdir is not None else None
    if path:
        check_free(path, "run.json", "the run")
    recipe = with_functions(with_later_fields(recipe), functions)
    return Request(recipe, functions, fingerprints, path, data, data_dir, context, evaluate, **options)


def complete_run(request: Request) -> Run | None:
    """The run in the workdir if it is complete and the one that is asked for, whatever became of its data; else None.
    Raises InputError where a function or a split of the data is another one."""
    workdir = request.workdir
    record = read_record(workdir) if workdir else None
    if not (workdir and record and record["complete"]) or damage_of(workdir, record, "recipe.json"):
        return None
    if request.resume and record["reason"] == "stopped":
        return None
    stored = read_recipe(workdir / "recipe.json")
    facts = {f"data.{name}": stored.data[name] for name in ("num_classes", "image_shape", "train_count")}
    facts |= {"dtype": _dtype(request, stored)}
    facts |= {"data.validation": 0} if "validation" in record["data"] else {}
    facts |= {"data.name": request.data["train"].name} if request.data else {}
    facts |= {"teacher": stored.teacher} if "teacher" in stored else {}
    facts |= {"loss.class_weights": stored.loss.get("class_weights", ())} if _is_balanced(request.recipe) else {}
    if differences(fixed_fields(stored), fixed_fields(resolve(request.recipe, facts))):
        return None  # claiming the workdir will name them
    check_functions(workdir, record, request.fingerprints)
    known = {name: split.digest for name, split in (request.data or {}).items()}
    if any(record["data"].get(name, digest) != digest for name, digest in known.items()):
        return None
    if request.context is not None and data_digest(request.context) != record["context"]:
        return None
    _warn_of_changed_images(request, record["data"])
    return load_run(workdir, **request.functions)


def _warn_of_changed_images(request: Request, known: Mapping[str, str]) -> None:
    """Where the user's folder is no longer what a complete run was trained on. A folder that is gone tells nothing."""
    data = request.recipe.data
    if request.data is not None or data.name != IMAGE_FOLDER:
        return
    try:
        splits = load_splits(data, "test" in known, None, request.progress)
    except InputError:
        return
    if changed := [name for name, split in splits.items() if known.get(name, split.digest) != split.digest]:
        what = f"the {changed[0]} images in '{data.path}' have changed since the run in '{request.workdir}'"
        warnings.warn(f"{what}; to train on them, name another folder for the run", stacklevel=4)


def _is_evaluated(request: Request, run: Run) -> bool:
    """Whether a complete run has the evaluation that is asked for; it is then that of the run."""
    if request.evaluate is None:
        return True
    assert run.workdir is not None
    run.evaluation = read_evaluation(run.workdir, request.evaluate)
    return run.evaluation is not None


def check(
    recipe: Any,
    data: Mapping[str, Any],
    *,
    context: Any = None,
    evaluate: str | None,
    executor: Executor | None = None,
    **functions: Any,
) -> tuple[Any, Any]:
    """The resolved recipe and the context of the run that `fit` would train; arguments as there. Nothing is written.

    Raises InputError on whatever `fit` refuses before it starts.
    """
    given = {name: value for name, value in functions.items() if value is not None}
    options = {"executor": executor or Executor(), "resume": False, "progress": False}
    request = _request(recipe, None, given, arrays.splits(data), None, context, evaluate, **options)
    resolved, _, arrays_of_objective, _ = _checked(request)
    return resolved, arrays_of_objective


def _checked(request: Request) -> tuple[Any, dict[str, arrays.Split], Any, Callable[[Any], Any]]:
    """The resolved recipe, the data, the context on this machine, and what fills the first state."""
    data = request.data or _load(request)
    context, facts = load_teacher(request.recipe, request.context, data["train"].classes)
    recipe = _resolve(request, data, facts)
    placement = request.executor.placement
    placement.check("batch_size", recipe.batch_size)
    if share := recipe.selection.share:
        placement.check("batch_size times selection.share", round(recipe.batch_size * share))
    training.check(recipe, context)
    _warn_of_a_long_average(recipe)
    steps, limit = _part_steps(request, recipe), stream.part_limit(recipe, data, placement)
    recipe = resolve(recipe, {"part_steps": steps if limit is None else min(steps, limit)})
    if request.evaluate:
        check_predicts(recipe, request.evaluate)
    first_state = functools.partial(pretrained.first_state, recipe, request.functions)
    if not (request.workdir and list(request.workdir.glob("manifests/*.json"))):
        first_state(jax.eval_shape(lambda: training.init(recipe)))  # raises where init_from does not fit
    return recipe, data, context, first_state


def _train_and_evaluate(request: Request, run: Run | None, callbacks: Sequence[Callback], stoppable: bool) -> Run:
    """`run` is given where it is complete and only its evaluation is missing."""
    recipe, data, context, first_state = _checked(request)
    training_set, placement = data["train"], request.executor.placement
    digests = {name: split.digest for name, split in data.items()}
    context_digest = data_digest(context) if context is not None else None
    identity = Identity(recipe, request.fingerprints, digests, context_digest)
    with contextlib.ExitStack() as stack:
        workdir = None
        if request.workdir:
            stack.enter_context(locked(request.workdir))
            workdir = Workdir(request.workdir, identity, training_set.classes)
        if run is None:
            job = _place(recipe, data, placement, context)
            run = _train(request, job, first_state, workdir, digests, callbacks, stoppable)
        facts = {"complete": True, "reason": run.reason, "step": int(run.state.step)}
        if request.evaluate:
            run.evaluation, predictions = evaluate_and_predict(run, request.evaluate, data=data, placement=placement)
            if not np.isfinite(run.evaluation.loss):
                split, loss = request.evaluate, run.evaluation.loss
                raise InputError(f"the {split} loss is {loss}; lower optimizer.learning_rate and train anew")
            if workdir:
                workdir.write_evaluation(run.evaluation, predictions, **facts)
        elif workdir:
            workdir.update(**facts)
    return run


def _load(request: Request) -> dict[str, arrays.Split]:
    """The data set that the recipe names. The test split is read now, so that damage shows before the training, and
    evaluated once, after it; it is not touched where it is not asked for."""
    return load_splits(request.recipe.data, request.evaluate == "test", request.data_dir, request.progress)


def _dtype(request: Request, stored: Any) -> str:
    """recipe.dtype with "auto" resolved: as the run in the workdir was begun, or for this machine."""
    if request.recipe.dtype == "auto" and stored is not None:
        return stored.dtype
    return compute_dtype(request.recipe.dtype)


def _resolve(request: Request, data: Mapping[str, arrays.Split], facts: dict[str, Any]) -> FrozenConfigDict:
    """The recipe with the facts of the data set and of the machine."""
    recipe, training_set = request.recipe, data["train"]
    if request.evaluate is not None and request.evaluate not in data and request.evaluate == "test":
        raise InputError(f"data has no split 'test' to evaluate; it has {', '.join(map(repr, data))}")
    held_out = 0 if "validation" in data else recipe.data.validation
    if not 0 <= held_out < len(training_set.labels):
        arrays.hold_out(training_set.labels, held_out, recipe.data.seed)  # raises, in its words
    if recipe.early_stopping.patience and not held_out and "validation" not in data:
        raise InputError("early_stopping.patience needs a validation split; set data.validation to a number of images")
    if request.evaluate == "validation" and not held_out and "validation" not in data:
        raise InputError("evaluate='validation' needs a validation split; set data.validation to a number of images")
    facts |= {
        "dtype": _dtype(request, _stored_recipe(request)),
        "data.name": training_set.name if request.data else recipe.data.name,
        "data.validation": held_out,
        "data.num_classes": len(training_set.classes),
        "data.image_shape": tuple(training_set.images.shape[1:]),
        "data.train_count": len(training_set.labels) - held_out,
    }
    if _is_balanced(recipe):
        kept = arrays.hold_out(training_set.labels, held_out, recipe.data.seed)[0]
        facts["loss.class_weights"] = balanced_weights(training_set.labels[kept], len(training_set.classes))
    return resolve(recipe, facts)


def _warn_of_a_long_average(recipe: Any) -> None:
    """Where the initial weights are more than a tenth of the moving average at the end."""
    decay, steps = recipe.average.decay, recipe.epochs * training.steps_per_epoch(recipe)
    if decay and decay**steps > 0.1:
        share, better = f"{decay**steps:.0%} of the average are the initial weights", 0.01 ** (1 / steps)
        what = f"average.decay is {decay}, and the run has {steps} steps: in the end {share}"
        warnings.warn(f"{what}; take at most {better:.3g}", stacklevel=3)


def _is_balanced(recipe: Any) -> bool:
    weights = recipe.loss.get("class_weights", ())
    if isinstance(weights, str) and weights != "balanced":
        raise InputError(f"recipe field 'loss.class_weights' is '{weights}'; the only word that it takes is 'balanced'")
    return weights == "balanced"


def _stored_recipe(request: Request) -> Any:
    """The recipe of the run that the workdir holds; None where it holds none, or recipe.json is missing."""
    path = request.workdir / "recipe.json" if request.workdir else None
    return read_recipe(path) if path and path.exists() and read_record(path.parent) else None


def _part_steps(request: Request, recipe: Any) -> int:
    """The steps of a part: those that the run in the workdir began with, or by the cost of the recipe."""
    stored = _stored_recipe(request)
    if stored is not None and not request.recipe.part_steps:
        return stored.part_steps
    return programs.part_steps(recipe, training.steps_per_epoch(recipe))


def _place(recipe: Any, data: Mapping[str, arrays.Split], placement: Placement, context: Any) -> Job:
    """The arrays of a run on its devices."""
    training_set, own = data["train"], data.get("validation")
    held_out = (recipe.data.validation, recipe.data.seed)
    kept, held = arrays.hold_out(training_set.labels, *held_out)

    def put(split: arrays.Split, name: str, chosen: Any) -> programs.Arrays:
        make = lambda: (split.images[chosen], split.labels[chosen])
        return placement.put_once((split.digest, name, *held_out), make)

    validation_set = None
    if own or len(held):
        validation_set = put(own or training_set, "validation", slice(None) if own else held)
    train_set: programs.Arrays | stream.Streamed
    if first := stream.first_count(data, placement):
        train_set = stream.Streamed(training_set.images, training_set.labels, kept, first)
    else:
        train_set = put(training_set, "train", kept if len(held) else slice(None))
    return Job(recipe, training_set.classes, placement, train_set, validation_set, placement.put(context))


def _train(
    request: Request,
    job: Job,
    first_state: Callable[[Any], Any],
    workdir: Workdir | None,
    digests: dict[str, str],
    callbacks: Sequence[Callback],
    stoppable: bool,
) -> Run:
    """Restores what was saved and runs the loop."""
    recipe, bar = job.recipe, Progress(request.progress)
    state = job.placement.put(programs.first_state(recipe, job.first_images()))
    with contextlib.ExitStack() as stack:
        stack.callback(bar.close)
        loop = Loop(job, request.executor.launch, workdir, None, None, (*callbacks, bar), stoppable)
        restored = None
        if workdir:
            identity = workdir.digests()
            loop.checkpoints = stack.enter_context(Checkpoints(workdir.path / "checkpoints", identity=identity))
            restored = loop.checkpoints.restore(state)
            loop.log = MetricsFile(workdir.path / "metrics.jsonl")
            if restored and recipe.early_stopping.patience:
                loop.best = (loop.checkpoints.restore(state, "best") or (None,))[0]
        if restored and loop.checkpoints:
            state, loop.saved_step = restored
            loop.partial = PartialEpoch(loop.checkpoints.beside(loop.saved_step)["partial"])
        else:
            state = programs.copy()(job.placement.put(first_state(state)))
        step = int(state.step)
        if loop.log:
            loop.history = loop.log.truncate(step // job.steps)
        state = loop.run(state, step, bar.refresh)
        reason = "stopped" if loop.stopping else "finished"
        if reason == "finished" and loop.history[-1]["epoch"] < recipe.epochs:
            reason = "early stopping"
        return Run(recipe, state, job.classes, loop.history, request.workdir, None, digests, reason)
