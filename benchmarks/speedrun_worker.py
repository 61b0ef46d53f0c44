"""The worker (see worker.py) of speedrun.py, our side: whole runs of a recipe, each one compiled program."""

import os
import time
from pathlib import Path
from typing import Any

from worker import serve

from cifar_jax.cli import parse_field
from cifar_jax.process import prepare_process

prepare_process()  # before the first import of jax

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

import cifar_jax as cj  # noqa: E402
from cifar_jax import training  # noqa: E402
from cifar_jax.data import arrays as data  # noqa: E402
from cifar_jax.models.counts import counts  # noqa: E402
from cifar_jax.recipe import resolve  # noqa: E402
from cifar_jax.runs.devices import compute_dtype, jit  # noqa: E402
from cifar_jax.runs.programs import whole_run  # noqa: E402
from cifar_jax.training.check import check  # noqa: E402

SMOKE = {"epochs": 1, "batch_size": 8, "model.widths": (4, 8), "model.whitening_images": 16}
PRODUCTS = 16  # matrix products in a row, so that starting them weighs nothing

Sets = dict[str, tuple[np.ndarray, np.ndarray]]


class Runs:
    """The program is compiled once and run from as many seeds as wished."""

    def arrays(self, folder: str, **asked: Any) -> dict[str, Any]:
        """Leaves the images and labels of both sets in `folder`, for the peers."""
        for split, (images, labels) in self.load(**asked)[1].items():
            np.save(Path(folder) / f"{split}_images.npy", images)
            np.save(Path(folder) / f"{split}_labels.npy", labels)
        return {}

    def load(self, config: str, fields: list[str], smoke: bool, count: int, holdout: int) -> tuple[Any, Sets]:
        """The recipe with what the data decide, and both sets: `count` images, `holdout` of them to evaluate on."""
        changes = dict(parse_field(f"--config.{text}") for text in fields)
        recipe = cj.load_recipe(config, {**changes, **(SMOKE if smoke else {})})
        if smoke:
            random = np.random.default_rng(0)
            images = random.integers(0, 256, (32, 16, 16, 3), np.uint8)
            sets = {"train": (images, np.arange(32, dtype=np.int32) % 10)}
            sets["test"] = sets["train"]
        else:
            splits = {split: data.load(recipe.data.name, split, progress=False) for split in ("train", "test")}
            limits = {"train": count or None, "test": count // 5 or None}
            sets = {split: (all.images[: limits[split]], all.labels[: limits[split]]) for split, all in splits.items()}
        if holdout:  # stratified, and the same images in every process: those of data.validation
            images, labels = sets["train"]
            kept, held = data.hold_out(labels, holdout, recipe.data.seed)
            sets = {"train": (images[kept], labels[kept]), "test": (images[held], labels[held])}
        facts = {
            "data.num_classes": 10,
            "data.image_shape": sets["train"][0].shape[1:],
            "data.train_count": len(sets["train"][0]),
        }
        changes = {"dtype": compute_dtype(recipe.dtype), "data.validation": 0}
        recipe = resolve(cj.override(recipe, changes), facts)
        check(recipe)
        return recipe, sets

    def prepare(self, **asked: Any) -> dict[str, Any]:
        """Compiles the whole run."""
        if os.environ.get("SPEEDRUN_CACHE"):
            jax.config.update("jax_compilation_cache_dir", os.environ["SPEEDRUN_CACHE"])
        recipe, loaded = self.load(**asked)
        sets = jax.device_put(loaded)
        start = time.perf_counter()
        program = jit(lambda seed, sets: whole_run(recipe, seed, sets["train"], sets["test"])[1:])
        program = program.lower(jnp.int32(0), sets).compile()
        self.run = lambda seed: jax.device_get(program(jnp.int32(seed), sets))
        self.test_count = len(sets["test"][0])
        return {
            "compile_seconds": round(time.perf_counter() - start, 2),
            "device": f"{jax.devices()[0].platform} {jax.devices()[0].device_kind}",
            "dtype": recipe.dtype,
            "training_pflop": work(recipe) / 1e15,
        }

    def warm_up(self) -> dict[str, Any]:
        """One run that nobody counts, and the rate that the device reaches in matrix products."""
        self.run(2**31 - 1)
        return {"matmul_tflops": matmul_rate() / 1e12}

    def train(self, seeds: list[int]) -> dict[str, Any]:
        """One run for each seed; the clock stops when the accuracy is on the host."""
        runs = []
        for seed in seeds:
            start = time.perf_counter()
            sums, seen = self.run(seed)
            seconds = time.perf_counter() - start
            accuracy = float(np.trace(seen["confusion"])) / self.test_count
            finite = bool(np.isfinite(sums["loss_sum"]).all())
            runs.append({"seed": seed, "accuracy": accuracy, "seconds": seconds, "finite": finite})
        return {"runs": runs}


def work(recipe: Any) -> float:
    """FLOPs of a run's training, counted: forward, and twice as much backward, though the gradient by a frozen first
    layer's inputs falls away. The proxy of a selection sees every image, and learns from the chosen ones in some steps.
    """
    selected = recipe.selection.share
    shape = recipe.data.image_shape
    an_image = 3 * counts(training.model(recipe), shape)[1] * (selected or 1)
    if selected:
        an_image += counts(training.model(recipe, "proxy"), shape)[1] * (1 + 2 * selected / recipe.selection.every)
    return 2 * recipe.epochs * training.steps_per_epoch(recipe) * recipe.batch_size * an_image


def matmul_rate() -> float:
    """FLOP/s of large matrix products one after another, random operands, the best of five."""
    size, dtype = (8192, jnp.bfloat16) if jax.default_backend() == "gpu" else (1024, jnp.float32)
    square = jax.random.normal(jax.random.key(0), (size, size), dtype) / size**0.5
    products = jax.jit(lambda square: jax.lax.fori_loop(0, PRODUCTS, lambda _, x: x @ square, square))
    times = []
    for _ in range(6):
        start = time.perf_counter()
        jax.block_until_ready(products(square))
        times.append(time.perf_counter() - start)
    return 2 * size**3 * PRODUCTS / min(times[1:])


if __name__ == "__main__":
    runs = Runs()
    serve({"arrays": runs.arrays, "prepare": runs.prepare, "warm_up": runs.warm_up, "train": runs.train})
