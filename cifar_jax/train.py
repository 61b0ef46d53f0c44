"""The training state and the step, as pure functions of a recipe: no I/O, no clock, no devices named.

Everything is rebuilt from the recipe inside the traced function, which costs nothing at run time. Randomness is a
function of `recipe.seed` and the step, so a resumed run is the same run.
"""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from cifar_jax.augment import augment, views
from cifar_jax.losses import LOSSES
from cifar_jax.models import MODELS
from cifar_jax.optim import OPTIMIZERS, SCHEDULES, grouped
from cifar_jax.recipe import InputError, build, override, parameters

Array = jax.Array
Recipe = Any  # ConfigDict or FrozenConfigDict

INIT, SHUFFLE, TRAIN, COIN = 0, 1, 2, 3  # the uses of the seed


class TrainState(flax.struct.PyTreeNode):
    """Arrays only. `step` counts optimiser steps and is the only clock."""

    step: Array  # int32
    params: Any  # float32
    batch_stats: Any  # running statistics of batch normalisation; {} without
    opt_state: Any
    average: Any  # {"params", "batch_stats"}: the average that is evaluated, or lookahead's slow weights; {} without


def key(recipe: Recipe, use: int) -> Array:
    """The key of one use (INIT, SHUFFLE, TRAIN, COIN) of the recipe's seed."""
    return jax.random.fold_in(jax.random.key(recipe.seed), use)


def model(recipe: Recipe) -> nn.Module:
    """The Linen module of `recipe.model`, for the data set's classes and the recipe's compute dtype."""
    classes, dtype = recipe.data.num_classes, jnp.dtype(recipe.dtype)
    return build(MODELS, recipe.model, "model", num_classes=classes, dtype=dtype)


def optimizer(recipe: Recipe, step: Array | int) -> optax.GradientTransformation:
    """The gradient transformation of optimiser step `step`, with the learning rate of that step."""
    section = recipe.optimizer

    def make(rate_factor: float, decay_factor: float, epochs: float) -> optax.GradientTransformation:
        rate = learning_rate(recipe, step, epochs)
        changes: dict[str, Any] = {"optimizer.learning_rate": rate * rate_factor}
        if decay_factor != 1:
            default = parameters(OPTIMIZERS[section.name])["weight_decay"] if section.name in OPTIMIZERS else 0.0
            decay = section.weight_decay if "weight_decay" in section else default
            changes["optimizer.weight_decay"] = decay * decay_factor
        return build(OPTIMIZERS, override(recipe, changes).optimizer, "optimizer")

    transformation = grouped(recipe.groups, make)
    if recipe.gradient_clip_norm:
        transformation = optax.chain(optax.clip_by_global_norm(recipe.gradient_clip_norm), transformation)
    return transformation


def keeps_average(recipe: Recipe) -> bool:
    return bool(recipe.average.decay or recipe.average.start_epoch or recipe.lookahead.steps)


def steps_per_epoch(recipe: Recipe) -> int:
    """Whole batches in the training set; the images left over are others in each epoch."""
    return recipe.data.train_count // recipe.batch_size


def learning_rate(recipe: Recipe, step: Array | int, epochs: float = 0.0) -> Array:
    """optimizer.learning_rate times the schedule's factor before optimiser step `step`.

    With `epochs` the schedule is that of a run of so many, and the rate is 0 after them.
    """
    epoch = jnp.asarray(step, jnp.float32) / steps_per_epoch(recipe)
    factor = build(SCHEDULES, recipe.schedule, "schedule", epoch=epoch, epochs=float(epochs or recipe.epochs))
    if epochs:
        factor = jnp.where(epoch < epochs, factor, 0.0)
    return jnp.asarray(recipe.optimizer.learning_rate * factor, jnp.float32)


def check(recipe: Recipe) -> None:
    """Raises InputError unless the recipe, its data fields filled in, can be built and its numbers make sense."""
    count = recipe.data.train_count
    if recipe.batch_size > count:
        raise InputError(f"batch_size={recipe.batch_size} is larger than the training set of {count} images; lower it")
    for field, low, high in RANGES:
        value = recipe
        for name in field.split("."):
            value = value.get(name) if not callable(value) else None
            if value is None:
                break
        if isinstance(value, int | float) and not low <= value <= high:
            allowed = f"at least {low}" if high == float("inf") else f"between {low} and {high}"
            raise InputError(f"recipe field '{field}' is {value}; it must be {allowed}")
    channels = recipe.data.image_shape[-1]
    for field in ("mean", "std"):
        values = recipe.data[field]
        if len(values) not in (1, channels) or (field == "std" and not all(value > 0 for value in values)):
            raise InputError(
                f"recipe field 'data.{field}' is {values}; it takes one number, or {channels} (std above 0)"
            )
    if recipe.early_stopping.patience and not recipe.data.validation:
        raise InputError("early_stopping.patience needs a validation split; set data.validation to a number of images")
    if recipe.early_stopping.metric not in ("validation_accuracy", "validation_loss"):
        metric = recipe.early_stopping.metric
        raise InputError(f"early_stopping.metric is '{metric}'; it must be 'validation_accuracy' or 'validation_loss'")
    if not callable(recipe.augment) and recipe.augment.flip and recipe.augment.alternating_flip:
        raise InputError("augment.flip and augment.alternating_flip undo each other; set one of them to 0")
    averages = {
        "average.decay": recipe.average.decay,
        "average.start_epoch": recipe.average.start_epoch,
        "lookahead.steps": recipe.lookahead.steps,
    }
    chosen = [field for field, value in averages.items() if value]
    if len(chosen) > 1:
        raise InputError(f"{', '.join(chosen)} are set; a run keeps one average of weights")
    if recipe.average.start_epoch > recipe.epochs:
        late = recipe.average.start_epoch
        raise InputError(f"average.start_epoch={late} is after the last of {recipe.epochs} epochs")
    if recipe.batch_size % recipe.gradient_accumulation:
        parts = recipe.gradient_accumulation
        raise InputError(f"batch_size={recipe.batch_size} does not divide into gradient_accumulation={parts} parts")
    views(recipe.evaluation.views)
    images = jax.ShapeDtypeStruct((recipe.batch_size, *recipe.data.image_shape), jnp.uint8)
    labels = jax.ShapeDtypeStruct((recipe.batch_size,), jnp.int32)
    try:
        build(OPTIMIZERS, recipe.optimizer, "optimizer")
        state = jax.eval_shape(lambda: init(recipe))
        jax.eval_shape(lambda *arguments: train_step(recipe, *arguments), state, images, labels, labels)
    except InputError:
        raise
    except (TypeError, ValueError, ZeroDivisionError) as error:  # a size that no layer can have, for instance
        raise InputError(f"the recipe cannot be built: {str(error).splitlines()[0]}; look at its sizes") from error


RANGES = [  # field, least, most
    ("seed", 0, 2**31 - 1),
    ("epochs", 1, float("inf")),
    ("batch_size", 1, float("inf")),
    ("chunk_epochs", 1, float("inf")),
    ("gradient_accumulation", 1, float("inf")),
    ("data.validation", 0, float("inf")),
    ("data.seed", 0, 2**32 - 1),
    ("optimizer.learning_rate", 0, float("inf")),
    ("optimizer.weight_decay", 0, float("inf")),
    ("optimizer.momentum", 0, 1),
    ("optimizer.beta1", 0, 1),
    ("optimizer.beta2", 0, 1),
    ("optimizer.epsilon", 0, float("inf")),
    ("optimizer.steps", 1, float("inf")),
    ("optimizer.sgd_factor", 0, float("inf")),
    ("optimizer.sgd_momentum", 0, 1),
    ("gradient_clip_norm", 0, float("inf")),
    ("model.dropout", 0, 1),
    ("model.drop_path", 0, 1),
    ("model.width", 1, float("inf")),
    ("model.hidden", 1, float("inf")),
    ("model.kernel_size", 1, float("inf")),
    ("model.widen", 1, float("inf")),
    ("model.depth", 1, float("inf")),
    ("model.growth", 1, float("inf")),
    ("model.heads", 1, float("inf")),
    ("model.patch_size", 1, float("inf")),
    ("schedule.warmup_epochs", 0, float("inf")),
    ("schedule.peak", 1e-6, 1 - 1e-6),
    ("schedule.start", 0, 1),
    ("schedule.final", 0, 1),
    ("schedule.factor", 0, 1),
    ("loss.label_smoothing", 0, 1),
    ("loss.gamma", 0, float("inf")),
    ("augment.flip", 0, 1),
    ("augment.alternating_flip", 0, 1),
    ("augment.crop", 0, float("inf")),
    ("augment.rotation", 0, 180),
    ("augment.brightness", 0, 1),
    ("augment.contrast", 0, 1),
    ("augment.saturation", 0, 1),
    ("augment.randaugment", 0, 10),
    ("augment.trivial_augment", 0, 1),
    ("augment.cutout", 0, float("inf")),
    ("augment.random_erasing", 0, 1),
    ("augment.mixup", 0, float("inf")),
    ("augment.cutmix", 0, float("inf")),
    ("average.decay", 0, 1),
    ("average.start_epoch", 0, float("inf")),
    ("lookahead.steps", 0, float("inf")),
    ("lookahead.pull", 0, 1),
    ("lookahead.power", 0, float("inf")),
    ("sam.rho", 0, float("inf")),
    ("early_stopping.patience", 0, float("inf")),
    ("checkpoint.every_epochs", 1, float("inf")),
    ("evaluation.batch_size", 1, float("inf")),
]


def normalise(recipe: Recipe, images: Array) -> Array:
    """Images in 0..1 to zero mean and unit deviation by data.mean and data.std, one number or one a channel."""
    return (images - jnp.asarray(recipe.data.mean)) / jnp.asarray(recipe.data.std)


def init(recipe: Recipe) -> TrainState:
    """The state before the first step, from the recipe's seed."""
    images = jnp.zeros((1, *recipe.data.image_shape), jnp.float32)
    variables = model(recipe).init(key(recipe, INIT), images, train=False)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer(recipe, 0).init(params),
        average={"params": params, "batch_stats": batch_stats} if keeps_average(recipe) else {},
    )


def prepare(recipe: Recipe, state: TrainState, images: Array) -> TrainState:
    """The first state with what the model takes from the training images, uint8 [N, H, W, C], before the first step.

    That is up to the model: one with a method `prepare(batch_stats, images)`, on normalised images, is asked.
    """
    module = model(recipe)
    if not hasattr(module, "prepare"):
        return state
    batch_stats = module.prepare(state.batch_stats, lambda count: normalise(recipe, images[:count] / 255))
    average = {**state.average, "batch_stats": batch_stats} if state.average else {}
    return state.replace(batch_stats=batch_stats, average=average)


def train_step(
    recipe: Recipe, state: TrainState, images: Array, labels: Array, index: Array
) -> tuple[TrainState, dict[str, Array]]:
    """One optimiser step on images uint8 [B, H, W, C] and labels int32 [B], at `index` int32 [B] of the training set.

    Returns the next state and {"loss_sum", "correct", "count", "learning_rate"}: sums over the batch as the model saw
    it, augmented and with dropout. An image that was mixed with another counts as correct by its own label.
    """
    augment_key, dropout_key = jax.random.split(jax.random.fold_in(key(recipe, TRAIN), state.step))
    targets = jax.nn.one_hot(labels, recipe.data.num_classes)
    given = {"index": index, "epoch": state.step // steps_per_epoch(recipe), "coin": key(recipe, COIN)}
    inputs = images.astype(jnp.float32) / 255
    inputs, targets = augment(recipe.augment, augment_key, inputs, targets, mean=recipe.data.mean, **given)
    inputs = normalise(recipe, inputs)

    where = state.batch_stats, inputs, targets, dropout_key
    loss, gradients, logits, batch_stats = loss_and_gradients(recipe, state.params, *where)
    if recipe.sam.rho:  # Foret et al. 2021: the gradient where the loss is about highest within rho of the weights
        scale = recipe.sam.rho / jnp.maximum(optax.tree.norm(gradients), 1e-12)
        worst = jax.tree.map(lambda weight, gradient: weight + scale * gradient, state.params, gradients)
        gradients = loss_and_gradients(recipe, worst, *where)[1]
    updates, opt_state = optimizer(recipe, state.step).update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average, latest = state.average, {"params": params, "batch_stats": batch_stats}
    if recipe.average.decay:
        average = optax.incremental_update(latest, average, 1 - recipe.average.decay)
    if recipe.lookahead.steps:
        latest, average = lookahead(recipe, state.step + 1, latest, average)
    sums = {
        "loss_sum": loss * len(labels),
        "correct": jnp.sum(logits.argmax(-1) == labels),
        "count": jnp.int32(len(labels)),
        "learning_rate": learning_rate(recipe, state.step),
    }
    return TrainState(state.step + 1, latest["params"], latest["batch_stats"], opt_state, average), sums


def loss_and_gradients(
    recipe: Recipe, params: Any, batch_stats: Any, inputs: Array, targets: Array, dropout_key: Array
) -> tuple[Array, Any, Array, Any]:
    """The mean loss of inputs float32 [B, H, W, C] with targets [B, classes], its gradients, logits, batch_stats.

    The batch is taken in `gradient_accumulation` parts, one after another, and each is normalised by its own batch
    statistics. A part is not a run of neighbours but spread over the batch, and so over the devices.
    """

    def mean_loss(params, batch_stats, part):
        inputs, targets, number = part
        variables = {"params": params, "batch_stats": batch_stats}
        rngs = {"dropout": jax.random.fold_in(dropout_key, number)}
        logits, updated = model(recipe).apply(variables, inputs, train=True, mutable=["batch_stats"], rngs=rngs)
        losses = build(LOSSES, recipe.loss, "loss", logits=logits, targets=targets)
        return losses.mean(), (logits, updated.get("batch_stats", {}))

    both = jax.value_and_grad(mean_loss, has_aux=True)
    parts = recipe.gradient_accumulation
    if parts == 1:
        (loss, (logits, batch_stats)), gradients = both(params, batch_stats, (inputs, targets, 0))
        return loss, gradients, logits, batch_stats

    def body(carry, part):
        total, batch_stats = carry
        (loss, (logits, batch_stats)), gradients = both(params, batch_stats, part)
        return (jax.tree.map(lambda old, new: old + new / parts, total, (loss, gradients)), batch_stats), logits

    split = lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)
    start = (jnp.float32(0), jax.tree.map(jnp.zeros_like, params)), batch_stats
    ((loss, gradients), batch_stats), logits = jax.lax.scan(
        body, start, (split(inputs), split(targets), jnp.arange(parts))
    )
    return loss, gradients, logits.swapaxes(0, 1).reshape(targets.shape), batch_stats


def lookahead(recipe: Recipe, step: Array, fast: Any, slow: Any) -> tuple[Any, Any]:
    """Zhang et al. 2019: after every lookahead.steps steps the slow weights move towards the fast ones, which go on
    from there; batch statistics belong to their weights and do the same. -> (fast, slow).

    The slow ones keep the share (1 - pull) * (progress of the run) ** power: power 0 is the paper's, 3 airbench's.
    """
    progress = step / (recipe.epochs * steps_per_epoch(recipe))
    kept = (1 - recipe.lookahead.pull) * progress**recipe.lookahead.power
    due = step % recipe.lookahead.steps == 0
    slow = jax.tree.map(lambda new, old: jnp.where(due, kept * old + (1 - kept) * new, old), fast, slow)
    return jax.tree.map(lambda new, old: jnp.where(due, old, new), fast, slow), slow


def train_epoch(
    recipe: Recipe, state: TrainState, images: Array, labels: Array, placement: Any = None
) -> tuple[TrainState, dict[str, Array]]:
    """Every image of uint8 [N, H, W, C] at most once, in an order that depends on the seed and the epoch.

    Returns the state and train_step's sums, each [steps]. `placement` is the sharding of a batch over devices.
    """
    steps = steps_per_epoch(recipe)
    order = jax.random.permutation(jax.random.fold_in(key(recipe, SHUFFLE), state.step // steps), len(images))
    batches = order[: steps * recipe.batch_size].reshape(steps, recipe.batch_size)

    def body(state, chosen):
        batch = images[chosen], labels[chosen], chosen
        if placement is not None:
            batch = jax.lax.with_sharding_constraint(batch, placement)
        return train_step(recipe, state, *batch)

    state, sums = jax.lax.scan(body, state, batches)
    if recipe.average.start_epoch:
        average = weight_average(recipe, state, images, batches, placement)
        state = state.replace(average=average)
    return state, sums


def weight_average(recipe: Recipe, state: TrainState, images: Array, batches: Array, placement: Any = None) -> Any:
    """Izmailov et al. 2018: the mean of the weights at the ends of the epochs from average.start_epoch on; before, the
    latest. -> {"params", "batch_stats"}.

    The averaged weights have batch statistics of their own, which no average of others gives: they are measured by a
    forward pass over the epoch's batches (int32 [steps, B]), not augmented, with dropout. That costs about a third of
    the epoch's time in models with batch normalisation, and nothing in others.
    """
    epoch = state.step // steps_per_epoch(recipe)  # the number of the one that has just ended, from 1
    share = 1 / jnp.maximum(epoch - recipe.average.start_epoch + 1, 1).astype(jnp.float32)
    params = optax.incremental_update(state.params, state.average["params"], share)

    def measure(batch_stats, chosen):
        batch = images[chosen] if placement is None else jax.lax.with_sharding_constraint(images[chosen], placement)
        rngs = {"dropout": jax.random.fold_in(key(recipe, TRAIN), state.step)}
        inputs = normalise(recipe, batch.astype(jnp.float32) / 255)
        variables = {"params": params, "batch_stats": batch_stats}
        return model(recipe).apply(variables, inputs, train=True, mutable=["batch_stats"], rngs=rngs)[1]["batch_stats"]

    batch_stats = state.batch_stats
    if batch_stats:
        measured = lambda: jax.lax.scan(lambda *each: (measure(*each), None), state.batch_stats, batches)[0]
        batch_stats = jax.lax.cond(epoch > recipe.average.start_epoch, measured, lambda: state.batch_stats)
    return {"params": params, "batch_stats": batch_stats}
