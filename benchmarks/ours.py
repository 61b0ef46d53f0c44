"""Our side of a comparison: a worker (see worker.py) that trains through `cifar_jax.train.train_epoch`, as `fit` does.

It is started by against_torch.py; the process is prepared as launch.py prepares it.
"""

import time
from pathlib import Path
from typing import Any

from worker import cores, serve, usage

import launch

launch.prepare_process()  # before the first import of jax

import flax.linen as nn  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

import cifar_jax as cj  # noqa: E402
from cifar_jax import data, train  # noqa: E402
from cifar_jax.devices import Placement, compute_dtype, jit  # noqa: E402
from cifar_jax.layers import Convolution, max_pool  # noqa: E402
from cifar_jax.recipe import freeze  # noqa: E402


class TwoConv(nn.Module):
    """Two 3x3 convolutions, each with 2x2 max-pooling, and one dense layer."""

    num_classes: int
    width: int = 32  # channels of the first convolution; the second has twice as many
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = images
        for features in (self.width, 2 * self.width):
            x = max_pool(nn.relu(Convolution(features, dtype=self.dtype)(x)))
        return nn.Dense(self.num_classes, dtype=self.dtype)(x.reshape(len(x), -1)).astype(jnp.float32)


class Ours:
    """One training program, compiled once and run from fresh weights as often as wished."""

    def prepare(self, model: dict[str, Any], batch_size: int, steps: int, folder: str) -> dict[str, Any]:
        """Compiles an epoch of configs/cnn.py with this `model` section, on made-up images for `steps` steps, or on
        the recipe's own data set where `steps` is 0. The arrays are left in `folder` for the peer; a `batch_size` of 0
        is the recipe's.

        Returns what the peer needs to do the same, and the seconds that tracing and compiling took.
        """
        name = TwoConv if model["name"] == "two_conv" else model["name"]
        recipe = cj.load_recipe("configs/cnn.py", {"model": {**model, "name": name}})
        batch_size = batch_size or recipe.batch_size
        if steps:
            random = np.random.default_rng(0)
            images = random.integers(0, 256, (steps * batch_size, 32, 32, 3), np.uint8)
            labels = random.integers(0, 10, len(images), np.int32)
        else:
            split = data.load(recipe.data.name, "train", progress=False)
            images, labels = split.images, split.labels
        np.save(Path(folder) / "images.npy", images)
        np.save(Path(folder) / "labels.npy", labels)
        resolved = {
            "batch_size": batch_size,
            "dtype": compute_dtype(recipe.dtype),
            "data.num_classes": 10,
            "data.image_shape": images.shape[1:],
            "data.train_count": len(images),
        }
        recipe = freeze(cj.override(recipe, resolved))

        placement = Placement()
        self.count, self.arrays = len(images), placement.put((images, labels))
        start = time.perf_counter()
        self.init = jit(lambda: train.init(recipe)).lower().compile()
        state = self.init()
        epoch = jit(lambda state, *arrays: train.train_epoch(recipe, state, *arrays), donate_argnums=0)
        self.epoch = epoch.lower(state, *self.arrays).compile()
        seconds = time.perf_counter() - start
        setting = {
            "model": model,
            "batch_size": batch_size,
            "learning_rate": recipe.optimizer.learning_rate,
            "momentum": recipe.optimizer.momentum,
            "mean": list(recipe.data.mean),
            "std": list(recipe.data.std),
        }
        return {
            "setting": setting,
            "ready_seconds": seconds,
            "steps": train.steps_per_epoch(recipe),
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        }

    def train(self, epochs: int) -> dict[str, Any]:
        """Trains from fresh weights, whose drawing is not timed; the sums of each epoch are read once, at its end."""
        state = jax.block_until_ready(self.init())
        start = time.perf_counter()
        for _ in range(epochs):
            state, sums = self.epoch(state, *self.arrays)
            loss, correct = jax.device_get((sums["loss_sum"].sum(), sums["correct"].sum()))
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "loss": float(loss) / self.count, "accuracy": int(correct) / self.count}

    def describe(self) -> dict[str, Any]:
        return {"jax": jax.__version__, "device": str(jax.devices()[0]), "threads": cores(), **usage()}


if __name__ == "__main__":
    ours = Ours()
    serve({"prepare": ours.prepare, "train": ours.train, "describe": ours.describe})
