"""Tiny recipes and tiny data, shared by the tests."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import FrozenConfigDict

from cifar_jax import training
from cifar_jax.data.arrays import Split
from cifar_jax.recipe import flatten, freeze, override, resolve
from cifar_jax.runs.devices import jit
from cifar_jax.runs.recipes import load_recipe
from cifar_jax.training.gradients import Result, accumulated
from cifar_jax.training.objectives import Batch, classification_losses
from cifar_jax.training.state import apply_in_training

CLASSES, SIZE, COUNT = 4, 8, 32


def split(n: int = COUNT, classes: int = CLASSES, size: int = SIZE, seed: int = 0) -> Split:
    """n noisy images [size, size, 3] with one blob each, whose colour tells the class; every class is as frequent."""
    random = np.random.RandomState(seed)
    palette = np.random.RandomState(0).permutation(27)[:classes]
    labels = random.permutation(np.arange(n) % classes).astype(np.int32)
    images = random.randint(0, 60, (n, size, size, 3)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        top, left = random.randint(0, size - size // 2 + 1, 2)
        colour = np.array([palette[label] // 9, palette[label] // 3 % 3, palette[label] % 3]) * 97 + 60
        image[top : top + size // 2, left : left + size // 2] = colour
    images.flags.writeable = labels.flags.writeable = False
    names = tuple(f"class {index}" for index in range(classes))
    return Split(images, labels, names, f"made-{n}-{classes}-{size}-{seed}", "made", "train")


def recipe(changes: Mapping[str, Any] | None = None, **more: Any) -> FrozenConfigDict:
    """A CNN of width 4 for 32 images of 8x8 in 4 classes; changes as for `override`: recipe({"average.decay": 0.9})."""
    base = load_recipe(
        "configs/cnn.py",
        {
            "model": {"name": "cnn", "width": 4, "kernel_size": 3, "hidden": 8},
            "optimizer": {"name": "sgd", "learning_rate": 0.02, "momentum": 0.9},
            "data.validation": 0,
            "dtype": "float32",
            "epochs": 4,
            "batch_size": 8,
            "evaluation.batch_size": 16,
            "checkpoint.every_epochs": 1,
        },
    )
    return resolved(base, {**(changes or {}), **more})


def resolved(recipe: Any, changes: Mapping[str, Any] | None = None) -> FrozenConfigDict:
    """The recipe with `changes`, of which facts of the data set may be some; the others are those of `split()`."""
    facts = {"data.num_classes": CLASSES, "data.image_shape": (SIZE, SIZE, 3), "data.train_count": COUNT}
    flat = flatten(changes or {})
    facts |= {path: flat[path] for path in facts if path in flat}
    facts |= weights_of(recipe, facts["data.num_classes"])
    known = resolve(recipe, facts)
    return freeze(override(known, changes or {}))


def weights_of(recipe: Any, classes: int) -> dict[str, Any]:
    """The fact that `fit` makes of loss.class_weights="balanced" where every class is as frequent."""
    balanced = recipe.loss.get("class_weights") == "balanced"
    return {"loss.class_weights": (1.0,) * classes} if balanced else {}


@functools.cache
def init(recipe: FrozenConfigDict) -> training.TrainState:
    return jit(functools.partial(training.init, recipe))()


def weights(recipe: FrozenConfigDict) -> Any:
    """Evaluated weights and statistics that are no round numbers, drawn without compiling the model's own start."""
    random = np.random.RandomState(1)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        if leaf.ndim > 1:
            drawn = random.normal(size=leaf.shape) / np.prod(leaf.shape[:-1]) ** 0.5
        elif path[-1].key in ("scale", "var"):
            drawn = random.uniform(0.8, 1.2, leaf.shape)
        else:
            drawn = random.normal(size=leaf.shape) / 10
        return drawn.astype(np.float32)

    shapes = jax.eval_shape(lambda: training.evaluated_weights(training.init(recipe)))
    return jax.tree.map_with_path(draw, shapes)


@functools.cache
def step(recipe: FrozenConfigDict) -> Any:
    """train_step of the recipe, compiled: (state, images, labels, index or 0, 1, 2, ...) -> (state, sums)."""

    def numbered(state: training.TrainState, images: Any, labels: Any, index: Any = None) -> Any:
        epoch = state.step // training.steps_per_epoch(recipe)
        batch = Batch(images, labels, np.arange(len(labels)) if index is None else index, epoch)
        return training.train_step(recipe, state, batch)

    return jit(numbered)


@functools.cache
def epoch(recipe: FrozenConfigDict) -> Any:
    """train_epoch of the recipe, compiled: (state, images, labels) -> (state, sums)."""
    return jit(functools.partial(training.train_epoch, recipe))


def loss_and_gradients(recipe: FrozenConfigDict, params: Any, batch_stats: Any, inputs: Any, targets: Any) -> Result:
    """Those of classification, for inputs float32 [B, H, W, C] and targets float32 [B, classes]."""

    def losses(params: Any, batch_stats: Any, part: Any, part_key: Any) -> Any:
        apply = lambda *each: apply_in_training(training.model(recipe), params, *reversed(each[:2]), each[2])
        return classification_losses(recipe, apply, batch_stats, part, None, part_key)

    batch = {"inputs": jnp.asarray(inputs), "targets": jnp.asarray(targets), "labels": jnp.argmax(targets, -1)}
    return accumulated(recipe, losses, params, batch_stats, batch, jax.random.key(0))


def assert_same(left: Any, right: Any) -> None:
    """The same tree, bit for bit."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for (path, a), (_, b) in zip(jax.tree.leaves_with_path(left), jax.tree.leaves_with_path(right), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype, jax.tree_util.keystr(path)
        assert a.shape == b.shape, jax.tree_util.keystr(path)
        assert a.tobytes() == b.tobytes(), jax.tree_util.keystr(path)
