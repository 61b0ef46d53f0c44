"""The speedrun: whole runs of a recipe, each one compiled program, beside the programs that hold the records.

    python benchmarks/speedrun.py --runs=25 --peer airbench=A/airbench94_muon.py
    python benchmarks/speedrun.py --runs=25 --peer hiverge=H/cifar10_speedrun.py
    python benchmarks/speedrun.py --config=configs/speedrun96.py --runs=3 --peer airbench=A/airbench96_faster.py
    python benchmarks/speedrun.py --processes --peer airbench=A/airbench94_muon.py    # the other two clocks
    python benchmarks/speedrun.py --runs=20 --holdout=5000 --config.model.activation=silu    # to choose settings by
    python benchmarks/speedrun.py --runs=1 --limit=1800 --config.epochs=1 \
        --config.gradient_accumulation=8 --config.model.momentum=0.938 \
        --peer torch=benchmarks/torch_speedrun.py --peer-python=PATH --peer-setting SPEEDRUN_EPOCHS=1  # on a CPU
    python benchmarks/speedrun.py --smoke                                  # a tiny network, for errors only

A peer is its author's file, fetched by you; only its count of runs is changed, in a copy. A call is a sitting: all
sides train on the same images (TFDS_DATA_DIR), in blocks of --runs that go A B C C B A, until --limit. The same command
again is another sitting, with other seeds, and adds to the results. Three clocks: a run, warm, its data on the device,
from the start of the training to the accuracy with all views; and, by --processes, the whole process of one run with
empty caches of compiled programs ("cold"), and with those that it left ("warm"). A peer that warms up does so
there too.

Writes speedrun_<recipe>.json to --out after each block, and the table over it, of the sittings that had the same code,
versions and machine as the last; settings other than the recipe's stand in its name.
"""

import argparse
import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from measuring import commit, machine, recipe_fields
from worker import HERE, Worker

WORKER, SMOKE_RUNS = "speedrun_worker.py", 2
BLOCK = re.compile(r"range\(200\)")  # how every peer counts its runs
LIKE = ("device", "dtype", "cpu", "cores", "python", "versions")  # what sittings must have in common to be pooled


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
    record = read(options)
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(Worker(sys.executable, WORKER)) as ours:
        if peers:
            ours.ask("arrays", folder=folder, **asked(options))
        sitting = {**ours.ask("prepare", **asked(options)), **machine(), "versions": versions(options)}
        sitting |= {"commit": commit()}
        sitting |= {"peers": {side: identity(options, path) for side, path in peers.items()}}
        sitting["seed"] = next_seed(record, sitting)  # of the first of our runs; the others follow
        record["sittings"].append(sitting)
        given = options, peers, Path(folder)
        if options.processes:
            ours.close()  # which would hold the device
            kind, parts = "processes", functools.partial(processes, *given, sitting["seed"])
        else:
            sitting |= ours.ask("warm_up")
            kind, parts = "blocks", functools.partial(block, *given, ours, sitting["seed"])
        try:
            there_and_back(options, record, kind, ["ours", *peers], parts)
        except PeerError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0


class PeerError(RuntimeError):
    """A peer's program made no run."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/speedrun94.py")
    parser.add_argument("--runs", type=int, default=25, help="of each side in each of its two blocks")
    parser.add_argument("--peer", action="append", default=[], help="NAME=FILE, once for each")
    parser.add_argument(
        "--images", type=int, default=0, help="of the training set, and a fifth of the test set; 0: all"
    )
    parser.add_argument(
        "--holdout", type=int, default=0, help="evaluate on so many training images, held out; writes nothing"
    )
    parser.add_argument("--processes", action="store_true", help="whole processes, cold and warm, in place of runs")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    parser.add_argument(
        "--limit", type=float, default=540.0, help="seconds; no block starts that would not end by then"
    )
    parser.add_argument("--peer-python", default=sys.executable, help="the Python that has torch and torchvision")
    parser.add_argument("--peer-setting", nargs="*", default=[], help="of its environment: SPEEDRUN_EPOCHS=1")
    parser.add_argument("--smoke", action="store_true", help="a tiny network and made-up images; writes nothing")
    arguments, changes = recipe_fields(sys.argv[1:])
    options = parser.parse_args(arguments)
    options.field = [f"{field}={value}" for field, value in changes.items()]
    options.begin = time.perf_counter()
    options.runs = SMOKE_RUNS if options.smoke else options.runs
    options.peer_python = os.path.abspath(shutil.which(options.peer_python) or options.peer_python)
    return options


def asked(options: argparse.Namespace) -> dict[str, Any]:
    """What the worker is to load."""
    names = {"config": "config", "fields": "field", "smoke": "smoke", "count": "images", "holdout": "holdout"}
    return {name: getattr(options, option) for name, option in names.items()}


def there_and_back(
    options: argparse.Namespace, record: dict[str, Any], kind: str, sides: list[str], parts: Callable[..., Any]
) -> None:
    """The parts of each side, A B B A, in the last sitting's list `kind`; each is kept as it ends."""
    sitting, took = record["sittings"][-1], dict.fromkeys(sides, 0.0)
    sitting[kind] = []
    for number, side in enumerate([*sides, *reversed(sides)]):
        if not in_time(options, took[side], f"the second turn of {side}"):
            return
        start = time.perf_counter()
        for part in parts(side, number):
            sitting[kind].append({"side": side, **part})
            keep(options, record, sitting)
        took[side] = time.perf_counter() - start


def block(
    options: argparse.Namespace, peers: dict[str, str], folder: Path, ours: Worker, first: int, side: str, number: int
) -> Iterator[dict[str, Any]]:
    """Warm runs; ours have the seeds from `first` on, in our second turn the next ones."""
    with clocks() as seen:
        if side == "ours":
            start = first + options.runs * (number > 0)
            runs = ours.ask("train", seeds=list(range(start, start + options.runs)))
        else:
            runs = run_peer(options, peers[side], folder, options.runs)
    yield {**runs, **seen}


def processes(
    options: argparse.Namespace, peers: dict[str, str], folder: Path, seed: int, side: str, number: int
) -> Iterator[dict[str, Any]]:
    """Whole processes with one run: from empty caches of compiled programs, then from those that it left."""
    cache = folder / f"compiled_{number}"
    for state in ("cold", "warm"):
        if side == "ours":
            clock = whole_process(options, str(cache), seed)
        else:
            caches = {"TORCHINDUCTOR_CACHE_DIR": str(cache), "TRITON_CACHE_DIR": str(cache / "triton")}
            runs = run_peer(options, peers[side], folder, 1, caches)
            clock = {"seconds": runs["process_seconds"], **runs}
        yield {"state": state, **clock}


def in_time(options: argparse.Namespace, seconds: float, what: str) -> bool:
    fits = time.perf_counter() - options.begin + seconds <= options.limit
    if not fits:
        print(f"{what} would not end within {options.limit:.0f} s; the same command again adds to the results")
    return fits


def whole_process(options: argparse.Namespace, cache: str, seed: int) -> dict[str, Any]:
    """One run in a process of its own, from its start to its end; `cache` is a folder for compiled programs."""
    start = time.perf_counter()
    worker = Worker(sys.executable, WORKER, {"SPEEDRUN_CACHE": cache})
    ready = worker.ask("prepare", **asked(options))
    to_first_step = time.perf_counter() - start
    block = worker.ask("train", seeds=[seed])
    worker.close()
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "seconds_to_first_step": round(to_first_step, 2),
        "compile_seconds": ready["compile_seconds"],
        **block,
    }


def run_peer(
    options: argparse.Namespace, path: str, folder: Path, count: int, variables: dict[str, str] | None = None
) -> dict[str, Any]:
    """A block of the peer's runs; fewer than `count` where the limit ends it. Warm-ups are dropped: a peer that
    compiles and has none of its own makes one run more. Raises PeerError where there is no run.
    """
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
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **known, **(variables or {})}
    said = {name: folder / f"{copy.stem}.{name}" for name in ("stdout", "stderr")}
    with said["stdout"].open("w") as stdout, said["stderr"].open("w") as stderr:
        process = subprocess.Popen(
            [options.peer_python, copy.name], cwd=folder, env=environment, stdout=stdout, stderr=stderr
        )
        try:
            process.wait(timeout=max(1.0, options.limit - (start - options.begin)))
        except subprocess.TimeoutExpired:
            print(f"{path} is ended: {options.limit:.0f} s are over", flush=True)
            process.kill()
            process.wait()
    seconds = time.perf_counter() - start
    counted = evaluations(said["stdout"].read_text())[extra : extra + count]
    if not counted:
        told = "\n".join(file.read_text() for file in said.values())
        raise PeerError(f"{path} made no run:\n{told[-4000:]}")
    runs = [{"accuracy": float(row[-3]), "seconds": float(row[-2])} for row in counted]
    return {"runs": runs, "process_seconds": round(seconds, 2)}


def evaluations(printed: str) -> list[list[str]]:
    """The cells of the rows that a peer printed at the ends of its runs, but for a warm-up's. A run is named in its
    first row, and not always in the others."""
    run, rows = "", []
    for line in printed.splitlines():
        cells = line.split("|")
        if len(cells) > 4:
            run = cells[1].strip() or run
            if cells[2].strip() == "eval" and run != "warmup":
                rows.append(cells)
    return rows


@contextlib.contextmanager
def clocks() -> Iterator[dict[str, Any]]:
    """What nvidia-smi says five times a second meanwhile, least, median and greatest; nothing where there is none."""
    fields, seen = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu"), dict[str, Any]()
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", "--loop-ms=200"]
    if not shutil.which(command[0]):
        yield seen
        return
    with tempfile.TemporaryFile("w+") as output:
        watching = subprocess.Popen(command, stdout=output)
        try:
            yield seen
        finally:
            watching.terminate()
            watching.wait()
        output.seek(0)
        lines = [line.split(", ") for line in output.read().splitlines()]
    for number, field in enumerate(fields):
        given = [line[number] for line in lines if len(line) == len(fields)]
        if values := [float(text) for text in given if re.fullmatch(r"[\d.]+", text)]:  # [N/A] is none
            seen[field] = [min(values), statistics.median(values), max(values)]


def output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=HERE).stdout.strip()
    except FileNotFoundError:
        return ""


def digest(*files: Path) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def versions(options: argparse.Namespace) -> dict[str, str]:
    """Of what our side consists of: packages, the driver, and our code by its digest."""
    named = ("jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12")
    found = {name: metadata.version(name) for name in named if any(metadata.distributions(name=name))}
    root = HERE.parent
    config = next(path for path in (Path(options.config), root / options.config) if path.is_file())
    code = [*sorted((root / "cifar_jax").rglob("*.py")), root / "configs/base.py", config, HERE / WORKER]
    found["code"] = digest(*code, root / "launch.py")
    if shutil.which("nvidia-smi"):
        found["gpu, driver, power limit"] = output(
            "nvidia-smi", "--query-gpu=name,driver_version,power.limit", "--format=csv,noheader"
        )
    return found


def identity(options: argparse.Namespace, path: str) -> dict[str, str]:
    """What a peer consists of."""
    code = "import torch as t; print(t.__version__, 'CUDA', t.version.cuda, 'cuDNN', t.backends.cudnn.version())"
    torch = output(options.peer_python, "-c", code)
    return {"file": digest(Path(path)), "torch": torch, "settings": " ".join(options.peer_setting)}


def settings(options: argparse.Namespace) -> list[str]:
    """What differs from the recipe."""
    return [*options.field, *([f"images={options.images}"] if options.images else [])]


def file_of(options: argparse.Namespace) -> Path:
    name = "_".join(["speedrun", Path(options.config).stem, *settings(options)])
    return options.out / f"{re.sub(r'[^A-Za-z0-9.=-]', '_', name)}.json"


def read(options: argparse.Namespace) -> dict[str, Any]:
    """The sittings so far."""
    empty = {"recipe": Path(options.config).stem, "settings": settings(options), "sittings": []}
    file = file_of(options)
    return json.loads(file.read_text()) if file.exists() and not (options.smoke or options.holdout) else empty


def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether our side was the same in two sittings."""
    return all(one[field] == other[field] for field in LIKE)


def next_seed(record: dict[str, Any], sitting: dict[str, Any]) -> int:
    """One that no sitting like this one has trained."""
    seeds = [
        run["seed"]
        for each in record["sittings"]
        if alike(each, sitting)
        for block in each.get("blocks", [])
        for run in block["runs"]
        if "seed" in run
    ]
    return max(seeds, default=-1) + 1


def keep(options: argparse.Namespace, record: dict[str, Any], sitting: dict[str, Any]) -> None:
    """Prints the table of all sittings like this one, and writes it with the record."""
    text = table(record, sitting)
    print(text, flush=True)
    if not (options.smoke or options.holdout):
        options.out.mkdir(parents=True, exist_ok=True)
        file, new = file_of(options), file_of(options).with_suffix(".new")
        new.write_text(json.dumps(record, indent=1) + "\n")
        new.replace(file)  # at once: an interruption costs nothing that was there
        file.with_suffix(".md").write_text(text)


def figures(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Mean accuracy with its one-sided 95% lower bound (Student's t), mean and median seconds, diverged runs."""
    from scipy.stats import t  # a dependency of jax

    accuracies, seconds = [run["accuracy"] for run in runs], [run["seconds"] for run in runs]
    deviation = statistics.stdev(accuracies) if len(runs) > 1 else float("nan")
    mean = statistics.fmean(accuracies)
    return {
        "n": len(runs),
        "accuracy": mean,
        "deviation": deviation,
        "lower_bound": mean - float(t.ppf(0.95, len(runs) - 1)) * deviation / len(runs) ** 0.5,
        "seconds": statistics.fmean(seconds),
        "median_seconds": statistics.median(seconds),
        "diverged": sum(not run.get("finite", True) for run in runs),
    }


def having(sittings: list[dict[str, Any]], side: str) -> list[dict[str, Any]]:
    """The sittings that had this side, as it was in the last of them."""
    if side == "ours":
        return sittings
    found = [sitting for sitting in sittings if side in sitting["peers"]]
    return [sitting for sitting in found if sitting["peers"][side] == found[-1]["peers"][side]]


def pooled(sittings: list[dict[str, Any]], side: str) -> list[dict[str, Any]]:
    """A side's runs in these sittings."""
    given = [block for sitting in sittings for block in sitting.get("blocks", []) if block["side"] == side]
    return [run for block in given for run in block["runs"]]


def ratio(sittings: list[dict[str, Any]], side: str) -> str:
    """Our mean seconds over the side's, sitting by sitting: the geometric mean, and the least and the greatest."""
    seconds = lambda sitting, side: statistics.fmean(run["seconds"] for run in pooled([sitting], side))
    ratios = [seconds(each, "ours") / seconds(each, side) for each in sittings if pooled([each], side)]
    mean = f"{statistics.geometric_mean(ratios):.3f}"
    return mean if len(ratios) == 1 else f"{mean} ({min(ratios):.3f} to {max(ratios):.3f}, {len(ratios)} sittings)"


def process_seconds(sittings: list[dict[str, Any]], side: str, state: str) -> str:
    """Median of the whole processes, and n."""
    every = [process for sitting in sittings for process in sitting.get("processes", [])]
    seconds = [process["seconds"] for process in every if (process["side"], process["state"]) == (side, state)]
    return f"{statistics.median(seconds):.2f} (n={len(seconds)})" if seconds else ""


def table(record: dict[str, Any], sitting: dict[str, Any]) -> str:
    """The Markdown table over the sittings like this one."""
    sittings = [each for each in record["sittings"] if alike(each, sitting)]
    every = [part["side"] for each in sittings for part in [*each.get("blocks", []), *each.get("processes", [])]]
    rows = [
        "| side | n | accuracy | one-sided 95% lower bound | s a run, mean (median) | ours ÷ it"
        " | whole process, cold, s | warm, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    diverged: dict[str, float] = {}
    for side in dict.fromkeys(every):
        cells, own = [side, "0", "", "", "", ""], having(sittings, side)
        if runs := pooled(own, side):
            seen = figures(runs)
            cells = [side, str(seen["n"]), f"{seen['accuracy']:.4%}"]
            cells[-1] += f" ± {seen['deviation']:.4%}" if len(runs) > 1 else ""
            cells += [
                f"{seen['lower_bound']:.4%}" if len(runs) > 1 else "",
                f"{seen['seconds']:.3f} ({seen['median_seconds']:.3f})",
            ]
            cells += [ratio(own, side) if side != "ours" else "1"]
            diverged |= {side: seen["diverged"]} if seen["diverged"] else {}
        cells += [process_seconds(own, side, state) for state in ("cold", "warm")]
        rows.append(f"| {' | '.join(cells)} |")
    recipe = " ".join([record["recipe"], *record["settings"]])
    note = [f"{recipe}, {sitting['dtype']}", sitting["device"], f"{sitting['cores']} cores of {sitting['cpu']}"]
    note += [f"{name} {text}" for name, text in sitting["versions"].items()]
    known = {side: each["peers"][side] for each in sittings for side in each["peers"]}
    note += [
        f"{side}: " + ", ".join(f"{name} {text}" for name, text in it.items() if text) for side, it in known.items()
    ]
    note += [f"{len(sittings)} of {len(record['sittings'])} sittings, the last on {sitting['date']}"]
    note += [f"diverged runs, counted with the others: {diverged}"] if diverged else []
    if runs := pooled(sittings, "ours"):
        rate = 1e3 * sitting["training_pflop"] / figures(runs)["median_seconds"]
        products = statistics.median(each["matmul_tflops"] for each in sittings if "matmul_tflops" in each)
        note += [
            f"ours: {sitting['training_pflop']:.3f} PFLOP of training, {rate:.3g} TFLOP/s over the run,"
            f" {rate / products:.0%} of the {products:.3g} of matrix products"
        ]
    return "; ".join(note) + "\n\n" + "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.exit(main())
