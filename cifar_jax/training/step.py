"""The training state and the step, as pure functions of a recipe: no I/O, no clock, no devices named.

Everything is rebuilt from the recipe inside the traced function, which costs nothing at run time. Randomness is a
function of `recipe.seed` and the step, so a resumed run is the same run.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from cifar_jax.errors import InputError
from cifar_jax.models import MODELS
from cifar_jax.recipe import build, override, parameters
from cifar_jax.training.augment import augment, resize
from cifar_jax.training.losses import LOSSES
from cifar_jax.training.optimizers import OPTIMIZERS
from cifar_jax.training.parameter_groups import frozen_groups, grouped, stop_gradients
from cifar_jax.training.schedules import SCHEDULES

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
    proxy: Any  # {"params", "batch_stats", "opt_state"} of the model that selects images; {} without


class Phase(NamedTuple):
    """What holds over some epochs and is compiled into their steps."""

    frozen: tuple[str, ...] = ()  # patterns of the parameters that get no gradient
    share: float = 1.0  # of the images' height and width


WHOLE = Phase()  # all parameters, whole images


def phase_of(recipe: Recipe, epoch: int) -> Phase:
    """What holds in an epoch, counted from 0: its frozen groups, and its stage of progressive resizing (Howard 2018,
    "Training Imagenet in 3 hours for USD 25"). Raises InputError on what is no group or no stage.
    """
    stages, ended = recipe.progressive_resizing, 0
    for stage in stages:
        if not (isinstance(stage, tuple) and [type(part) for part in stage] in ([float, int], [int, int])):
            raise InputError(
                f"progressive_resizing holds {stage!r}; a stage is (share of the sides, number of its last epoch)"
            )
        if not (0 < stage[0] <= 1 and ended < stage[1] <= recipe.epochs):
            limits = f"a share above 0 and at most 1, and end after the stage before, within {recipe.epochs} epochs"
            raise InputError(f"progressive_resizing holds {stage!r}; it must have {limits}")
        ended = stage[1]
    share = next((share for share, end in stages if epoch < end), 1.0)
    return Phase(frozen_groups(recipe.groups, epoch), share)


def key(recipe: Recipe, use: int) -> Array:
    """The key of one use (INIT, SHUFFLE, TRAIN, COIN) of the recipe's seed."""
    return jax.random.fold_in(jax.random.key(recipe.seed), use)


def model(recipe: Recipe, section: str = "model") -> nn.Module:
    """The Linen module of `recipe.model`, or of `recipe.proxy`, for the data set's classes and the compute dtype."""
    classes, dtype = recipe.data.num_classes, jnp.dtype(recipe.dtype)
    return build(MODELS, recipe[section], section, num_classes=classes, dtype=dtype)


def optimizer(recipe: Recipe, step: Array | int, section: str = "model") -> optax.GradientTransformation:
    """The gradient transformation of optimiser step `step`, with the learning rate of that step, for the parameters of
    recipe.model, or of recipe.proxy."""
    chosen = recipe.optimizer
    groups, field = (recipe.groups, "groups") if section == "model" else (recipe.selection.groups, "selection.groups")

    def make(rate_factor: float, decay_factor: float, epochs: float) -> optax.GradientTransformation:
        rate = learning_rate(recipe, step, epochs)
        changes: dict[str, Any] = {"optimizer.learning_rate": rate * rate_factor}
        if decay_factor != 1:
            known = parameters(OPTIMIZERS.get(chosen.name, chosen.name))
            decay = chosen.get("weight_decay", known.get("weight_decay"))
            if decay is None:
                raise InputError(f"{field} holds a weight-decay factor of {decay_factor}; the optimizer has no decay")
            changes["optimizer.weight_decay"] = decay * decay_factor
        made = build(OPTIMIZERS, override(recipe, changes).optimizer, "optimizer")
        if not epochs:
            return made
        going = jnp.asarray(step) < epochs * steps_per_epoch(recipe)  # afterwards not even Muon's norm moves anything
        stop = optax.stateless_with_tree_map(lambda update, _: jnp.where(going, update, jnp.zeros_like(update)))
        return optax.chain(made, stop)

    transformation = grouped(groups, make, field)
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


def normalise(recipe: Recipe, images: Array) -> Array:
    """Images in 0..1 to zero mean and unit deviation by data.mean and data.std, one number or one a channel."""
    return (images - jnp.asarray(recipe.data.mean)) / jnp.asarray(recipe.data.std)


def init(recipe: Recipe) -> TrainState:
    """The state before the first step, from the recipe's seed."""
    params, batch_stats = _variables(recipe, "model")
    proxy = {}
    if recipe.selection.share:
        first, statistics = _variables(recipe, "proxy")
        own = optimizer(recipe, 0, "proxy").init(first)
        proxy = {"params": first, "batch_stats": statistics, "opt_state": own}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer(recipe, 0).init(params),
        average={"params": params, "batch_stats": batch_stats} if keeps_average(recipe) else {},
        proxy=proxy,
    )


def _variables(recipe: Recipe, section: str) -> tuple[Any, Any]:
    """Fresh params and batch_stats of a model."""
    images = jnp.zeros((1, *recipe.data.image_shape), jnp.float32)
    variables = model(recipe, section).init(key(recipe, INIT), images, train=False)
    return variables["params"], variables.get("batch_stats", {})


def prepare(recipe: Recipe, state: TrainState, images: Array) -> TrainState:
    """The first state with what the model takes from the training images, uint8 [N, H, W, C], before the first step.

    That is up to the model: one with a method `prepare(batch_stats, images)`, on normalised images, is asked.
    """

    def prepared(section: str, batch_stats: Any) -> Any:
        module = model(recipe, section)
        if not hasattr(module, "prepare"):
            return batch_stats
        return module.prepare(batch_stats, lambda count: normalise(recipe, images[:count] / 255))

    batch_stats, average, proxy = prepared("model", state.batch_stats), state.average, state.proxy
    if average:
        average = {**average, "batch_stats": batch_stats}
    if proxy:
        proxy = {**proxy, "batch_stats": prepared("proxy", proxy["batch_stats"])}
    return state.replace(batch_stats=batch_stats, average=average, proxy=proxy)


def train_step(
    recipe: Recipe,
    state: TrainState,
    images: Array,
    labels: Array,
    index: Array,
    placement: Any = None,
    phase: Phase = WHOLE,
) -> tuple[TrainState, dict[str, Array]]:
    """One optimiser step on images uint8 [B, H, W, C] and labels int32 [B], at `index` int32 [B] of the training set.

    `placement` is the sharding of a batch over devices. Parameters that match a pattern of `phase.frozen`, or are in a
    group whose learning-rate factor is 0, get no gradient, and have no part in clipping's norm or in SAM's. The images
    are augmented whole, then brought to `phase.share` of their sides.
    Returns the next state and {"loss_sum", "correct", "count", "learning_rate"}: sums over the batch as the model saw
    it, selected, augmented and with dropout. An image that was mixed with another counts as correct by its own label.
    """
    augment_key, dropout_key = jax.random.split(jax.random.fold_in(key(recipe, TRAIN), state.step))
    targets = jax.nn.one_hot(labels, recipe.data.num_classes)
    frozen = phase.frozen or frozen_groups(recipe.groups, 0)
    given = {"index": index, "epoch": state.step // steps_per_epoch(recipe), "coin": key(recipe, COIN)}
    inputs = images.astype(jnp.float32) / 255
    inputs, targets = augment(recipe.augment, augment_key, inputs, targets, mean=recipe.data.mean, **given)
    inputs, proxy = normalise(recipe, resize(inputs, phase.share)), state.proxy
    if proxy:
        chosen, proxy = select(recipe, state, inputs, targets)
        inputs, targets, labels = inputs[chosen], targets[chosen], labels[chosen]
        if placement is not None:
            inputs, targets, labels = jax.lax.with_sharding_constraint((inputs, targets, labels), placement)
    where = state.batch_stats, inputs, targets, dropout_key, frozen
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
    return TrainState(state.step + 1, latest["params"], latest["batch_stats"], opt_state, average, proxy), sums


def select(recipe: Recipe, state: TrainState, inputs: Array, targets: Array) -> tuple[Array, Any]:
    """The images of a batch that the proxy finds hardest, as airbench96_faster does (Jordan 2024): their positions
    int32 [selection.share * B], and the proxy, which has trained on them in every `selection.every`-th step.
    """
    count = round(recipe.selection.share * len(inputs))
    rngs = {"dropout": jax.random.fold_in(jax.random.fold_in(key(recipe, TRAIN), state.step), 1)}

    def hardest(params):
        trained = stop_gradients(params, frozen_groups(recipe.selection.groups, 0))
        variables = {"params": trained, "batch_stats": state.proxy["batch_stats"]}
        apply: Any = model(recipe, "proxy").apply
        logits, updated = apply(variables, inputs, train=True, mutable=["batch_stats"], rngs=rngs)
        losses = build(LOSSES, recipe.loss, "loss", logits=logits, targets=targets)
        chosen = jax.lax.top_k(jax.lax.stop_gradient(losses), count)[1]
        return losses[chosen].mean(), (chosen, updated.get("batch_stats", {}))

    def learn(params, opt_state):
        (_, (chosen, batch_stats)), gradients = value_and_gradient(recipe, count, hardest, params)
        updates, opt_state = optimizer(recipe, state.step, "proxy").update(gradients, opt_state, params)
        return chosen, {
            "params": optax.apply_updates(params, updates),
            "batch_stats": batch_stats,
            "opt_state": opt_state,
        }

    def look(params, opt_state):
        chosen, batch_stats = hardest(params)[1]
        return chosen, {"params": params, "batch_stats": batch_stats, "opt_state": opt_state}

    due = state.step % recipe.selection.every == 0
    return jax.lax.cond(due, learn, look, state.proxy["params"], state.proxy["opt_state"])


def value_and_gradient(recipe: Recipe, count: int, mean_loss: Any, params: Any) -> tuple[tuple[Array, Any], Any]:
    """As jax.value_and_grad of `mean_loss`, a mean over `count` images beside something else.

    float16 holds nothing below 6e-8, which the gradient of a mean soon is: there the sum's is taken, as airbench does.
    """
    loss, backward, beside = jax.vjp(mean_loss, params, has_aux=True)
    scale = count if recipe.dtype == "float16" else 1
    (gradients,) = backward(jnp.full_like(loss, scale))
    return (loss, beside), jax.tree.map(lambda gradient: gradient / scale, gradients)


def loss_and_gradients(
    recipe: Recipe,
    params: Any,
    batch_stats: Any,
    inputs: Array,
    targets: Array,
    dropout_key: Array,
    frozen: tuple[str, ...] = (),
) -> tuple[Array, Any, Array, Any]:
    """The mean loss of inputs float32 [B, H, W, C] with targets [B, classes], its gradients, logits, batch_stats.

    The gradients of the parameters that match a pattern of `frozen` are 0.

    The batch is taken in `gradient_accumulation` parts, one after another, and each is normalised by its own batch
    statistics. A part is not a run of neighbours but spread over the batch, and so over the devices.
    """

    def mean_loss(params, batch_stats, part):
        inputs, targets, number = part
        variables = {"params": stop_gradients(params, frozen), "batch_stats": batch_stats}
        rngs = {"dropout": jax.random.fold_in(dropout_key, number)}
        logits, updated = model(recipe).apply(variables, inputs, train=True, mutable=["batch_stats"], rngs=rngs)
        losses = build(LOSSES, recipe.loss, "loss", logits=logits, targets=targets)
        return losses.mean(), (logits, updated.get("batch_stats", {}))

    def both(params, batch_stats, part):
        return value_and_gradient(recipe, len(part[0]), lambda params: mean_loss(params, batch_stats, part), params)

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
    recipe: Recipe,
    state: TrainState,
    images: Array,
    labels: Array,
    placement: Any = None,
    phase: Phase = WHOLE,
) -> tuple[TrainState, dict[str, Array]]:
    """Every image of uint8 [N, H, W, C] at most once, in an order that depends on the seed and the epoch.

    Returns the state and train_step's sums, each [steps]; `placement` and `phase` as in train_step.
    """
    steps = steps_per_epoch(recipe)
    order = jax.random.permutation(jax.random.fold_in(key(recipe, SHUFFLE), state.step // steps), len(images))
    batches = order[: steps * recipe.batch_size].reshape(steps, recipe.batch_size)

    def body(state, chosen):
        batch = images[chosen], labels[chosen], chosen
        if placement is not None:
            batch = jax.lax.with_sharding_constraint(batch, placement)
        return train_step(recipe, state, *batch, placement, phase)

    state, sums = jax.lax.scan(body, state, batches)
    if recipe.average.start_epoch:
        average = weight_average(recipe, state, images, batches, placement)
        state = state.replace(average=average)
    return state, sums


def weight_average(recipe: Recipe, state: TrainState, images: Array, batches: Array, placement: Any = None) -> Any:
    """Izmailov et al. 2018: the mean of the weights at the ends of the epochs from average.start_epoch on; before, the
    latest. -> {"params", "batch_stats"}.

    The averaged weights have batch statistics of their own, which no average of others gives: they are measured by a
    forward pass over the epoch's batches (int32 [steps, B]), not augmented, with dropout, as running averages that
    start at the latest weights' (of which 0.9 ** steps stays, where the norms keep 0.9 at each). The images are whole,
    whatever progressive resizing trains on. That costs about a third of an epoch on whole images in models with batch
    normalisation, and nothing in others.
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
