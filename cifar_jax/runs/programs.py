"""What is compiled. Runs that differ only in `TRACED_FIELDS` share their programs within a process."""

import functools
import itertools
import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from ml_collections import FrozenConfigDict

from cifar_jax import training
from cifar_jax.errors import InputError
from cifar_jax.models.counts import counts
from cifar_jax.recipe import flatten, override
from cifar_jax.runs.devices import constraint, jit
from cifar_jax.training import evaluation
from cifar_jax.training.keys import seeds
from cifar_jax.training.objectives import objective_of
from cifar_jax.training.state import evaluated_weights, init, prepare
from cifar_jax.training.step import end_epoch, order_of_epoch, train_steps

# Numbers that enter a program as arguments, where the recipe has them and the function is ours. No other field can be
# traced: dropout, augment.flip, warmup_epochs, gradient_clip_norm and average.decay decide branches in Python, and a
# traced beta2 shifts 1 - beta2 by 1e-5.
TRACED_FIELDS = (
    "seeds.weights",
    "seeds.order",
    "seeds.augmentation",
    "optimizer.learning_rate",
    "optimizer.weight_decay",
    "optimizer.momentum",
    "loss.label_smoothing",
)
# Fields that no program depends on, and a value of their type.
UNUSED_FIELDS = {
    "seed": 0,
    "data.name": "",
    "data.path": "",
    "data.image_size": 32,
    "data.resize_mode": "",
    "data.test_share": 0.0,
    "data.validation_share": 0.0,
    "data.seed": 0,
    "data.validation": 0,
    "init_from": "",
    "evaluation.views": "one",
    "part_steps": 0,
    "chunk_epochs": 1,
    "checkpoint.every_epochs": 1,
    "checkpoint.every_minutes": 0.0,
    "early_stopping.patience": 0,
    "early_stopping.metric": "",
}
# What some programs read of a recipe, so that runs share them whose training differs otherwise.
ORDER_FIELDS = ("data", "batch_size", "seed", "seeds")
EVALUATION_FIELDS = ("data", "model", "loss", "evaluation", "dtype")
FIRST_STATE_FIELDS = (
    *("data", "model", "proxy", "selection", "optimizer", "groups", "schedule", "gradient_clip_norm", "average"),
    *("lookahead", "epochs", "batch_size", "seed", "seeds", "dtype"),
)
# Multiply-adds of the forward pass in one part of an epoch: 20 to 70 s on two cores, and beyond any epoch of CIFAR-10
# on an accelerator.
PART_COST = {"cpu": 3e12, "gpu": 3e15, "tpu": 3e15}
PROGRAMS = 32  # compiled programs of each kind that a process keeps

Phases = tuple[tuple[int, training.Phase], ...]  # (epochs, what holds in them)
Arrays = tuple[jax.Array, jax.Array]  # images uint8 [N, H, W, C], labels int32 [N], on the device


def numbers(recipe: Any) -> dict[str, jax.Array]:
    """The values of the traced fields of a resolved recipe."""
    fields = flatten(recipe)
    values = {f"seeds.{name}": jnp.asarray(seed, jnp.int32) for name, seed in seeds(recipe).items()}
    for path in TRACED_FIELDS[len(values) :]:
        if path in fields and isinstance(fields[f"{path.partition('.')[0]}.name"], str):
            values[path] = jnp.asarray(fields[path], jnp.float32)
    return values


def shared(recipe: Any, fields_read: Collection[str] = ()) -> FrozenConfigDict:
    """The recipe without what its programs take as arguments or do not depend on: equal for runs that share them.

    `fields_read` are the only ones that are kept, if they are given: the tracing of a program that reads another fails.
    """
    placeholders = {path: 0 if path.startswith("seeds.") else 0.0 for path in numbers(recipe)}
    fields = flatten(recipe)  # a run of an older version has fewer
    unused = {path: value for path, value in UNUSED_FIELDS.items() if path in fields}
    kept = override(recipe, {**placeholders, **unused})
    return FrozenConfigDict({name: kept[name] for name in fields_read or kept if name in kept})


def numbers_read(recipe: Any, fields_read: Collection[str]) -> dict[str, jax.Array]:
    """The `numbers` in `fields_read`."""
    return {path: value for path, value in numbers(recipe).items() if path.partition(".")[0] in fields_read}


def part_steps(recipe: Any, steps: int) -> int:
    """The steps of a part of an epoch of `steps`: recipe.part_steps, or as many as cost PART_COST; the parts of an
    epoch are equal where the steps divide so."""
    if recipe.part_steps or recipe.chunk_epochs > 1:
        return min(recipe.part_steps, steps) or steps
    _, multiply_adds = counts(training.model(recipe), training.state.input_shape(recipe))
    limit = PART_COST[jax.default_backend()] if jax.default_backend() in PART_COST else PART_COST["gpu"]
    parts = max(1, round(multiply_adds * recipe.batch_size * steps / limit))
    even = [number for number in range(parts, 2 * parts) if steps % number == 0]
    return -(-steps // (even[0] if even else parts))


def phases(recipe: Any, start: int, end: int) -> Phases:
    """The epochs start..end, from 0, in runs of (so many, what holds in them)."""
    runs = itertools.groupby(range(start, end), functools.partial(training.phase_of, recipe))
    return tuple((len(list(epochs)), phase) for phase, epochs in runs)


def first_state(recipe: Any, images: jax.Array) -> training.TrainState:
    """The state before the first step on the training images uint8 [N, H, W, C]."""
    fields = FIRST_STATE_FIELDS
    return _first_program(shared(recipe, fields))(numbers_read(recipe, fields), images)


@functools.lru_cache(PROGRAMS)
def _first_program(recipe: FrozenConfigDict) -> Any:
    return jit(functools.partial(first, recipe), recipe.dtype)


def first(recipe: Any, values: Mapping[str, Any], images: Any) -> training.TrainState:
    recipe = override(recipe, values)
    return prepare(recipe, init(recipe), images)


def together(function: Callable[..., Any], how: str) -> Callable[..., Any]:
    """function(values, state, *shared), for one run ("single"), or for a list of values and one of states, with a list
    of results: one run after another within the program ("unrolled"), or all of them in each operation ("mapped")."""
    if how == "single":
        return function

    def unrolled(values: list[Any], states: list[Any], *shared: Any) -> list[Any]:
        return [function(value, state, *shared) for value, state in zip(values, states, strict=True)]

    def mapped(values: list[Any], states: list[Any], *shared: Any) -> list[Any]:
        stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
        axes = (0, 0, *(None for _ in shared))
        results = jax.vmap(function, in_axes=axes)(stack(values), stack(states), *shared)
        return [jax.tree.map(operator.itemgetter(number), results) for number in range(len(values))]

    return {"unrolled": unrolled, "mapped": mapped}[how]


@functools.lru_cache(PROGRAMS)
def epochs_program(recipe: FrozenConfigDict, chosen: Phases, batch: NamedSharding | None, how: str = "single") -> Any:
    """(values, state, train_set, validation_set, context) -> (state, sums [epochs, steps], finite), for the `shared`
    recipe; the state is donated. `how` is as for `together`, here and below."""
    return jit(together(functools.partial(epochs, recipe, chosen, batch), how), recipe.dtype, donate_argnums=1)


def epochs(
    recipe: Any,
    chosen: Phases,
    batch: NamedSharding | None,
    values: Mapping[str, Any],
    state: training.TrainState,
    train_set: Arrays,
    validation_set: Arrays | None,
    context: Any,
) -> tuple[training.TrainState, dict[str, jax.Array], jax.Array]:
    """Whole epochs; the last result says whether the logits of a batch are finite after them."""
    recipe = override(recipe, values)
    constrain, devices = constraint(batch)

    def epoch(phase, state, _):
        options = {"phase": phase, "constrain": constrain, "context": context}
        state, sums = training.train_epoch(recipe, state, *train_set, **options)
        return state, sums | _validation_sums(recipe, state, validation_set, constrain, devices)

    parts = []
    for count, phase in chosen:
        state, part = jax.lax.scan(functools.partial(epoch, phase), state, length=count)
        parts.append(part)
    sums = jax.tree.map(lambda *part: jnp.concatenate(part), *parts)
    return state, sums, _finite(recipe, state, train_set if validation_set is None else validation_set)


@functools.lru_cache(PROGRAMS)
def part_program(
    recipe: FrozenConfigDict, phase: training.Phase, steps: int, batch: NamedSharding | None, how: str = "single"
) -> Any:
    """(values, state, train_set, context) -> (state, sums [steps], finite): so many steps of an epoch, from where the
    state stands; the state is donated."""

    def part(values: Any, state: training.TrainState, train_set: Arrays, context: Any) -> Any:
        chosen = override(recipe, values)
        epoch, start = jnp.divmod(state.step, training.steps_per_epoch(chosen))
        batches = jax.lax.dynamic_slice_in_dim(order_of_epoch(chosen, epoch, len(train_set[0])), start, steps)
        options = {"phase": phase, "constrain": constraint(batch)[0], "context": context}
        state, sums = train_steps(chosen, state, *train_set, batches, **options)
        return state, sums, _finite(chosen, state, train_set)

    return jit(together(part, how), recipe.dtype, donate_argnums=1)


@functools.lru_cache(PROGRAMS)
def streamed_program(recipe: FrozenConfigDict, phase: training.Phase, batch: NamedSharding | None) -> Any:
    """(values, state, images and labels of the steps in their order, their positions, context) -> as `part_program`."""

    def part(values: Any, state: training.TrainState, seen: Arrays, positions: jax.Array, context: Any) -> Any:
        chosen, batches = override(recipe, values), jnp.arange(positions.size).reshape(positions.shape)
        options = {"phase": phase, "constrain": constraint(batch)[0], "context": context, "positions": positions}
        state, sums = train_steps(chosen, state, *seen, batches, **options)
        return state, sums, _finite(chosen, state, seen)

    return jit(part, recipe.dtype, donate_argnums=1)


def epoch_order(recipe: Any, epoch: int, count: int) -> jax.Array:
    """step.order_of_epoch of `count` images."""
    return _order_program(shared(recipe, ORDER_FIELDS), count)(numbers_read(recipe, ORDER_FIELDS), epoch)


@functools.lru_cache(PROGRAMS)
def _order_program(recipe: FrozenConfigDict, count: int) -> Any:
    return jit(lambda values, epoch: order_of_epoch(override(recipe, values), epoch, count))


@functools.lru_cache(PROGRAMS)
def end_program(recipe: FrozenConfigDict, batch: NamedSharding | None, how: str = "single") -> Any:
    """(values, state, train_set, validation_set) -> (state, validation sums, finite): what follows the last part of an
    epoch; the state is donated."""

    def end(values: Any, state: training.TrainState, train_set: Arrays, validation_set: Arrays | None) -> Any:
        chosen = override(recipe, values)
        constrain, devices = constraint(batch)
        if chosen.average.start_epoch:
            epoch = state.step // training.steps_per_epoch(chosen) - 1
            batches = order_of_epoch(chosen, epoch, len(train_set[0]))
            state = end_epoch(chosen, state, train_set[0], batches, constrain)
        sums = _validation_sums(chosen, state, validation_set, constrain, devices)
        return state, sums, _finite(chosen, state, train_set if validation_set is None else validation_set)

    return jit(together(end, how), recipe.dtype, donate_argnums=1)


def _validation_sums(
    recipe: Any, state: training.TrainState, data: Arrays | None, constrain: Callable[[Any], Any], devices: int
) -> dict[str, jax.Array]:
    """{"validation_loss_sum", "validation_correct"}; {} without a validation set."""
    if data is None or not objective_of(recipe).predicts:
        return {}
    seen = evaluation.sums(recipe, evaluated_weights(state), *data, "one", constrain=constrain, devices=devices)
    return {"validation_loss_sum": seen["loss_sum"], "validation_correct": jnp.trace(seen["confusion"])}


def _finite(recipe: Any, state: training.TrainState, data: Arrays) -> jax.Array:
    """A step may spoil the weights after its own loss was computed, so they are tried before they may be saved."""
    return jnp.isfinite(evaluation.logits(recipe, evaluated_weights(state), data[0][: recipe.batch_size])).all()


def evaluate(
    recipe: Any, weights: Any, data: Arrays, views: str, batch: NamedSharding | None, before: Any = None
) -> Any:
    """evaluation.sums_and_probabilities of a split; `before` are the sums of the images before these."""
    program = _evaluation_program(shared(recipe, EVALUATION_FIELDS), views, batch)
    return program(numbers_read(recipe, EVALUATION_FIELDS), weights, *data, before)


@functools.lru_cache(PROGRAMS)
def _evaluation_program(recipe: FrozenConfigDict, views: str, batch: NamedSharding | None) -> Any:
    constrain, devices = constraint(batch)

    def seen(values: Any, weights: Any, images: jax.Array, labels: jax.Array, before: Any) -> Any:
        options: dict[str, Any] = {"constrain": constrain, "devices": devices, "before": before}
        return evaluation.sums_and_probabilities(override(recipe, values), weights, images, labels, views, **options)

    return jit(seen, recipe.dtype)


@functools.lru_cache(PROGRAMS)
def logits_program(recipe: FrozenConfigDict, views: str) -> Any:
    """(weights, images uint8 [B, H, W, C]) -> logits float32 [B, classes], for the recipe `shared` for evaluation."""
    return jit(lambda weights, images: evaluation.logits(recipe, weights, images, views), recipe.dtype)


@functools.lru_cache(PROGRAMS)
def embeddings_program(recipe: FrozenConfigDict) -> Any:
    """(weights, images uint8 [B, H, W, C]) -> embeddings float32 [B, D], for the recipe `shared` for evaluation."""
    return jit(lambda weights, images: evaluation.embeddings(recipe, weights, images), recipe.dtype)


# Copied, because weights that stand in the state twice, as an average or an optimiser's start, cannot be donated.
copy = functools.cache(lambda: jit(lambda tree: jax.tree.map(jnp.copy, tree)))


def whole_run(recipe: Any, seed: Any, train_set: Arrays, test_set: Arrays) -> tuple[Any, Any, Any]:
    """A run as one program, with no host in between: what a speedrun compiles, with `devices.jit`.

    `seed` may be a tracer; nothing is held out. Returns the state, train_epoch's sums [epochs, steps], and
    evaluation.sums of the test set over the recipe's views.
    """
    values = {f"seeds.{name}": seed for name in ("weights", "order", "augmentation")}
    state = first(recipe, values, train_set[0])
    state, sums, _ = epochs(recipe, phases(recipe, 0, recipe.epochs), None, values, state, train_set, None, None)
    return state, sums, evaluation.sums(recipe, evaluated_weights(state), *test_set, recipe.evaluation.views)


def check_processes() -> None:
    """Raises InputError under jax.distributed, where each process would train a model of its own."""
    if jax.process_count() > 1:
        raise InputError(
            f"fit runs in one process, and jax.distributed has started {jax.process_count()}; start it in one of them"
        )
