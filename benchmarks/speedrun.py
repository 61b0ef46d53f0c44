"""The speedrun: whole runs of a recipe, each one compiled program, beside the programs that hold the records.

    python benchmarks/speedrun.py --runs=50                                # ours alone, configs/speedrun94.py
    python benchmarks/speedrun.py --runs=25 --peer airbench=A/airbench94_muon.py --peer hiverge=H/cifar10_speedrun.py
    python benchmarks/speedrun.py --config=configs/speedrun96.py --runs=6 --peer airbench=A/airbench96_faster.py
    python benchmarks/speedrun.py --runs=1 --images=4000 --field epochs=1 gradient_accumulation=8 model.momentum=0.938 \
        --peer torch=benchmarks/torch_speedrun.py --peer-python=PATH --peer-setting SPEEDRUN_EPOCHS=1  # on a CPU
    python benchmarks/speedrun.py --runs=20 --holdout=5000 --field model.activation=silu    # to choose settings by
    python benchmarks/speedrun.py --processes --peer airbench=A/airbench94_muon.py    # the other two clocks
    python benchmarks/speedrun.py --smoke                                  # a tiny network, for errors only

A peer is its author's file, fetched by you; only its count of runs is changed, in a copy. All sides train on the same
images (TFDS_DATA_DIR), in blocks of --runs that go A B C C B A. Three clocks: a run, warm, its data on the device, from
the start of the training to the accuracy with all views; and, by --processes, the whole process of one run with empty
caches of compiled programs, and with those that it left. Writes speedrun_<recipe>.json to --out after each block, and
the table over them; settings other than the recipe's stand in its name, so do the peers where there is only one.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from worker import HERE, Worker, serve

SMOKE = {"epochs": 1, "batch_size": 8, "model.widths": (4, 8), "model.whitening_images": 16}
BLOCK = re.compile(r"range\(200\)")  # how every peer counts its runs


def main() -> int:
    options = parse()
    peers = dict(text.split("=", 1) for text in options.peer)
    for path in peers.values():
        if not Path(path).is_file() or not BLOCK.search(Path(path).read_text()):
            print(f"error: '{path}' is not a peer's program: it must hold 'range(200)', its runs", file=sys.stderr)
            return 2
    if peers and options.holdout:
        print("error: --holdout evaluates on other images than the peers do; leave --peer out", file=sys.stderr)
        return 2
    name, published = Path(options.config).stem, not (options.smoke or options.holdout)
    record: dict[str, Any] = {"recipe": name, "date": date.today().isoformat(), "sides": {}}
    record["settings"] = [*options.field, *([f"images={options.images}"] if options.images else [])]
    record["torch"] = torch_versions(options.peer_python) if peers else ""
    with tempfile.TemporaryDirectory() as folder:
        ours = Worker(sys.executable, "speedrun.py", {"SPEEDRUN_WORKER": "1"})
        record["ready"] = ours.ask("prepare", **asked(options), folder=folder)
        if options.processes:
            ours.close()
            processes(options, record, peers, Path(folder))
            return 0
        order = ["ours", *peers]
        for number, side in enumerate([*order, *reversed(order)]):
            seeds = list(range(options.seed + number * options.runs, options.seed + (number + 1) * options.runs))
            block = (
                ours.ask("train", seeds=seeds)
                if side == "ours"
                else run_peer(options, peers[side], Path(folder), options.runs)
            )
            record["sides"].setdefault(side, []).append({**block, "machine_after": machine()})
            print(describe(record), flush=True)
            if published:
                write(options, record, name, peers)
        ours.close()
    return 0


def processes(options: argparse.Namespace, record: dict[str, Any], peers: dict[str, str], folder: Path) -> None:
    """Each side's whole process with one run, from empty caches of compiled programs and from those that it left."""
    record["processes"] = {}
    for side in ("ours", *peers):
        cache, clocks = folder / f"compiled_{side}", {}
        for state in ("cold", "warm"):
            if side == "ours":
                clocks[state] = whole_process(options, str(cache))
            else:
                caches = {"TORCHINDUCTOR_CACHE_DIR": str(cache), "TRITON_CACHE_DIR": str(cache / "triton")}
                block = run_peer(options, peers[side], folder, 1, caches)
                clocks[state] = {"seconds": block["process_seconds"], **block}
        record["processes"][side] = clocks
        print(f"{side}: process {clocks['cold']['seconds']} s cold, {clocks['warm']['seconds']} s warm", flush=True)
    if not options.smoke:
        options.out.mkdir(parents=True, exist_ok=True)
        file = options.out / f"speedrun_{Path(options.config).stem}_processes.json"
        file.write_text(json.dumps(record, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/speedrun94.py")
    parser.add_argument("--field", nargs="*", default=[], help="recipe fields: gradient_accumulation=8")
    parser.add_argument("--runs", type=int, default=25, help="of each side in each of its two blocks")
    parser.add_argument("--seed", type=int, default=0, help="of the first of our runs; the others follow")
    parser.add_argument("--peer", action="append", default=[], help="NAME=FILE, once for each")
    parser.add_argument(
        "--images", type=int, default=0, help="of the training set, and a fifth of the test set; 0: all"
    )
    parser.add_argument(
        "--holdout", type=int, default=0, help="evaluate on so many training images, held out; writes nothing"
    )
    parser.add_argument("--processes", action="store_true", help="whole processes, cold and warm, in place of runs")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    parser.add_argument("--limit", type=float, help="seconds after which a peer's block is given up")
    parser.add_argument("--peer-python", default=sys.executable, help="the Python that has torch and torchvision")
    parser.add_argument("--peer-setting", nargs="*", default=[], help="of its environment: SPEEDRUN_EPOCHS=1")
    parser.add_argument("--smoke", action="store_true", help="a tiny network and made-up images; writes nothing")
    options = parser.parse_args()
    options.runs = 2 if options.smoke else options.runs
    options.peer_python = os.path.abspath(shutil.which(options.peer_python) or options.peer_python)
    return options


def asked(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "config": options.config,
        "fields": options.field,
        "smoke": options.smoke,
        "count": options.images,
        "holdout": options.holdout,
    }


def whole_process(options: argparse.Namespace, cache: str) -> dict[str, Any]:
    """One run in a process of its own, from its start to its end; `cache` is an empty folder for compiled programs."""
    start = time.perf_counter()
    worker = Worker(sys.executable, "speedrun.py", {"SPEEDRUN_WORKER": "1", "SPEEDRUN_CACHE": cache})
    ready = worker.ask("prepare", **asked(options), folder="")
    to_first_step = time.perf_counter() - start
    block = worker.ask("train", seeds=[options.seed])
    worker.close()
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "seconds_to_first_step": round(to_first_step, 2),
        "compile_seconds": ready["compile_seconds"],
        **block,
    }


def torch_versions(python: str) -> str:
    code = "import torch; print(torch.__version__, 'CUDA', torch.version.cuda, 'cuDNN', torch.backends.cudnn.version())"
    return "torch " + subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.strip()


def run_peer(
    options: argparse.Namespace, path: str, folder: Path, count: int, variables: dict[str, str] | None = None
) -> dict[str, Any]:
    """A block of the peer's runs. One that compiles, with no warm-up of its own, makes one more, which is dropped."""
    copy, text = folder / Path(path).name, Path(path).read_text()
    extra = int("torch.compile" in text and '"warmup"' not in text and not options.processes)
    copy.write_text(BLOCK.sub(f"range({count + extra})", text))
    saver = (
        "import numpy, torch, sys\n"
        "for split in ('train', 'test'):\n"
        "    images, labels = (torch.from_numpy(numpy.load(f'{split}_{kind}.npy')) for kind in ('images', 'labels'))\n"
        "    classes = 'airplane automobile bird cat deer dog frog horse ship truck'.split()\n"
        "    torch.save({'images': images, 'labels': labels.long(), 'classes': classes}, f'cifar10/{split}.pt')\n"
    )
    if not (folder / "cifar10").exists():
        (folder / "cifar10").mkdir()
        subprocess.run([options.peer_python, "-c", saver], cwd=folder, check=True)
    start = time.perf_counter()
    known = {"SPEEDRUN_BENCHMARKS": str(HERE), **dict(text.split("=") for text in options.peer_setting)}
    environment = {**os.environ, **known, **(variables or {})}
    done = subprocess.run(
        [options.peer_python, copy.name],
        cwd=folder,
        capture_output=True,
        text=True,
        env=environment,
        timeout=options.limit,
    )
    seconds = time.perf_counter() - start
    rows = [line.split("|") for line in done.stdout.splitlines() if re.search(r"\|\s+eval\s+\|", line)]
    runs = [{"accuracy": float(row[-3]), "seconds": float(row[-2])} for row in rows][-count:]
    if len(runs) < count:
        raise RuntimeError(f"{path} printed {len(runs)} of {count} runs:\n{done.stdout}\n{done.stderr}"[-4000:])
    return {"runs": runs, "process_seconds": round(seconds, 2)}


def machine() -> dict[str, Any]:
    """The accelerator with its driver and clocks as it stands, or the processor."""
    query = "name,driver_version,clocks.sm,clocks.mem,power.limit,temperature.gpu"
    try:
        seen = subprocess.run(["nvidia-smi", f"--query-gpu={query}", "--format=csv"], capture_output=True, text=True)
        return {"gpu": seen.stdout.splitlines()}
    except FileNotFoundError:
        return {"cpus": os.cpu_count()}


def figures(blocks: list[dict[str, Any]]) -> dict[str, float]:
    """Mean accuracy with its one-sided 95% lower bound, mean and median of the seconds, and diverged runs, over all."""
    runs = [run for block in blocks for run in block["runs"]]
    accuracies, seconds = [run["accuracy"] for run in runs], [run["seconds"] for run in runs]
    deviation = statistics.stdev(accuracies) if len(runs) > 1 else float("nan")
    mean = statistics.fmean(accuracies)
    return {
        "n": len(runs),
        "accuracy": mean,
        "deviation": deviation,
        "lower_bound": mean - 1.645 * deviation / len(runs) ** 0.5,
        "seconds": statistics.fmean(seconds),
        "median_seconds": statistics.median(seconds),
        "diverged": sum(not run.get("finite", True) for run in runs),
    }


def describe(record: dict[str, Any]) -> str:
    lines = [f"{record['recipe']} {' '.join(record['settings'])} on {record['ready']['device']}"]
    known = {side: figures(blocks) for side, blocks in record["sides"].items()}
    for side, seen in known.items():
        accuracy = f"{seen['accuracy']:.4%} ± {seen['deviation']:.4%}, lower bound {seen['lower_bound']:.4%}"
        ratio = f", ours / {side} {known['ours']['seconds'] / seen['seconds']:.3f}" if side != "ours" else ""
        seconds = f"{seen['seconds']:.3f} s (median {seen['median_seconds']:.3f})"
        diverged = f", {seen['diverged']} diverged" if seen["diverged"] else ""
        lines.append(f"  {side:10} {seconds}, {accuracy}, n={seen['n']}{diverged}{ratio}")
    rate = record["ready"]["training_pflop"] / known["ours"]["median_seconds"]
    lines.append(f"  ours: {record['ready']['training_pflop']:.3f} PFLOP of training, {1e3 * rate:.1f} TFLOP/s;")
    lines[-1] += f" matrix products here reach {record['ready']['matmul_tflops']:.1f} TFLOP/s"
    return "\n".join(lines)


def write(options: argparse.Namespace, record: dict[str, Any], name: str, peers: dict[str, str]) -> None:
    parts = [name, *(peers if len(peers) == 1 else []), *record["settings"]]
    file = options.out / f"speedrun_{re.sub(r'[^A-Za-z0-9.=-]', '_', '_'.join(parts))}"
    options.out.mkdir(parents=True, exist_ok=True)
    Path(f"{file}.json").write_text(json.dumps(record, indent=1) + "\n")
    Path(f"{file}.md").write_text(table(record))


def table(record: dict[str, Any]) -> str:
    rows = [
        "| side | n | accuracy | one-sided 95% lower bound | s a run, mean (median) | ours ÷ it |",
        "|---|---|---|---|---|---|",
    ]
    known = {side: figures(blocks) for side, blocks in record["sides"].items()}
    for side, seen in known.items():
        ratio = known["ours"]["seconds"] / seen["seconds"]
        rows.append(
            f"| {side} | {seen['n']} | {seen['accuracy']:.4%} ± {seen['deviation']:.4%} | {seen['lower_bound']:.4%} |"
            f" {seen['seconds']:.3f} ({seen['median_seconds']:.3f}) | {ratio:.3f} |"
        )
    ready, diverged = record["ready"], {side: seen["diverged"] for side, seen in known.items() if seen["diverged"]}
    recipe = " ".join([record["recipe"], *record["settings"]])
    note = [f"{recipe}, {ready['dtype']}", ready["device"], f"jax {ready['jax']}", record["torch"], record["date"]]
    note += [f"diverged runs, counted with the others: {diverged}"] if diverged else []
    return "; ".join(filter(None, note)) + "\n\n" + "\n".join(rows) + "\n"


class Runs:
    """Our side: the program is compiled once and run from as many seeds as wished."""

    def prepare(
        self, config: str, fields: list[str], smoke: bool, count: int, holdout: int, folder: str
    ) -> dict[str, Any]:
        """Compiles the whole run, and runs it once; leaves the arrays in `folder` for the peers."""
        import launch

        launch.prepare_process()
        import jax
        import jax.numpy as jnp
        import numpy as np

        import cifar_jax as cj
        from cifar_jax import data, train
        from cifar_jax.check import check
        from cifar_jax.counts import counts
        from cifar_jax.devices import compute_dtype, jit
        from cifar_jax.recipe import freeze
        from cifar_jax.run import whole_run

        if os.environ.get("SPEEDRUN_CACHE"):
            jax.config.update("jax_compilation_cache_dir", os.environ["SPEEDRUN_CACHE"])
        changes = dict(launch.parse_field(f"--config.{text}") for text in fields)
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
        resolved = {
            "dtype": compute_dtype(recipe.dtype),
            "data.validation": 0,
            "data.num_classes": 10,
            "data.image_shape": sets["train"][0].shape[1:],
            "data.train_count": len(sets["train"][0]),
        }
        recipe = freeze(cj.override(recipe, resolved))
        check(recipe)
        if folder:
            for split, (images, labels) in sets.items():
                np.save(Path(folder) / f"{split}_images.npy", images)
                np.save(Path(folder) / f"{split}_labels.npy", labels)
        sets = jax.device_put(sets)
        start = time.perf_counter()
        program = jit(lambda seed, sets: whole_run(recipe, seed, sets["train"], sets["test"])[1:])
        program = program.lower(jnp.int32(0), sets).compile()
        self.run = lambda seed: jax.device_get(program(jnp.int32(seed), sets))
        self.test_count = len(sets["test"][0])
        # Forward and twice as much backward, though the gradient of a frozen first layer's outputs falls away.
        _, multiply_adds = counts(train.model(recipe), recipe.data.image_shape)
        images, share, proxy = train.steps_per_epoch(recipe) * recipe.batch_size * recipe.epochs, 1.0, 0.0
        if recipe.selection.share:  # the proxy sees every image, and learns from the chosen ones in some steps
            share = recipe.selection.share
            work = counts(train.model(recipe, "proxy"), recipe.data.image_shape)[1]
            proxy = work * (1 + 2 * share / recipe.selection.every)
        size, dtype = (8192, jnp.bfloat16) if jax.default_backend() == "gpu" else (1024, jnp.float32)
        answer = {
            "compile_seconds": round(time.perf_counter() - start, 2),
            "device": f"{jax.devices()[0].platform} {jax.devices()[0].device_kind}",
            "jax": jax.__version__,
            "dtype": recipe.dtype,
            "training_pflop": 2 * images * (share * 3 * multiply_adds + proxy) / 1e15,
            "matmul_tflops": self.matmul_rate(size, dtype) / 1e12 if folder else float("nan"),
        }
        if folder:
            self.run(2**31 - 1)  # a warm-up
        return answer

    def matmul_rate(self, size: int, dtype: Any) -> float:
        """FLOP/s of a large matrix product here, random operands, the best of five."""
        import jax
        import jax.numpy as jnp

        square = jax.random.normal(jax.random.key(0), (size, size), dtype)
        product = jax.jit(jnp.matmul)
        times = []
        for _ in range(6):
            start = time.perf_counter()
            jax.block_until_ready(product(square, square))
            times.append(time.perf_counter() - start)
        return 2 * size**3 / min(times[1:])

    def train(self, seeds: list[int]) -> dict[str, Any]:
        """One run for each seed; the clock stops when the accuracy is on the host."""
        import numpy as np

        runs = []
        for seed in seeds:
            start = time.perf_counter()
            sums, seen = self.run(seed)
            seconds = time.perf_counter() - start
            accuracy = float(np.trace(seen["confusion"])) / self.test_count
            finite = bool(np.isfinite(sums["loss_sum"]).all())
            runs.append({"seed": seed, "accuracy": accuracy, "seconds": seconds, "finite": finite})
        return {"runs": runs}


if __name__ == "__main__":
    if os.environ.get("SPEEDRUN_WORKER"):
        runs = Runs()
        serve({"prepare": runs.prepare, "train": runs.train})
    else:
        sys.exit(main())
