"""fit: the only training loop. It feeds the pure functions of `train` and `evaluation`, and keeps a workdir."""

import contextlib
import functools
import importlib.util
import itertools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cifar_jax.data import arrays as datalib
from cifar_jax.runs import pretrained
from cifar_jax.training import evaluation, step as train
from cifar_jax.training.check import check
from cifar_jax.runs.checkpoint import Checkpoints, write_json
from cifar_jax.runs.devices import Placement, compute_dtype, jit
from cifar_jax.runs.log import MetricsFile, Progress, wait
from cifar_jax.training.metrics import Evaluation, summarise
from cifar_jax.errors import InputError
from cifar_jax.recipe import freeze, override
from cifar_jax.runs.workdir import Run, claim, completed, locked, read_recipe, with_functions

# Numbers that enter the compiled program as arguments, so that runs that differ in nothing else share one program.
NUMBERS = ("seed", "optimizer.learning_rate")


def load_recipe(path: str | Path, changes: Mapping[str, Any] | None = None) -> ConfigDict:
    """The recipe of a file, `configs/cnn.py` or a run's `recipe.json`, over `configs/base.py`, with `changes`.

    Raises InputError where the file is missing or a field is unknown.
    """
    file = _recipe_file(Path(path))
    chosen = read_recipe(file) if file.suffix == ".json" else _get_config(file)
    return override(override(_get_config(_shipped() / "base.py"), chosen), changes or {})


def _shipped() -> Path:
    """The folder of the recipes that come with the package: beside it in a checkout, in it where it is installed."""
    package = Path(__file__).parent.parent
    beside = package.parent / "configs"
    return beside if beside.is_dir() else package / "configs"


def _recipe_file(path: Path) -> Path:
    """The file itself, or the one of that name among the recipes that come with the package."""
    for candidate in (path, _shipped().parent / path):
        if candidate.is_file():
            return candidate
    known = ", ".join(sorted(f"configs/{file.name}" for file in _shipped().glob("*.py") if file.stem != "base"))
    raise InputError(f"recipe '{path}' is not a file; known recipes: {known}")


def _get_config(file: Path) -> ConfigDict:
    spec = importlib.util.spec_from_file_location(f"recipe_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise InputError(f"recipe '{file}' is neither a .py nor a .json file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise InputError(f"recipe '{file}' cannot be read: {error}") from error
    if not hasattr(module, "get_config"):
        raise InputError(f"recipe '{file}' defines no get_config(); see configs/cnn.py for the form")
    return module.get_config()


def fit(
    recipe: Any,
    workdir: str | Path | None = None,
    *,
    data_dir: str | Path | None = None,
    data: Mapping[str, datalib.Split] | None = None,
    model: Any = None,
    optimizer: Any = None,
    schedule: Any = None,
    loss: Any = None,
    augment: Any = None,
    progress: bool = True,
) -> Run:
    """Trains what the recipe says, evaluates it once on the test split, and returns the run.

    With a `workdir` the run is kept there: called again it resumes where it stopped, bit for bit on the CPU, and a
    complete run is returned as it is. `data` holds the splits "train" and "test" in place of the recipe's data set. A
    function, or a Linen module, may stand in for what the recipe names:
        model(num_classes, dtype) -> module        optimizer(learning_rate) -> optax.GradientTransformation
        schedule(epoch, epochs) -> factor          loss(logits, targets) -> [B]
        augment(key, images, targets) -> (images, targets)

    Raises InputError, before anything is written, on a recipe, data or workdir that cannot serve.
    """
    functions = {"model": model, "optimizer": optimizer, "schedule": schedule, "loss": loss, "augment": augment}
    recipe = with_functions(recipe, functions)
    workdir = Path(workdir) if workdir is not None else None
    if workdir and (complete := completed(workdir, recipe, functions)):
        return complete
    # The test split is looked at now, so that damage shows before the training, and evaluated once, after it.
    splits = data or {split: datalib.load(recipe.data.name, split, data_dir, progress) for split in ("train", "test")}
    training = _training_set(splits)
    recipe = freeze(_resolve(recipe, training))
    placement = Placement()
    placement.check("batch_size", recipe.batch_size)
    if share := recipe.selection.share:
        placement.check("batch_size times selection.share", round(recipe.batch_size * share))
    check(recipe)
    first_state = functools.partial(pretrained.first_state, recipe, functions)
    if not (workdir and list(workdir.glob("manifests/*.json"))):
        first_state(jax.eval_shape(lambda: train.init(recipe)))  # raises where init_from does not fit
    with contextlib.ExitStack() as stack:
        if workdir:
            stack.enter_context(locked(workdir))
            claim(workdir, recipe, training.digest, training.classes)
        run = _train(recipe, training, placement, first_state, workdir, progress)
        run.evaluation = evaluate(run, "test", data=splits)
        if not np.isfinite(run.evaluation.loss):
            raise InputError(f"the test loss is {run.evaluation.loss}; lower optimizer.learning_rate and train anew")
        if workdir:
            write_json(workdir / "evaluation.json", run.evaluation.to_json())
    return run


def evaluate(
    run: Run,
    split: str = "test",
    *,
    views: str | None = None,
    data_dir: str | Path | None = None,
    data: Mapping[str, datalib.Split] | None = None,
    progress: bool = True,
) -> Evaluation:
    """The run's model on "test", "validation" (what its training held out) or "train" (what it was trained on)."""
    recipe, source = run.recipe, "test" if split == "test" else "train"
    if split not in ("test", "validation", "train"):
        raise InputError(f"split '{split}' is unknown; it is one of test, validation, train")
    images = data[source] if data else datalib.load(recipe.data.name, source, data_dir, progress)
    if images.classes != run.classes:
        raise InputError(f"data set '{recipe.data.name}' has classes {images.classes}; the run knows {run.classes}")
    chosen: Any = slice(None)
    if split != "test":
        if images.digest != run.digest:
            known = f"the run was trained on data with digest {run.digest}"
            raise InputError(f"{known}; the data set now has {images.digest}")
        chosen = datalib.hold_out(images.labels, recipe.data.validation, recipe.data.seed)[split == "validation"]
        if not len(chosen):
            raise InputError("this run held out no images (data.validation=0), so it has no split 'validation'")
    placement = Placement()
    run.state = placement.put(run.state)
    arrays = placement.put((images.images[chosen], images.labels[chosen]))
    sums = run.sums(arrays[0], arrays[1], views or recipe.evaluation.views, placement.batch)
    wait(sums)
    return summarise(jax.device_get(sums), run.classes, split)


def _training_set(splits: Mapping[str, datalib.Split]) -> datalib.Split:
    """The split "train", once "test" is known to go with it."""
    for name in ("train", "test"):
        if name not in splits:
            raise InputError(f"data needs the splits 'train' and 'test'; it has {', '.join(map(repr, splits))}")
    training, test = splits["train"], splits["test"]
    if training.classes != test.classes or training.images.shape[1:] != test.images.shape[1:]:
        raise InputError(
            f"the splits do not go together: train has {len(training.classes)} classes and images of"
            f" {training.images.shape[1:]}, test {len(test.classes)} and {test.images.shape[1:]}"
        )
    return training


def _resolve(recipe: ConfigDict, training: datalib.Split) -> ConfigDict:
    """The recipe with the fields that the data set and the machine decide."""
    if not 0 <= recipe.data.validation < len(training.labels):
        datalib.hold_out(training.labels, recipe.data.validation, recipe.data.seed)  # raises, in its words
    return override(
        recipe,
        {
            "dtype": compute_dtype(recipe.dtype),
            "data.num_classes": len(training.classes),
            "data.image_shape": tuple(training.images.shape[1:]),
            "data.train_count": len(training.labels) - recipe.data.validation,
        },
    )


def _first(recipe: Any, numbers: Any, images: Any) -> train.TrainState:
    """The state before the first step on the training images."""
    recipe = override(recipe, numbers)
    return train.prepare(recipe, train.init(recipe), images)


Phases = tuple[tuple[int, train.Phase], ...]


def _phases(recipe: Any, start: int, end: int) -> Phases:
    """The epochs start..end in runs of (so many, what holds in them)."""
    runs = itertools.groupby(range(start, end), functools.partial(train.phase_of, recipe))
    return tuple((len(list(epochs)), phase) for phase, epochs in runs)


def _chunk(
    recipe: Any, phases: Phases, placement: Any, numbers: Any, state: Any, train_set: Any, validation_set: Any
) -> Any:
    """The epochs of `phases` as one program -> (state, sums [epochs, ...], whether a batch of logits is finite)."""
    recipe = override(recipe, numbers)

    def epoch(phase, state, _):
        state, sums = train.train_epoch(recipe, state, train_set[0], train_set[1], placement, phase)
        if validation_set is not None:
            seen = evaluation.sums(recipe, state, validation_set[0], validation_set[1], "one", placement)
            sums["validation_loss_sum"] = seen["loss_sum"]
            sums["validation_correct"] = jnp.trace(seen["confusion"])
        return state, sums

    parts = []
    for epochs, phase in phases:
        state, part = jax.lax.scan(functools.partial(epoch, phase), state, length=epochs)
        parts.append(part)
    sums = jax.tree.map(lambda *part: jnp.concatenate(part), *parts)
    # A step may spoil the weights after its own loss was taken, so they are tried before they may be saved.
    probe = (train_set if validation_set is None else validation_set)[0][: recipe.batch_size]
    finite = jnp.isfinite(evaluation.logits(recipe, state, probe)).all()
    return state, sums, finite


def whole_run(recipe: Any, seed: Any, train_set: Any, test_set: Any) -> tuple[Any, Any, Any]:
    """A run as one program, with no host in between: what a speedrun compiles, with `devices.jit`.

    Each set is images uint8 [N, H, W, C] and labels int32 [N] on the device; `seed` may be a tracer; nothing held out.
    Returns the state, train_epoch's sums [epochs, steps], and evaluation.sums of the test set over the recipe's views.
    """
    state = _first(recipe, {"seed": seed}, train_set[0])
    state, sums, _ = _chunk(recipe, _phases(recipe, 0, recipe.epochs), None, {"seed": seed}, state, train_set, None)
    images, labels = test_set
    return state, sums, evaluation.sums(recipe, state, images, labels, recipe.evaluation.views)


def _train(
    recipe: Any,
    training: datalib.Split,
    placement: Placement,
    first_state: Callable[[Any], Any],
    workdir: Path | None,
    progress: bool,
) -> Run:
    """The loop over chunks. The next chunk runs while the host reads, checks, logs and saves the last one."""
    steps = train.steps_per_epoch(recipe)
    kept, held = datalib.hold_out(training.labels, recipe.data.validation, recipe.data.seed)
    put = lambda chosen: placement.put((training.images[chosen], training.labels[chosen]))
    train_set = put(kept if len(held) else slice(None))
    validation_set = put(held) if len(held) else None
    numbers = {field: jnp.asarray(_field(recipe, field)) for field in NUMBERS}
    state = placement.put(jit(functools.partial(_first, recipe))(numbers, train_set[0]))
    history: list[dict[str, Any]] = []
    best: Any = None  # the state with the best score, where early stopping may return to it
    log = MetricsFile(workdir / "metrics.jsonl") if workdir else None
    checkpoints = Checkpoints(workdir / "checkpoints") if workdir else None
    restored = checkpoints.restore(state) if checkpoints else None
    # Copied, because weights that stand in the state twice, as an average or an optimiser's start, cannot be donated.
    keep = jit(lambda state: jax.tree.map(jnp.copy, state))
    state = restored[0] if restored else keep(placement.put(first_state(state)))
    if log:
        history = log.truncate(int(state.step) // steps)
    if checkpoints and recipe.early_stopping.patience:
        best = (checkpoints.restore(state, "best") or (None,))[0]

    programs: dict[Phases, Any] = {}

    def launch(state: Any, epoch: int) -> tuple[int, Any, Any]:
        """Starts the chunk after `epoch`: chunks end at multiples of chunk_epochs, resumed or not."""
        end = min(recipe.epochs, (epoch // recipe.chunk_epochs + 1) * recipe.chunk_epochs)
        arguments = (numbers, state, train_set, validation_set)
        phases = _phases(recipe, epoch, end)
        if phases not in programs:
            program = jit(functools.partial(_chunk, recipe, phases, placement.batch), donate_argnums=1)
            programs[phases] = program.lower(*arguments).compile()
        state, sums, finite = programs[phases](*arguments)
        return end, state, (sums, finite)

    epoch, bar = int(state.step) // steps, Progress(recipe.epochs, int(state.step) // steps, progress)
    patient = bool(recipe.early_stopping.patience)
    with contextlib.ExitStack() as stack:
        stack.callback(bar.close)
        if checkpoints:
            stack.enter_context(checkpoints)
        running = None if _ended(recipe, history, epoch) else launch(state, epoch)
        clock = time.perf_counter()
        while running:
            end, state, results = running
            # Donation gives the state's buffers to the next chunk: what is to be saved is copied first.
            wanted = patient or (checkpoints and (_due(recipe, epoch, end)))
            snapshot = keep(state) if wanted else None
            # Whether to go on is known only from the results, where the run may stop early.
            running = launch(state, end) if end < recipe.epochs and not patient else None
            bar.wait(results)
            seconds, clock = time.perf_counter() - clock, time.perf_counter()
            sums, finite = jax.device_get(results)
            lines = _lines(recipe, sums, epoch, seconds)
            _check_finite(recipe, sums, finite, epoch)
            score = _score(recipe, lines[-1])
            improved = score is not None and _best(recipe, history + lines) == end
            history += lines
            if log:
                log.append(lines)
            if checkpoints and (_due(recipe, epoch, end) or (patient and improved) or _ended(recipe, history, end)):
                checkpoints.save(end * steps, snapshot, score)
            if patient:
                best = snapshot if improved else best
                running = None if _ended(recipe, history, end) else launch(state, end)
            bar.update(lines)
            epoch = end
    return Run(recipe, state if best is None else best, training.classes, history, workdir, None, training.digest)


def _field(recipe: Any, path: str) -> Any:
    return functools.reduce(lambda section, name: section[name], path.split("."), recipe)


def _due(recipe: Any, start: int, end: int) -> bool:
    """Whether a checkpoint belongs after the chunk of epochs start..end."""
    every = recipe.checkpoint.every_epochs
    return end // every > start // every or end == recipe.epochs


def _score(recipe: Any, line: dict[str, Any]) -> float | None:
    """What early stopping and the best checkpoint compare, larger is better; None without a validation split."""
    value = line[recipe.early_stopping.metric]
    return value if value is None or recipe.early_stopping.metric == "validation_accuracy" else -value


def _best(recipe: Any, history: list[dict[str, Any]]) -> int:
    """The first epoch with the highest score, among those that end a chunk: only there is a state to return to."""
    ends = [line for line in history if line["epoch"] % recipe.chunk_epochs == 0 or line["epoch"] == recipe.epochs]
    return max(ends, key=lambda line: (_score(recipe, line), -line["epoch"]), default={"epoch": 0})["epoch"]


def _ended(recipe: Any, history: list[dict[str, Any]], epoch: int) -> bool:
    """Whether all epochs are done, or the validation metric has not improved for `patience` of them."""
    patience = recipe.early_stopping.patience
    return epoch >= recipe.epochs or bool(patience and epoch and epoch - _best(recipe, history) >= patience)


def _lines(recipe: Any, sums: dict[str, np.ndarray], start: int, seconds: float) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl for a chunk that began after epoch `start`; `seconds` is shared among its epochs."""
    epochs, steps = sums["loss_sum"].shape
    lines = []
    for index in range(epochs):
        count = int(sums["count"][index].sum())
        validation = {"validation_loss": None, "validation_accuracy": None}
        if "validation_correct" in sums:
            validation = {
                "validation_loss": float(sums["validation_loss_sum"][index]) / recipe.data.validation,
                "validation_accuracy": int(sums["validation_correct"][index]) / recipe.data.validation,
            }
        lines.append(
            {
                "epoch": start + index + 1,
                "step": (start + index + 1) * steps,
                "train_loss": float(sums["loss_sum"][index].sum(dtype=np.float64)) / count,
                "train_accuracy": int(sums["correct"][index].sum()) / count,
                **validation,
                "learning_rate": float(sums["learning_rate"][index, -1]),
                "seconds": round(seconds / epochs, 3),
                "images_per_second": round(count * epochs / seconds, 1),
            }
        )
    return lines


def _check_finite(recipe: Any, sums: dict[str, np.ndarray], finite: Any, epoch: int) -> None:
    """Raises InputError at the first step whose loss is not finite, or at the last if it spoilt the weights."""
    finite = bool(finite) and np.isfinite(sums.get("validation_loss_sum", 0.0)).all()
    losses = sums["loss_sum"].reshape(-1)
    bad = np.flatnonzero(~np.isfinite(losses))
    if len(bad) or not finite:
        where = int(bad[0]) if len(bad) else len(losses) - 1
        step = epoch * train.steps_per_epoch(recipe) + where
        rate = float(sums["learning_rate"].reshape(-1)[where])
        raise InputError(
            f"the loss is not finite at step {step} (epoch {step // train.steps_per_epoch(recipe) + 1}, learning rate"
            f" {rate:g}); what was saved before is kept: lower optimizer.learning_rate or set gradient_clip_norm"
        )
