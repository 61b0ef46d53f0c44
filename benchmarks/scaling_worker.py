"""The worker (see worker.py) of scaling.py: epochs of training at chosen sizes, and the memory of a long run."""

import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from ours import load_recipe  # first: it prepares the process, before jax is imported
from worker import serve, usage

# isort: split
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

import cifar_jax as cj
from cifar_jax import training
from cifar_jax.data.arrays import Split
from cifar_jax.runs.devices import Placement, constraint, jit


class Programs:
    """Compiled epochs, and the states that they train on."""

    def __init__(self) -> None:
        self.programs: list[tuple[Any, tuple[Any, ...]]] = []
        self.states: list[Any] = []

    def prepare(
        self, width: int, batch_size: int, images: int, seeds: int = 1, method: str = "unrolled"
    ) -> dict[str, Any]:
        """Compiles one epoch of `seeds` trainings on made-up images -> its number, its steps, seconds to be ready.

        One training is `training.train_epoch` as `fit` runs it, each batch split over the devices. Several are
        "unrolled" in one program, mapped over ("map", "vmap"), or one on each device ("sharded").
        """
        random = np.random.default_rng(0)
        pixels = random.integers(0, 256, (images, 32, 32, 3), np.uint8)
        labels = random.integers(0, 10, images, np.int32)
        model = {"name": "cnn", "width": width, "kernel_size": 3, "hidden": 64}
        recipe = load_recipe(model, batch_size=batch_size, data__image_shape=(32, 32, 3), data__train_count=images)
        # Several trainings on several devices are kept apart: only one training is split over them.
        placement = Placement(jax.local_devices()[:1] if seeds > 1 and method != "sharded" else None)
        split = placement.batch if seeds == 1 else None
        seeded = lambda seed: cj.override(recipe, {"seed": seed})
        epoch = lambda seed, state, images, labels: training.train_epoch(
            seeded(seed), state, images, labels, constrain=constraint(split)[0]
        )
        many = METHODS[method](epoch, placement)
        numbers = jnp.arange(seeds, dtype=jnp.int32)
        state = placement.put(
            jit(lambda numbers: jax.lax.map(lambda seed: training.init(seeded(seed)), numbers))(numbers)
        )
        arguments = placement.put((numbers, pixels, labels))
        program = jit(many, donate_argnums=1)
        start = time.perf_counter()
        for _ in range(2):  # the second time in the placement that the program gives the state
            state = jax.block_until_ready(program(arguments[0], state, *arguments[1:])[0])
        seconds = time.perf_counter() - start
        self.programs.append((program, arguments))
        self.states.append(state)
        return {"number": len(self.programs) - 1, "steps": training.steps_per_epoch(recipe), "ready_seconds": seconds}

    def run(self, number: int) -> dict[str, Any]:
        """One epoch more."""
        program, (seeds, *arrays) = self.programs[number]
        start = time.perf_counter()
        self.states[number], sums = program(seeds, self.states[number], *arrays)
        jax.device_get(sums)
        return {"seconds": time.perf_counter() - start}

    def memory(self, epochs: int) -> dict[str, Any]:
        """A tiny run of `fit` in a folder of its own, a checkpoint an epoch -> [epoch, resident MiB] after each."""
        random = np.random.default_rng(0)
        classes = ("dark", "bright")

        def made(name: str) -> Split:
            labels = np.arange(64, dtype=np.int32) % 2
            images = (random.integers(0, 128, (64, 8, 8, 3)) + 120 * labels[:, None, None, None]).astype(np.uint8)
            return Split(images, labels, classes, "made", "made", name)

        model = {"name": "cnn", "width": 4, "kernel_size": 3, "hidden": 8}
        fields = {"model": model, "batch_size": 16, "epochs": epochs, "checkpoint.every_epochs": 1}
        recipe = cj.load_recipe("configs/cnn.py", fields)
        with tempfile.TemporaryDirectory() as folder, Sampler(Path(folder) / "run" / "metrics.jsonl") as sampler:
            cj.fit(recipe, Path(folder) / "run", data={name: made(name) for name in ("train", "test")}, progress=False)
        return {"samples": sampler.samples}

    def describe(self) -> dict[str, Any]:
        return {"jax": jax.__version__, "devices": len(jax.devices()), **usage()}


def unrolled(epoch: Any, placement: Placement) -> Any:
    def many(seeds, states, *arrays):
        results = [
            epoch(seed, jax.tree.map(lambda leaf, index=index: leaf[index], states), *arrays)
            for index, seed in enumerate(seeds)
        ]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)

    return many


def mapped(epoch: Any, placement: Placement) -> Any:
    return lambda seeds, states, *arrays: jax.lax.map(lambda given: epoch(*given, *arrays), (seeds, states))


def vmapped(epoch: Any, placement: Placement) -> Any:
    return jax.vmap(epoch, in_axes=(0, 0, None, None))


def sharded(epoch: Any, placement: Placement) -> Any:
    """As many trainings as devices, or a multiple: each device maps over its own."""
    mesh = Mesh(np.array(placement.devices), ("seeds",))
    own, all_of_it = PartitionSpec("seeds"), PartitionSpec()
    specs = (own, own, all_of_it, all_of_it)
    return jax.shard_map(mapped(epoch, placement), mesh=mesh, in_specs=specs, out_specs=own, check_vma=False)


METHODS = {"unrolled": unrolled, "map": mapped, "vmap": vmapped, "sharded": sharded}


class Sampler:
    """Notes this process's resident memory, in MiB, whenever a line has been added to a run's metrics.jsonl."""

    def __init__(self, path: Path) -> None:
        self.path, self.samples, self.over = path, [], threading.Event()  # type: ignore[var-annotated]
        self.thread = threading.Thread(target=self.watch)

    def __enter__(self) -> "Sampler":
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.thread.join()

    def watch(self) -> None:
        size = 0
        while not self.over.wait(0.002):
            if self.path.exists() and (now := self.path.stat().st_size) != size:
                size = now
                resident = int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
                self.samples.append([self.path.read_bytes().count(b"\n"), round(resident, 3)])


if __name__ == "__main__":
    programs = Programs()
    serve(
        {
            "prepare": programs.prepare,
            "run": programs.run,
            "memory": programs.memory,
            "describe": programs.describe,
        }
    )
