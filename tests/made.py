"""Tiny recipes and tiny data, shared by the tests."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import FrozenConfigDict

from cifar_jax.data.arrays import Split
from cifar_jax.recipe import freeze, override
from cifar_jax.runs.devices import jit
from cifar_jax.runs.fit import load_recipe
from cifar_jax.training import step as train

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
            "data": {"num_classes": CLASSES, "image_shape": (SIZE, SIZE, 3), "train_count": COUNT},
            "dtype": "float32",
            "epochs": 4,
            "batch_size": 8,
            "evaluation.batch_size": 16,
        },
    )
    return freeze(override(base, {**(changes or {}), **more}))


@functools.cache
def init(recipe: FrozenConfigDict) -> train.TrainState:
    return jit(functools.partial(train.init, recipe))()


@functools.cache
def step(recipe: FrozenConfigDict) -> Any:
    """train.train_step of the recipe, compiled: (state, images, labels, index or 0, 1, 2, ...) -> (state, sums)."""

    def numbered(state: train.TrainState, images: Any, labels: Any, index: Any = None) -> Any:
        return train.train_step(recipe, state, images, labels, np.arange(len(labels)) if index is None else index)

    return jit(numbered)


@functools.cache
def epoch(recipe: FrozenConfigDict) -> Any:
    """train.train_epoch of the recipe, compiled: (state, images, labels) -> (state, sums)."""
    return jit(functools.partial(train.train_epoch, recipe))


def assert_same(left: Any, right: Any) -> None:
    """The same tree, bit for bit."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for (path, a), (_, b) in zip(jax.tree.leaves_with_path(left), jax.tree.leaves_with_path(right), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype, jax.tree_util.keystr(path)
        assert a.shape == b.shape, jax.tree_util.keystr(path)
        assert a.tobytes() == b.tobytes(), jax.tree_util.keystr(path)
