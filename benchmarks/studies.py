"""Runs an hour: a study of ours, a loop of our processes, and a loop of PyTorch trainings, in turns.

    python benchmarks/studies.py --torch-python=PATH     # CIFAR-10; without PATH there is no PyTorch
    python benchmarks/studies.py --config=configs/quickstart.py --epochs=20    # runs of a second, on the digits
    python benchmarks/studies.py --smoke                 # the quickstart, two runs: finds errors, measures nothing

study        launch.py ablate: two arms that differ in the learning rate, --seeds seeds each
processes    launch.py train --evaluate=validation, as many processes one after the other
torch        torch_runs.py: as many trainings in one process; the network and the step of torch_peer.py, in its faster
             form, without our logs, checkpoints and stored predictions

Each turn is a whole command in a new folder, imports and reading of the data included; compiled programs are in the
cache, as they are from the second study of a recipe on. The recipe is configs/cnn.py, narrow and for one epoch: a short
run, in which what surrounds the training counts. --config, --epochs and --config.FIELD=VALUE change it. Writes
studies_RECIPE.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measuring import commit, machine, ratio, recipe_fields, spread, turns
from worker import HERE

sys.path.insert(0, str(HERE.parent))
CONFIG = "configs/cnn.py"
NARROW = {"model.width": 8, "model.hidden": 64, "data.validation": 5000}
CHANGE = "optimizer.learning_rate=0.003"


def main() -> int:
    arguments, fields = recipe_fields(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", help="the Python of an environment with torch and numpy")
    parser.add_argument("--config", default=CONFIG, help=f"the recipe; {CONFIG}, narrow")
    parser.add_argument("--seeds", type=int, default=4, help="of each of the two arms")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2, help="passes there and back: twice as many turns of each side")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the result")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args(arguments)
    config = options.config
    changes = {**(NARROW if config == CONFIG else {}), "epochs": options.epochs, **fields}
    if options.smoke:
        options.seeds, config, changes = 1, "configs/quickstart.py", {"epochs": 1}
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options, config, changes, Path(folder))
    print(json.dumps(result, indent=1))
    if not options.smoke:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"studies_{Path(config).stem}.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0


def measure(options: argparse.Namespace, config: str, changes: dict[str, Any], folder: Path) -> dict[str, Any]:
    recipe = [f"--config={config}", *(f"--config.{name}={value}" for name, value in changes.items())]
    runs = 2 * options.seeds
    sides: dict[str, Callable[[], float]] = {
        "study": lambda: study(recipe, options.seeds, folder),
        "processes": lambda: processes(recipe, options.seeds, folder),
    }
    if options.torch_python:
        asked = torch_setting(config, changes, runs, folder)
        sides["torch"] = lambda: timed([options.torch_python, str(HERE / "torch_runs.py"), str(asked)])
    for side in sides.values():
        side()  # compiles, and reads the data
    seconds = turns(sides, 1 if options.smoke else options.rounds)
    return {
        "what": "runs an hour",
        "recipe": config,
        "fields": changes,
        "runs": runs,
        **machine(),
        "commit": commit(),
        "seconds": seconds,
        "runs_an_hour": {side: spread([3600 * runs / value for value in found]) for side, found in seconds.items()},
        "study_over": {side: ratio(found, seconds["study"]) for side, found in seconds.items() if side != "study"},
    }


def study(recipe: list[str], seeds: int, folder: Path) -> float:
    place = tempfile.mkdtemp(dir=folder)
    command = ["launch.py", "ablate", *recipe, f"--seeds={seeds}", f"--change={CHANGE}", f"--folder={place}/study"]
    return timed([sys.executable, *command])


def processes(recipe: list[str], seeds: int, folder: Path) -> float:
    place, total = tempfile.mkdtemp(dir=folder), 0.0
    for change in ([], [f"--config.{CHANGE}"]):
        for seed in range(seeds):
            fields = [*recipe, *change, f"--config.seed={seed}", f"--workdir={place}/{len(change)}-{seed}"]
            total += timed([sys.executable, "launch.py", "train", "--evaluate=validation", *fields])
    return total


def timed(command: list[str]) -> float:
    """Seconds of a whole process. Raises RuntimeError, with what it said, where it fails."""
    start = time.perf_counter()
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, env=dict(os.environ))
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {done.returncode}: {done.stderr[-2000:]}")
    return time.perf_counter() - start


def torch_setting(config: str, changes: dict[str, Any], runs: int, folder: Path) -> Path:
    """The data and the numbers of the recipe for torch_runs.py."""
    import cifar_jax as cj
    from cifar_jax.data import arrays

    recipe = cj.load_recipe(config, changes)
    train = arrays.load(recipe.data.name, "train")
    kept, held = arrays.hold_out(train.labels, recipe.data.validation, recipe.data.seed)
    for name, chosen in (("", kept), ("validation_", held)):
        np.save(folder / f"{name}images.npy", train.images[chosen])
        np.save(folder / f"{name}labels.npy", train.labels[chosen])
    setting = {"model": recipe.model.to_dict(), "batch_size": recipe.batch_size, **recipe.optimizer.to_dict()}
    setting |= {"mean": recipe.data.mean, "std": recipe.data.std}
    path = folder / "setting.json"
    path.write_text(json.dumps({"folder": str(folder), "setting": setting, "epochs": recipe.epochs, "runs": runs}))
    return path


if __name__ == "__main__":
    sys.exit(main())
