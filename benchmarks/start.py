"""Seconds from `python launch.py train` to the first step: imports, data, compiling.

    python benchmarks/start.py configs/cnn.py configs/resnet18.py
    python benchmarks/start.py --smoke                # the quickstart once, for errors only; writes nothing

"cold" is a first start, with nothing compiled and the data set prepared but not read before; "warm" a later one, in
another workdir. A start is over when JAX has the program of the first epoch, which then runs; the process is stopped
there. Writes start.json to --out, an entry a recipe and device, and start.md over it.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from measuring import machine
from worker import HERE

COMPILED = "Finished XLA compilation of jit(epochs)"  # JAX_LOG_COMPILES says so on stderr, from a cache too


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=["configs/cnn.py"])
    parser.add_argument("--warm", type=int, default=5, help="warm starts of each recipe")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for one start")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.smoke:
        options.recipes, options.warm = ["configs/quickstart.py"], 1
    file = options.out / "start.json"
    entries = json.loads(file.read_text()) if file.exists() and not options.smoke else []
    for recipe in options.recipes:
        with tempfile.TemporaryDirectory() as folder:
            starts = [seconds(recipe, Path(folder), number, options.limit) for number in range(1 + options.warm)]
        entry = {"recipe": Path(recipe).stem, "device": device(), **machine(), "cold": starts[0], "warm": starts[1:]}
        print(json.dumps(entry), flush=True)
        same = lambda other, entry=entry: all(other[name] == entry[name] for name in ("recipe", "device", "cpu"))
        entries = [*(other for other in entries if not same(other)), entry]
        if not options.smoke:
            options.out.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(entries, indent=1) + "\n")
            file.with_suffix(".md").write_text(table(entries))
    print(table(entries))
    return 0


def seconds(recipe: str, folder: Path, number: int, limit: float) -> float:
    """One start, in a process of its own; `folder` holds what a start leaves for the next one."""
    command = [sys.executable, "launch.py", "train", f"--config={recipe}", f"--workdir={folder / f'run{number}'}"]
    environment = {**os.environ, "JAX_LOG_COMPILES": "1", "XDG_CACHE_HOME": str(folder / "cache")}
    start = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=HERE.parent, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    watch = threading.Timer(limit, process.kill)
    watch.start()
    said, found = [], None
    for line in process.stderr or ():
        said.append(line)
        if COMPILED in line:
            found = time.perf_counter() - start
            break
    watch.cancel()
    process.send_signal(signal.SIGTERM)
    try:
        process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
    if found is None:
        raise RuntimeError(f"{recipe} came to no step within {limit:.0f} s:\n{''.join(said[-20:])}")
    return round(found, 2)


def device() -> str:
    """As JAX names it, asked in a process of its own, which gives the device back."""
    code = "import jax; d = jax.devices()[0]; print(d.platform, d.device_kind, jax.__version__)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def table(entries: list[dict[str, Any]]) -> str:
    rows = ["| recipe | device, jax | cold, s | warm, s: median (least to greatest) | n |", "|---|---|---|---|---|"]
    for entry in entries:
        warm, where = entry["warm"], f"{entry['device']}, {entry['cores']} cores of {entry['cpu']}, {entry['date']}"
        spread = f"{statistics.median(warm):.1f} ({min(warm):.1f} to {max(warm):.1f})"
        rows.append(f"| `{entry['recipe']}` | {where} | {entry['cold']:.1f} | {spread} | {len(warm)} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.exit(main())
