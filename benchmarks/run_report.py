"""Seconds and bytes of the report of a run: `launch.py report`, the whole command.

    python benchmarks/run_report.py                     # trains configs/cnn.py on CIFAR-10 for an epoch first
    python benchmarks/run_report.py --workdir=RUN       # reports a copy of a run that exists
    python benchmarks/run_report.py --smoke             # the quickstart: finds errors, measures nothing

Each time the run is a new copy. The first report compiles, and is told apart; the others find their programs in the
compilation cache. Writes run_report.json to --out.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import commit, machine, spread
from worker import HERE

TRAIN = ["train", "--config=configs/cnn.py", "--config.epochs=1"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, help="of a finished run; by default one is trained")
    parser.add_argument("--rounds", type=int, default=5, help="reports after the first")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the result")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    train = ["train", "--config=configs/quickstart.py", "--config.epochs=1"] if options.smoke else TRAIN
    with tempfile.TemporaryDirectory() as name:
        run = options.workdir or Path(name) / "run"
        if not options.workdir:
            launch([*train, f"--workdir={run}"])
        result = measure(run, Path(name), 1 if options.smoke else options.rounds)
    print(json.dumps(result, indent=1))
    if not options.smoke:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "run_report.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0


def measure(run: Path, folder: Path, rounds: int) -> dict[str, Any]:
    recipe = json.loads((run / "recipe.json").read_text())
    cache = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
    seconds: list[float] = []
    sizes: list[float] = []
    for number in range(1 + rounds):
        copy = shutil.copytree(run, folder / f"copy{number}")
        start = time.perf_counter()
        launch(["report", str(copy)], cache)
        seconds.append(time.perf_counter() - start)
        sizes.append((copy / "report.html").stat().st_size)
    return {
        "what": "report of a run",
        "model": recipe["model"]["name"],
        "data": recipe["data"]["name"],
        **machine(),
        "commit": commit(),
        "seconds_first": round(seconds[0], 2),
        "seconds": spread(seconds[1:]),
        "bytes": spread(sizes),
    }


def launch(command: list[str], environment: Any = None) -> None:
    """Raises RuntimeError, with what the command said, where it fails."""
    whole = [sys.executable, "launch.py", *command]
    done = subprocess.run(whole, cwd=HERE.parent, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {done.returncode}: {done.stderr[-2000:]}")


if __name__ == "__main__":
    sys.exit(main())
