"""The training state, the model of a recipe, and how images become its inputs."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from cifar_jax.errors import InputError
from cifar_jax.models import MODELS
from cifar_jax.models.kernels import at_least_float32
from cifar_jax.recipe import build
from cifar_jax.training.keys import Purpose, key
from cifar_jax.training.update import optimizer

Array = jax.Array
Recipe = Any  # ConfigDict or FrozenConfigDict


class TrainState(flax.struct.PyTreeNode):
    """Arrays only. `step` counts optimiser steps and is the only clock."""

    step: Array  # int32
    params: Any  # float32, or float64 where recipe.dtype is float64
    batch_stats: Any  # running statistics of batch normalisation; {} without
    opt_state: Any
    average: Any  # {"params", "batch_stats"}: the average that is evaluated, or lookahead's slow weights; {} without
    proxy: Any  # {"params", "batch_stats", "opt_state"} of the model that selects images; {} without


def model(recipe: Recipe, section: str = "model") -> nn.Module:
    """The Linen module of `recipe.model`, or of `recipe.proxy`, for the data set's classes and the compute dtype."""
    classes, dtype = recipe.data.num_classes, jnp.dtype(recipe.dtype)
    return build(MODELS, recipe[section], section, num_classes=classes, dtype=dtype)


def apply_in_training(module: nn.Module, params: Any, batch_stats: Any, inputs: Array, key: Array) -> tuple[Any, Any]:
    """The module in training mode -> (outputs, next batch_stats); `key` is that of dropout."""
    variables, rngs = {"params": params, "batch_stats": batch_stats}, {"dropout": key}
    outputs, updated = module.apply(variables, inputs, train=True, mutable=["batch_stats"], rngs=rngs)
    return outputs, updated.get("batch_stats", {})


def normalise(images: Array, mean: Any, std: Any) -> Array:
    """Images in 0..1 to zero mean and unit deviation; `mean` and `std` are one number or one a channel."""
    return (images - jnp.asarray(mean, images.dtype)) / jnp.asarray(std, images.dtype)


def input_shape(recipe: Recipe) -> tuple[int, int, int]:
    """(height, width, channels) of the model's inputs."""
    height, width, channels = recipe.data.image_shape
    return (recipe.data.input_size or height, recipe.data.input_size or width, channels)


def model_inputs(recipe: Recipe, images: Array) -> Array:
    """Images [B, H, W, C] in 0..1 as the model takes them: enlarged to data.input_size (bilinear), then normalised."""
    if recipe.data.input_size:
        images = jax.image.resize(images, (images.shape[0], *input_shape(recipe)), "linear")
    return normalise(images, recipe.data.mean, recipe.data.std)


def keeps_average(recipe: Recipe) -> bool:
    return bool(recipe.average.decay or recipe.average.start_epoch or recipe.lookahead.steps)


def evaluated_weights(state: TrainState) -> dict[str, Any]:
    """{"params", "batch_stats"} that an evaluation uses: the average where there is one, otherwise the latest."""
    return state.average or {"params": state.params, "batch_stats": state.batch_stats}


def init(recipe: Recipe) -> TrainState:
    """The state before the first step, from the seed of the weights."""
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
    """New params and batch_stats of a model."""
    images = jnp.zeros((1, *input_shape(recipe)), jnp.float32)
    variables = model(recipe, section).init(key(recipe, Purpose.WEIGHTS), images, train=False)
    return variables["params"], variables.get("batch_stats", {})


def prepare(recipe: Recipe, state: TrainState, images: Array) -> TrainState:
    """The first state, with what the model computes from the training images, uint8 [N, H, W, C], before training.

    A model with a method `prepare(batch_stats, images)` is asked; `images(n)` gives it the first n as its inputs.
    Raises InputError where `images` are only the first of the data set, and the model asks for more.
    """

    def prepared(section: str, batch_stats: Any) -> Any:
        module = model(recipe, section)
        if not hasattr(module, "prepare"):
            return batch_stats

        def first(count: int) -> Array:
            if len(images) < min(count, recipe.data.train_count):
                what = f"the model asks for {count} images before training"
                raise InputError(f"{what}, and of images that do not fit the device it gets {len(images)}")
            return model_inputs(recipe, images[:count].astype(at_least_float32(recipe.dtype)) / 255)

        return module.prepare(batch_stats, first)

    batch_stats, average, proxy = prepared("model", state.batch_stats), state.average, state.proxy
    if average:
        average = {**average, "batch_stats": batch_stats}
    if proxy:
        proxy = {**proxy, "batch_stats": prepared("proxy", proxy["batch_stats"])}
    return state.replace(batch_stats=batch_stats, average=average, proxy=proxy)
