"""How the cost of training grows with each size, and that a run's memory does not grow with its epochs.

    python benchmarks/scaling.py            # needs the extra "benchmarks", for the figure
    python benchmarks/scaling.py --smoke    # tiny, for errors only; writes nothing

The points of a panel take turns. Writes results/scaling.json, every turn of every point, and the table and the figure
over it, scaling.md and scaling.png.
"""

import argparse
import contextlib
import functools
import importlib.util
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measuring import OthersClock, machine, spread, turns
from worker import HERE, Worker

Point = dict[str, Any]

BASE = {"width": 16, "batch_size": 64, "images": 1024}
METHODS = {"unrolled": "unrolled in one program", "map": "lax.map", "vmap": "vmap", "sharded": "one a device"}
# title; what the x axis says; what a value says, and its value from seconds, steps and the point; x -> the point
PANELS: dict[str, dict[str, Any]] = {
    "batch size": {
        "x": "images a batch",
        "y": "µs an image",
        "values": (16, 32, 64, 128, 256, 512, 1024),
        "smoke": (8, 16),
        "point": lambda x: {**BASE, "batch_size": x, "images": 2048},
    },
    "image count": {
        "x": "images an epoch",
        "y": "ms an epoch",
        "values": (512, 2048, 8192, 32768),
        "smoke": (16, 32),
        "point": lambda x: {**BASE, "images": x},
    },
    "model width": {
        "x": "channels of the first convolution",
        "y": "ms a step",
        "values": (4, 8, 16, 32, 64),
        "smoke": (2, 4),
        "point": lambda x: {**BASE, "width": x},
    },
    "seeds": {
        "x": "trainings at once",
        "y": "ms a step of one training",
        "values": (1, 2, 4, 8),
        "smoke": (1, 2),
        "point": lambda x: {**BASE, "images": 512, "seeds": x},
        "methods": tuple(METHODS),
    },
    "devices": {
        "x": "simulated devices, one batch of 256 split over them",
        "y": "ms a step",
        "values": (1, 2, 4, 8),
        "smoke": (1, 2),
        "point": lambda x: {**BASE, "batch_size": 256, "images": 2048, "devices": x},
    },
}
EPOCHS = 400  # of the run whose memory is watched


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="each gives every point two turns")
    parser.add_argument("--smoke", action="store_true", help="tiny; writes nothing")
    options = parser.parse_args()
    drawn = importlib.util.find_spec("matplotlib") is not None
    if not drawn and not options.smoke:
        print("error: the figure needs matplotlib; pip install -c constraints.txt -e '.[benchmarks]'", file=sys.stderr)
        return 2
    result = measure(options.rounds, options.smoke)
    if options.smoke:
        table(result)
        if drawn:
            with tempfile.TemporaryDirectory() as folder:
                draw(result, Path(folder) / "scaling.png")
        print("scaling: runs" + ("" if drawn else "; no figure without matplotlib"))
        return 0
    results = HERE / "results"
    (results / "scaling.json").write_text(json.dumps(result, indent=1) + "\n")
    (results / "scaling.md").write_text(table(result))
    draw(result, results / "scaling.png")
    print(table(result))
    return 0


def measure(rounds: int, smoke: bool) -> dict[str, Any]:
    panels, shares = {}, []
    with contextlib.ExitStack() as stack:

        @functools.cache
        def worker(devices: int) -> Worker:
            flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
            started = Worker(sys.executable, "scaling_worker.py", flags)
            stack.callback(started.close)
            return started

        samples = worker(1).ask("memory", epochs=4 if smoke else EPOCHS)["samples"]  # first, in a fresh process
        version = worker(1).ask("describe")["jax"]
        for name, panel in PANELS.items():
            measured, share = measure_panel(panel, worker, rounds, smoke)
            panels[name] = {"x": panel["x"], "y": panel["y"], "series": measured}
            shares.append(share)
            print(f"{name}: other programs took {share:.0%} of the processors", flush=True)
    return {
        "what": "scaling",
        **machine(),
        "jax": version,
        "others_share_of_cpu": max(shares),
        "panels": panels,
        "memory": {"samples": samples, "kib_an_epoch": round(slope(samples) * 1024, 2)},
    }


def measure_panel(
    panel: dict[str, Any], worker: Callable[[int], Worker], rounds: int, smoke: bool
) -> tuple[dict[str, dict[int, list[float]]], float]:
    """-> {series: {x: values, one a turn}}, and the share of the processors that others took. `worker` has one for each
    number of simulated devices."""
    used, sides, points = set(), {}, {}
    for method in panel.get("methods", ("",)):
        for x in panel["smoke" if smoke else "values"]:
            point = panel["point"](x)
            if smoke:
                point |= {"images": 32, "batch_size": min(point["batch_size"], 8), "width": min(point["width"], 4)}
            devices = point.pop("devices", point.get("seeds", 1) if method == "sharded" else 1)
            given = point | ({"method": method} if method else {})
            ready = worker(devices).ask("prepare", **given)
            used.add(worker(devices))
            side = f"{method} {x}"
            sides[side] = functools.partial(worker(devices).ask, "run", number=ready["number"])
            points[side] = method, x, SCALES[panel["y"]](ready["steps"], point)
    turns(sides, 1)
    clock = OthersClock(used)
    answers = turns(sides, 1 if smoke else rounds)
    share = clock.share()
    series: dict[str, dict[int, list[float]]] = {}
    for side, seconds in answers.items():
        method, x, scale = points[side]
        series.setdefault(method, {})[x] = [round(answer["seconds"] * scale, 4) for answer in seconds]
    return series, share


# What the seconds of an epoch are multiplied with, by steps and point.
SCALES: dict[str, Any] = {
    "µs an image": lambda steps, point: 1e6 / (steps * point["batch_size"]),
    "ms an epoch": lambda steps, point: 1e3,
    "ms a step": lambda steps, point: 1e3 / steps,
    "ms a step of one training": lambda steps, point: 1e3 / steps / point["seeds"],
}


def slope(samples: list[list[float]]) -> float:
    """MiB an epoch, by least squares over the second half: the first fills caches and pools."""
    half = samples[len(samples) // 2 :]
    return statistics.linear_regression(*zip(*half, strict=True)).slope if len(half) > 1 else float("nan")


def table(result: dict[str, Any]) -> str:
    """The Markdown table of a result: a row a series, median (least to greatest)."""
    form = lambda figures: f"{figures['median']:.3g} ({figures['min']:.3g} to {figures['max']:.3g})"
    n = len(next(iter(next(iter(result["panels"].values()))["series"][""].values())))
    base = f"`cnn` with 3x3 filters, width {BASE['width']}, 64 hidden units, batch {BASE['batch_size']} unless told"
    where = f"{result['cores']} cores of {result['cpu']}, jax {result['jax']}, {result['date']}"
    busy = f"others took up to {result['others_share_of_cpu']:.0%} of the processors"
    parts = [f"{where}; {busy}. {base}. Median (least to greatest) of n={n}.\n"]
    for name, panel in result["panels"].items():
        values = list(next(iter(panel["series"].values())))
        rows = [
            [METHODS.get(method, panel["y"]), *(form(spread(points[x])) for x in values)]
            for method, points in panel["series"].items()
        ]
        lines = [[f"{panel['x']}", *map(str, values)], ["---"] * (len(values) + 1), *rows]
        unit = "" if "" in panel["series"] else f", {panel['y']}"
        parts.append(f"## {name}{unit}\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n")
    samples = result["memory"]["samples"]
    parts.append(
        f"## memory\n\nA tiny run of `fit`, a checkpoint an epoch: {samples[0][1]:.1f} MiB resident after epoch"
        f" {samples[0][0]}, {samples[-1][1]:.1f} after epoch {samples[-1][0]};"
        f" {result['memory']['kib_an_epoch']:.1f} KiB an epoch over the second half.\n"
    )
    return "\n".join(parts)


def draw(result: dict[str, Any], path: Path) -> None:
    """A panel a question: medians, and whiskers from the least to the greatest."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(13, 7.5), layout="constrained")
    n = 0.0
    for axis, (name, panel) in zip(axes.flat, result["panels"].items(), strict=False):
        for method, points in panel["series"].items():
            figures = [spread(values) for values in points.values()]
            n = figures[0]["n"]
            middle = [given["median"] for given in figures]
            whiskers = [
                [given["median"] - given["min"] for given in figures],
                [given["max"] - given["median"] for given in figures],
            ]
            x = [int(value) for value in points]
            axis.errorbar(x, middle, whiskers, marker="o", markersize=4, capsize=3, label=METHODS.get(method))
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(x, [str(value) for value in x])
        low, high = axis.get_ylim()
        if high / low < 4:  # too little for a decade's ticks: show the neighbourhood
            axis.set_ylim(low / 1.5, high * 1.5)
        axis.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.yaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:g}"))
        axis.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        axis.set(title=name, xlabel=panel["x"], ylabel=panel["y"])
        axis.grid(alpha=0.3, which="major")
        if len(panel["series"]) > 1:
            axis.set_ylim(top=axis.get_ylim()[1] * 1.6)
            axis.legend(fontsize=8, loc="upper left", ncols=2)
    epochs, resident = zip(*result["memory"]["samples"], strict=True)
    axis = axes.flat[-1]
    axis.plot(epochs, resident, linewidth=1)
    slope = f"{result['memory']['kib_an_epoch']:.1f} KiB an epoch over the second half, n=1 run"
    axis.text(0.5, 0.5, slope, transform=axis.transAxes, horizontalalignment="center")
    axis.set(title="memory of a long run", xlabel="epoch (linear)", ylabel="resident MiB (linear)")
    axis.set_ylim(0, 1.15 * max(resident))
    axis.grid(alpha=0.3)
    where = f"{result['cores']} cores of {result['cpu']}, jax {result['jax']}"
    figure.suptitle(f"Cost of training by size. {where}; medians of n={n}, whiskers from the least to the greatest")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
