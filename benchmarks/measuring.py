"""What every measurement shares: sides that take turns, ratios pass by pass, the machine and who else uses it."""

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from worker import HERE, Worker, cores

from cifar_jax.cli import parse_fields, split_fields


def turns(sides: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[Any]]:
    """Every side's answers, in passes there and back: a machine that slows down slows all sides alike."""
    answers: dict[str, list[Any]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side in [*sides, *reversed(list(sides))]:
            answers[side].append(sides[side]())
    return answers


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Ours divided by theirs, pass by pass: below 1 ours is the faster."""
    return spread([mine / other for mine, other in zip(ours, theirs, strict=True)])


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and greatest, to four digits, and how many there are."""
    figures = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {**{name: float(f"{value:.4g}") for name, value in figures.items()}, "n": len(values)}


class OthersClock:
    """The share of this machine's processors that other programs take meanwhile: a busy machine gives no figures, and
    PyTorch's threads, which wait for each other actively, suffer from it the most."""

    def __init__(self, workers: Iterable[Worker]) -> None:
        self.workers = list(workers)
        self.start, self.before = time.perf_counter(), self.busy()

    def busy(self) -> float:
        """Processor seconds since the start that were not the workers'; nan where the system does not say."""
        if not Path("/proc/stat").exists():
            return float("nan")
        user, nice, system, _idle, _wait, irq, soft, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
        total = (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")
        return total - sum(worker.ask("describe")["cpu_seconds"] for worker in self.workers)

    def share(self) -> float:
        return round((self.busy() - self.before) / (time.perf_counter() - self.start) / (os.cpu_count() or 1), 3)


def machine() -> dict[str, Any]:
    """Where and when a measurement was taken."""
    information = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":", 1)[1].strip() for line in information.splitlines() if line.startswith("model name")]
    return {
        "date": date.today().isoformat(),
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": cores(),
        "python": platform.python_version(),
    }


def commit() -> str:
    """Ours, or nothing where there is no git."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
        return subprocess.run(command, cwd=HERE, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        return ""


def recipe_fields(arguments: list[str]) -> tuple[list[str], dict[str, object]]:
    """The arguments that are no settings, and the recipe fields that --config.FIELD=VALUE sets."""
    rest, fields = split_fields(arguments)
    return rest, parse_fields(fields)
