"""How long training takes beside PyTorch on this machine's CPU: both sides warm, taking turns, in one run.

    python benchmarks/against_torch.py step --torch-python=PATH              # a training step of each network
    python benchmarks/against_torch.py epochs --epochs=1 --torch-python=PATH # configs/cnn.py on CIFAR-10
    python benchmarks/against_torch.py step --smoke                          # tiny, for errors only

--torch-python is the Python of an environment that has torch and numpy; this one's by default. CIFAR-10 is found as the
training finds it (TFDS_DATA_DIR). Each measurement writes results/<what>_<network>.json, and the table over them all.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from report import write_table
from worker import HERE, Worker, cores

# Batch size (0: that of configs/cnn.py) and steps a turn, for turns of 1 to 3 s on two cores.
STEPS = {"two_conv": (128, 40), "resnet18": (64, 4), "cnn": (0, 200)}
SMOKE = {"two_conv": {"width": 4}, "resnet18": {"width": 8}, "cnn": {"width": 4, "hidden": 8}}

# What launch.py sets for ours: glibc keeps the memory that a step frees.
MALLOC = "mmap_max=0 trim_threshold=2147483647 top_pad=268435456 arena_max=1"
FAST = {"GLIBC_TUNABLES": ":".join(f"glibc.malloc.{setting}" for setting in MALLOC.split())}


def main() -> int:
    options = parse()
    has_torch = subprocess.run([options.torch_python, "-c", "import torch"], capture_output=True).returncode == 0
    if not has_torch:
        message = f"{options.torch_python} has no torch; give --torch-python=PATH of an environment that has it"
        print(f"note: {message}; only our side runs" if options.smoke else f"error: {message}", file=sys.stderr)
        if not options.smoke:
            return 2
    for name in options.models if options.what == "step" else ["cnn"]:
        result = measure(options, name, has_torch)
        print(describe(result), flush=True)
        if not options.smoke:
            results = HERE / "results"
            results.mkdir(exist_ok=True)
            (results / f"{options.what}_{name}.json").write_text(json.dumps(result, indent=2) + "\n")
            write_table(results)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("step", "epochs"))
    parser.add_argument("--models", nargs="+", choices=list(STEPS), default=list(STEPS), help="of step")
    parser.add_argument("--epochs", type=int, default=1, help="epochs a turn, of epochs")
    parser.add_argument("--rounds", type=int, default=3, help="each gives every side two turns: A B C C B A")
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("--smoke", action="store_true", help="tiny networks and made-up images; writes nothing")
    return parser.parse_args()


def measure(options: argparse.Namespace, name: str, has_torch: bool) -> dict[str, Any]:
    """All sides on one network, in processes of their own, so that the peak of memory is this network's."""
    model = {"name": name, **(SMOKE[name] if options.smoke else {})}
    batch_size, steps = (8, 2) if options.smoke else STEPS[name] if options.what == "step" else (0, 0)
    epochs = options.epochs if options.what == "epochs" else 1
    workers = {"ours": Worker(sys.executable, "ours.py")}
    if has_torch:
        workers["plain"] = Worker(options.torch_python, "torch_peer.py")
        workers["fast"] = Worker(options.torch_python, "torch_peer.py", FAST)
    try:
        with tempfile.TemporaryDirectory() as folder:
            ready = {
                "ours": workers["ours"].ask("prepare", model=model, batch_size=batch_size, steps=steps, folder=folder)
            }
            setting = ready["ours"]["setting"]
            for form in list(workers)[1:]:
                ready[form] = workers[form].ask("prepare", form=form, folder=folder, setting=setting)
        sizes = {side: answer["parameters"] for side, answer in ready.items()}
        if len(set(sizes.values())) > 1:
            raise RuntimeError(f"the sides do not train the same network: parameters {sizes}")
        if options.what == "step":  # an epoch is long enough to need no warming up
            turns(workers, 1, epochs)
        idle = OthersClock(workers)
        rounds = 1 if options.smoke else options.rounds
        answers = turns(workers, rounds, epochs)
        others = idle.share()
        sides = {side: worker.ask("describe") for side, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.close()
    counted = ready["ours"]["steps"] * epochs
    for side, given in answers.items():
        sides[side] |= {
            "ready_seconds": round(ready[side]["ready_seconds"], 2),
            "step_ms": [round(answer["seconds"] / counted * 1e3, 4) for answer in given],
            "loss": given[-1]["loss"],
            "accuracy": given[-1]["accuracy"],
        }
    return {
        "what": options.what,
        "setting": setting,
        "parameters": sizes["ours"],
        "steps_a_turn": counted,
        "epochs_a_turn": epochs,
        "date": date.today().isoformat(),
        "cpu": cpu(),
        "cores": cores(),
        "python": platform.python_version(),
        "others_share_of_cpu": others,
        "sides": sides,
        "ratios": {side: ratio(sides["ours"]["step_ms"], sides[side]["step_ms"]) for side in list(sides)[1:]},
    }


def turns(workers: dict[str, Worker], rounds: int, epochs: int) -> dict[str, list[dict[str, Any]]]:
    """Every side's answers, in passes there and back: a machine that slows down slows all sides alike."""
    answers: dict[str, list[dict[str, Any]]] = {side: [] for side in workers}
    for _ in range(rounds):
        for side in [*workers, *reversed(workers)]:
            answers[side].append(workers[side].ask("train", epochs=epochs))
    return answers


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Ours divided by theirs, pass by pass: below 1 ours is the faster."""
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    spread = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    return {**{name: round(value, 3) for name, value in spread.items()}, "n": len(ratios)}


class OthersClock:
    """The share of this machine's processors that other programs take meanwhile: a busy machine gives no figures, and
    PyTorch's threads, which wait for each other actively, suffer from it the most."""

    def __init__(self, workers: dict[str, Worker]) -> None:
        self.workers = workers
        self.start, self.before = time.perf_counter(), self.busy()

    def busy(self) -> float:
        """Processor seconds since the start that were not the workers'; nan where the system does not say."""
        if not Path("/proc/stat").exists():
            return float("nan")
        user, nice, system, _idle, _wait, irq, soft, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
        total = (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")
        return total - sum(worker.ask("describe")["cpu_seconds"] for worker in self.workers.values())

    def share(self) -> float:
        return round((self.busy() - self.before) / (time.perf_counter() - self.start) / (os.cpu_count() or 1), 3)


def cpu() -> str:
    """The processor's name, as well as the system tells it."""
    information = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":", 1)[1].strip() for line in information.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def describe(result: dict[str, Any]) -> str:
    lines = [f"{result['what']} {result['setting']['model']['name']}, batch {result['setting']['batch_size']}:"]
    for side, figures in result["sides"].items():
        times = figures["step_ms"]
        line = f"  {side:5} {statistics.median(times):8.3f} ms a step ({min(times):.3f} to {max(times):.3f})"
        lines.append(f"{line}, ready in {figures['ready_seconds']} s, peak {figures['peak_rss_mib']} MiB")
    for side, figures in result["ratios"].items():
        low, high = figures["min"], figures["max"]
        lines.append(f"  ours / {side}: {figures['median']} ({low} to {high}, n={figures['n']})")
    return "\n".join([*lines, f"  other programs took {result['others_share_of_cpu']:.0%} of the processors"])


if __name__ == "__main__":
    sys.exit(main())
