"""Tuning configs/cnn.py on CIFAR-10, and what it is worth: the published and the best recipe on the test split.

    python benchmarks/tune.py search     # 40 trials of 12 epochs, at most 3 hours of this process; continues
    python benchmarks/tune.py final      # both recipes on all training images, 5 seeds, test once; continues, and
                                         # started twice (taskset -c 0 and -c 1) it is two workers
    python benchmarks/tune.py final --smoke    # and `search --smoke`: tiny, finds errors, measures nothing

search    launch.py tune with configs/spaces/cnn.py, 5,000 images held out, pruned by the median
final     arms "best" (--best, by default results/tuning/cnn_tuned.py: best.py of the search of docs/tuning.md) and
          "published" (configs/cnn.py as it is), both with data.validation=0 and the same seeds; the difference with
          its 95% interval by cifar_jax.studies.compare. results/tuning/final.json has a line for each run, and runs
          that it has are not repeated; nor are those of results/table_cnn.json, which are the seeds 0 to 2 of
          "published". Writes results/tuning/best_against_published.json.
"""

import argparse
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from measuring import commit, machine
from worker import HERE

sys.path.insert(0, str(HERE.parent))
ARMS = ("best", "published")
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
    parser.add_argument("--arms", default=",".join(ARMS), help="of the final runs, in this order; all")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the result")
    parser.add_argument("--smoke", action="store_true", help="2 trials, 2 seeds, 1 epoch of a narrow network")
    options = parser.parse_args()
    if options.smoke:
        options.trials, options.epochs, options.seeds = 2, 1, 2
        options.folder, options.runs = Path(f"{options.folder}-smoke"), Path(f"{options.runs}-smoke")
        options.out = options.runs
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

    names = options.arms.split(",")
    if unknown := sorted({*names} - {*ARMS}):
        print(f"--arms has {', '.join(unknown)}; known: {', '.join(ARMS)}", file=sys.stderr)
        return 2
    recipes, file = recipes_of(options), options.out / "tuning/final.json"
    for name in names:
        for seed in range(options.seeds):
            if (name, seed) in read(file, options.smoke):
                continue
            try:
                run = cj.fit(
                    cj.override(recipes[name], {"seed": seed}), options.runs / name / f"seed{seed}", evaluate="test"
                )
            except LockedError as error:
                print(f"left to another process: {error}", flush=True)
                continue
            assert run.evaluation is not None
            add(file, {"arm": name, "seed": seed, "test_accuracy": run.evaluation.accuracy})
            print(f"{name}, seed {seed}: test accuracy {run.evaluation.accuracy:.2%}", flush=True)
    found = read(file, options.smoke)
    if all((name, seed) in found for name in ARMS for seed in range(options.seeds)):
        table = compare(recipes, found, options.seeds)
        print(f"\n{table}")
        (file.parent / "best_against_published.json").write_text(table.to_json() + "\n")
    return 0


def recipes_of(options: argparse.Namespace) -> dict[str, Any]:
    """Arm -> recipe, on all training images."""
    import cifar_jax as cj

    fields = {"data.validation": 0, **({"model.width": 4, "model.hidden": 8, "epochs": 1} if options.smoke else {})}
    return {"best": cj.load_recipe(options.best, fields), "published": cj.load_recipe("configs/cnn.py", fields)}


def read(file: Path, smoke: bool = False) -> dict[tuple[str, int], float]:
    """Arm and seed -> test accuracy, of the runs that are finished."""
    lines = json.loads(file.read_text()) if file.exists() else []
    found = {(line["arm"], line["seed"]): line["test_accuracy"] for line in lines}
    table = [] if smoke else json.loads((HERE / "results/table_cnn.json").read_text())
    return found | {("published", line["seed"]): line["accuracy"] for line in table}


def add(file: Path, line: dict[str, Any]) -> None:
    """Writes down a run, beside other processes that do the same."""
    from cifar_jax.studies.study_file import waiting_lock

    with waiting_lock(file.parent, ".lock"):
        lines = json.loads(file.read_text()) if file.exists() else []
        lines.append({**line, **machine(), "jax": metadata.version("jax"), "commit": commit()})
        file.write_text(json.dumps(lines, indent=1) + "\n")


def compare(recipes: dict[str, Any], found: dict[tuple[str, int], float], seeds: int) -> Any:
    """The comparison of "best" with "published" over the same seeds."""
    import cifar_jax as cj
    from cifar_jax.studies.fields import with_defaults
    from cifar_jax.studies.records import RunRecord

    records = [
        RunRecord(
            f"{arm}/seed{seed}", with_defaults(recipes[arm]) | {"seed": seed}, {"test_accuracy": found[arm, seed]}
        )
        for arm in ("published", "best")
        for seed in range(seeds)
    ]
    return cj.compare(records, metric="test_accuracy")


if __name__ == "__main__":
    sys.exit(main())
