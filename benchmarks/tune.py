"""Tuning configs/cnn.py on CIFAR-10, and what it is worth: the published and the best recipe on the test split.

    python benchmarks/tune.py search     # 40 trials of 12 epochs, at most 3 hours of this process; continues
    python benchmarks/tune.py final      # both recipes on all training images, 5 seeds, test once; continues, and
                                         # started twice (taskset -c 0 and -c 1) it is two workers
    python benchmarks/tune.py final --smoke    # and `search --smoke`: tiny, finds errors, measures nothing

search    launch.py tune with configs/spaces/cnn.py, 5,000 images held out, pruned by the median
final     arms "published" (configs/cnn.py as it is), "published, 12 epochs" (as many as the trials had) and "best"
          (--best, by default results/tuning/cnn_tuned.py: best.py of the search of docs/tuning.md), all with
          data.validation=0 and the same seeds, in turns; the difference with its 95% interval by
          cifar_jax.studies.compare. Writes results/tune.json.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from measuring import commit, machine
from worker import HERE

sys.path.insert(0, str(HERE.parent))
SMOKE = ("--config.model.width=4", "--config.model.hidden=8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("search", "final"))
    parser.add_argument("--folder", type=Path, default=Path("studies/cnn-tune"), help="of the search")
    parser.add_argument("--best", type=Path, default=HERE / "results/tuning/cnn_tuned.py", help="of the final runs")
    parser.add_argument("--runs", type=Path, default=Path("runs/cnn-tune"), help="folder of the final runs")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--max_hours", type=float, default=3.0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the result")
    parser.add_argument("--smoke", action="store_true", help="2 trials, 2 seeds, 1 epoch of a narrow network")
    options = parser.parse_args()
    if options.smoke:
        options.trials, options.epochs, options.seeds = 2, 1, 2
        options.folder, options.runs = Path(f"{options.folder}-smoke"), Path(f"{options.runs}-smoke")
    return search(options) if options.step == "search" else final(options)


def search(options: argparse.Namespace) -> int:
    command = [sys.executable, "launch.py", "tune", "--config=configs/cnn.py", "--space=configs/spaces/cnn.py"]
    command += [f"--trials={options.trials}", f"--folder={options.folder.absolute()}", "--pruner=median"]
    command += [f"--max_hours={options.max_hours}", f"--processes={options.processes}", "--light"]
    command += [f"--config.epochs={options.epochs}", "--config.data.validation=5000", "--config.chunk_epochs=1"]
    return subprocess.run([*command, *(SMOKE if options.smoke else ())], cwd=HERE.parent).returncode


def final(options: argparse.Namespace) -> int:
    import cifar_jax as cj

    cj.prepare_process()
    from cifar_jax.runs.workdir import LockedError

    narrow = {"model.width": 4, "model.hidden": 8, "epochs": 1} if options.smoke else {}
    all_images = {"data.validation": 0, **narrow}
    arms = {
        "published": cj.load_recipe("configs/cnn.py", all_images),
        f"published, {options.epochs} epochs": cj.load_recipe(
            "configs/cnn.py", {"epochs": options.epochs, **all_images}
        ),
        "best": cj.load_recipe(options.best, all_images),
    }
    if options.smoke:
        del arms["published"]  # the same as the second one
    folders: dict[str, list[Path]] = {name: [] for name in arms}
    elsewhere: list[Path] = []
    for seed in range(options.seeds):
        for name, recipe in arms.items():
            folder = options.runs / name.replace(", ", "-").replace(" ", "-") / f"seed{seed}"
            folders[name].append(folder)
            try:
                run = cj.fit(cj.override(recipe, {"seed": seed}), folder, evaluate="test")
            except LockedError:
                elsewhere.append(folder)
                continue
            assert run.evaluation is not None
            print(f"{name}, seed {seed}: test accuracy {run.evaluation.accuracy:.2%}", flush=True)
    if elsewhere:
        others = ", ".join(map(str, elsewhere))
        print(f"another process had {others}; after its end, the same command prints the result")
        return 0
    found: dict[str, Any] = {}
    for name in arms:
        if name != "best":
            table = cj.compare([*folders[name], *folders["best"]], base=str(folders[name][0]), metric="test_accuracy")
            print(f"\nbest against {name}\n{table}")
            found[name] = json.loads(table.to_json())
    result = {"what": "the best recipe of a search against the published one, test accuracy", **machine()}
    result |= {"commit": commit(), "best": options.best.read_text(), "against": found}
    if not options.smoke:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "tune.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
