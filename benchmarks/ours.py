"""Our side of a comparison: a worker (see worker.py) that trains through `training.train_epoch`, as `fit` does, and
gives logits through `Classifier.logits`, as a user calls it.

It is started by against_torch.py; the process is prepared by `cj.prepare_process`.
"""

import time
from pathlib import Path
from typing import Any

from worker import cores, serve, usage

from cifar_jax.process import prepare_process

prepare_process()  # before the first import of jax

import flax.linen as nn  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from flax.traverse_util import flatten_dict  # noqa: E402

import cifar_jax as cj  # noqa: E402
from cifar_jax import training  # noqa: E402
from cifar_jax.data import arrays as data  # noqa: E402
from cifar_jax.models.kernels import max_pool  # noqa: E402
from cifar_jax.models.layers import Convolution  # noqa: E402
from cifar_jax.recipe import freeze, resolve  # noqa: E402
from cifar_jax.runs.devices import Placement, compute_dtype, jit  # noqa: E402
from cifar_jax.training import evaluation  # noqa: E402

# The comparison: images, steps on them, learning rate. At ten times the rate and three steps PyTorch's own float32 and
# float64 part by 1.2% of the way in resnet20, at this one by 0.1%: rounding switches a few ReLUs.
CHECKED, CHECK_STEPS, CHECK_RATE = 16, 2, 0.005
BATCHES = 4  # that inference is given in turn


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


class Tutorial(nn.Module):
    """The network of PyTorch's "60 minute blitz": 5x5 convolutions without padding, three dense layers."""

    num_classes: int
    widths: tuple[int, ...] = (6, 16)  # channels of each convolution
    hidden: tuple[int, ...] = (120, 84)  # units of each hidden layer
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = images
        for features in self.widths:
            x = nn.relu(max_pool(Convolution(features, (5, 5), padding="VALID", dtype=self.dtype)(x)))
        x = x.reshape(len(x), -1)
        for units in self.hidden:
            x = nn.relu(nn.Dense(units, dtype=self.dtype)(x))
        return nn.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)


NETWORKS = {"two_conv": TwoConv, "tutorial": Tutorial}  # those that cifar_jax.models does not have


def in_order(recipe: Any, params: Any) -> list[np.ndarray]:
    """The parameters in the order of their creation, which is the order in which images pass them."""
    paths: list[tuple[str, ...]] = []

    def look() -> None:  # a tree that leaves a traced function is sorted by name, so its paths are taken inside
        images = jnp.zeros((1, *recipe.data.image_shape))
        paths.extend(flatten_dict(training.model(recipe).init(jax.random.key(0), images, train=False)["params"]))

    jax.eval_shape(look)
    flat = flatten_dict(jax.device_get(params))
    return [flat[path] for path in paths]


def statistics_of_data(state: training.TrainState) -> dict[str, np.ndarray]:
    """What a network starts from beside its parameters: the whitening filters of the speedrun networks."""
    return {name: np.asarray(value) for name, value in state.batch_stats.items() if not isinstance(value, dict)}


def load_recipe(model: dict[str, Any], **fields: Any) -> Any:
    """configs/cnn.py with this `model` section, and what a data set would decide."""
    name = NETWORKS.get(model["name"], model["name"])
    recipe = cj.load_recipe("configs/cnn.py", {"model": {**model, "name": name}})
    fields = {name.replace("__", "."): value for name, value in fields.items() if value}
    facts: dict[str, Any] = {
        path: fields.pop(path) for path in ("data.image_shape", "data.train_count") if path in fields
    }
    changed = cj.override(recipe, {"dtype": compute_dtype(recipe.dtype), **fields})
    return resolve(changed, {**facts, "data.num_classes": 10})


def setting(recipe: Any, model: dict[str, Any]) -> dict[str, Any]:
    """What the peer needs to know of the recipe."""
    return {
        "model": model,
        "batch_size": recipe.batch_size,
        "learning_rate": recipe.optimizer.learning_rate,
        "momentum": recipe.optimizer.momentum,
        "mean": list(recipe.data.mean),
        "std": list(recipe.data.std),
    }


def parameter_count(state: training.TrainState) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(state.params))


class Ours:
    """One training program, compiled once and run from fresh weights as often as wished; or one model for inference."""

    def prepare(self, model: dict[str, Any], batch_size: int, steps: int, folder: str) -> dict[str, Any]:
        """Compiles an epoch of configs/cnn.py with this `model` section, on made-up images for `steps` steps, or on
        the recipe's own data set where `steps` is 0. The arrays are left in `folder` for the peer; a `batch_size` of 0
        is the recipe's.

        Returns what the peer needs to do the same, and the seconds that tracing and compiling took.
        """
        recipe = load_recipe(model, batch_size=batch_size)
        if steps:
            random = np.random.default_rng(0)
            images = random.integers(0, 256, (steps * recipe.batch_size, 32, 32, 3), np.uint8)
            labels = random.integers(0, 10, len(images), np.int32)
        else:
            split = data.load(recipe.data.name, "train", progress=False)
            images, labels = split.images, split.labels
        np.save(Path(folder) / "images.npy", images)
        np.save(Path(folder) / "labels.npy", labels)
        recipe = load_recipe(
            model, batch_size=batch_size, data__image_shape=images.shape[1:], data__train_count=len(images)
        )
        self.count, self.arrays = len(images), Placement().put((images, labels))
        start = time.perf_counter()
        self.init = jit(lambda: training.init(recipe)).lower().compile()
        state = self.init()
        epoch = jit(lambda state, *arrays: training.train_epoch(recipe, state, *arrays), donate_argnums=0)
        self.epoch = epoch.lower(state, *self.arrays).compile()
        seconds = time.perf_counter() - start
        self.check(recipe, Path(folder) / "check.npz", images[:CHECKED], labels[:CHECKED])
        return {
            "setting": setting(recipe, model),
            "ready_seconds": seconds,
            "steps": training.steps_per_epoch(recipe),
            "parameters": parameter_count(state),
        }

    def check(self, recipe: Any, path: Path, images: np.ndarray, labels: np.ndarray) -> None:
        """Leaves what the peer needs to show that it trains the same network by the same rule: a batch, the weights,
        and the weights after some steps on that batch."""
        recipe = freeze(cj.override(recipe, {"optimizer.learning_rate": CHECK_RATE, "dtype": "float32"}))
        batch_of = lambda images, labels, index: cj.Batch(images, labels, index, jnp.int32(0))
        step = jit(lambda state, *batch: training.train_step(recipe, state, batch_of(*batch)))
        states = [self.init()]
        with jax.default_matmul_precision("highest"):  # a GPU's float32 would be TF32, and far from the peer's
            for _ in range(CHECK_STEPS):
                states.append(step(states[-1], images, labels, np.arange(len(images)))[0])
        before, after = (in_order(recipe, state.params) for state in (states[0], states[-1]))
        numbers = {"steps": CHECK_STEPS, "learning_rate": CHECK_RATE}
        save(path, before, statistics_of_data(states[0]), after=after, images=images, labels=labels, **numbers)

    def train(self, epochs: int) -> dict[str, Any]:
        """Trains from fresh weights, whose drawing is not timed; the sums of each epoch are read once, at its end."""
        state = jax.block_until_ready(self.init())
        start = time.perf_counter()
        for _ in range(epochs):
            state, sums = self.epoch(state, *self.arrays)
            loss, correct = jax.device_get((sums["loss_sum"].sum(), sums["correct"].sum()))
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "loss": float(loss) / self.count, "accuracy": int(correct) / self.count}

    def prepare_inference(self, model: dict[str, Any], batch_size: int, folder: str) -> dict[str, Any]:
        """A model with fresh weights, and made-up batches to give it in turn, which are left in `folder` for the peer
        with the weights and the first batch's logits."""
        images = np.random.default_rng(0).integers(0, 256, (BATCHES, batch_size, 32, 32, 3), np.uint8)
        recipe = load_recipe(model, batch_size=batch_size, data__image_shape=images.shape[2:], data__train_count=1)
        state = jit(lambda: training.init(recipe))()
        classes = tuple(str(number) for number in range(recipe.data.num_classes))
        start = time.perf_counter()
        self.classifier = cj.Classifier(recipe, Placement().put(training.evaluated_weights(state)), classes)
        logits = self.classifier.logits(images[0])
        seconds = time.perf_counter() - start
        self.batches, self.placed = list(images), [Placement().put(batch) for batch in images]
        program = jit(lambda state, batch: evaluation.logits(recipe, training.evaluated_weights(state), batch))
        self.state = state
        self.program = program.lower(state, self.placed[0]).compile()
        np.save(Path(folder) / "images.npy", images)
        weights = in_order(recipe, state.params)
        save(Path(folder) / "check.npz", weights, statistics_of_data(state), logits=logits)
        return {
            "setting": setting(recipe, model),
            "ready_seconds": seconds,
            "parameters": parameter_count(state),
        }

    def infer(self, calls: int, alone: bool = False) -> dict[str, Any]:
        """The seconds of each call, from images in NumPy to logits in NumPy; `alone` the compiled function only, on
        images that lie on the device."""
        batches = self.placed if alone else self.batches
        seconds = []
        for number in range(calls):
            start = time.perf_counter()
            if alone:
                np.asarray(self.program(self.state, batches[number % BATCHES]))
            else:
                self.classifier.logits(batches[number % BATCHES])
            seconds.append(time.perf_counter() - start)
        return {"seconds": seconds}

    def describe(self) -> dict[str, Any]:
        return {"jax": jax.__version__, "device": jax.devices()[0].device_kind, "threads": cores(), **usage()}


def save(path: Path, weights: list[np.ndarray], buffers: dict[str, np.ndarray], **arrays: Any) -> None:
    """The peer's starting point: before0, before1, ... in order; a list among `arrays` likewise."""
    lists = {"before": weights, **{name: value for name, value in arrays.items() if isinstance(value, list)}}
    flat = {f"{name}{index}": array for name, given in lists.items() for index, array in enumerate(given)}
    plain = {name: value for name, value in arrays.items() if name not in lists}
    names = {"count": len(weights), "buffers": np.array(list(buffers), str)}
    everything: dict[str, Any] = {**names, **flat, **plain, **buffers}
    np.savez(path, **everything)


if __name__ == "__main__":
    ours = Ours()
    serve(
        {
            "prepare": ours.prepare,
            "train": ours.train,
            "prepare_inference": ours.prepare_inference,
            "infer": ours.infer,
            "describe": ours.describe,
        }
    )
