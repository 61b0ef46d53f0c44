"""The results table: recipes trained with several seeds, evaluated once on the test split, each run kept as a figure.

    python benchmarks/table.py configs/resnet20.py configs/vgg16_bn.py --seeds=3 --limit=540
    python benchmarks/table.py configs/cnn.py --add runs/cnn runs/seed1    # takes finished runs of this machine in
    python benchmarks/table.py                                   # prints the table over all that was measured

Each recipe trains those of seeds 0, 1, ... that results/table_<recipe>.json does not hold yet for this device; none
starts that would not end within --limit seconds, by the time that the last one took, the first by --need.
--config.FIELD=VALUE changes a field of every recipe, and is kept with the figure; figures of other fields, devices or
epochs are other rows. With --workdir an interrupted run resumes. The time in the table is that of the quickest run: the
one that other work on the machine disturbed the least.
"""

import argparse
import json
import re
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from measuring import commit, recipe_fields
from worker import HERE, cores

sys.path.insert(0, str(HERE.parent))
from cifar_jax.process import prepare_process

# What makes two figures those of one row.
SAME = ("recipe", "fields", "device", "epochs", "trained_on")


def main() -> int:
    options = parse()
    results = HERE / "results"
    if options.add:
        from cifar_jax import InputError

        try:
            add(options, results)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    elif options.recipes:
        measure(options, results)
    print(table(results))
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds for all of it")
    parser.add_argument("--need", type=float, default=0.0, help="seconds that a recipe's first seed is thought to take")
    parser.add_argument("--workdir", help="folder that holds the unfinished runs")
    parser.add_argument(
        "--add", nargs="+", default=[], help="workdirs of finished runs of the one recipe that is given"
    )
    arguments, changes = recipe_fields(sys.argv[1:])
    options = parser.parse_args(arguments)
    options.changes, options.field = changes, sorted(f"{field}={value}" for field, value in changes.items())
    if options.add and len(options.recipes) != 1:
        parser.error("--add needs the one recipe that the runs are of")
    return options


def add(options: argparse.Namespace, results: Path) -> None:
    """The figures of finished runs. Their fields are what they have otherwise than the recipe's file."""
    import cifar_jax as cj
    from cifar_jax.recipe import differences, flatten
    from cifar_jax.runs.devices import compute_dtype

    path = options.recipes[0]
    file = results / f"table_{Path(path).stem}.json"
    figures = json.loads(file.read_text()) if file.exists() else []
    for workdir in options.add:
        run = cj.load_run(workdir)
        if run.evaluation is None:
            raise cj.InputError(f"the run in '{workdir}' is not complete; train it to its end")
        decided = {"seed", "part_steps"}
        decided |= {"dtype"} if run.recipe.dtype == compute_dtype("auto") else set()
        stored = cj.load_recipe(Path(workdir) / "recipe.json")  # a field younger than the run has its default
        told = [line.split(":", 1)[0] for line in differences(cj.load_recipe(path), stored)]
        values = flatten(stored)
        fields = [f"{field}={values[field]}" for field in told if field not in decided]
        seconds = sum(line["seconds"] for line in run.history)
        known = json.loads((Path(workdir) / "environment.json").read_text())["packages"]
        new = figure(run, Path(path).stem, run.recipe.seed, fields, seconds) | {"jax": known["jax"]}
        key = lambda each: [each[name] for name in (*SAME, "seed")]
        figures = [*(each for each in figures if key(each) != key(new)), new]
        file.write_text(json.dumps(figures, indent=1) + "\n")


def measure(options: argparse.Namespace, results: Path) -> None:
    prepare_process()
    import cifar_jax as cj
    from cifar_jax.data import arrays as data

    begin, loaded = time.perf_counter(), {}
    for path in options.recipes:
        recipe = cj.load_recipe(path, options.changes)
        name, seconds = Path(path).stem, options.need
        if recipe.data.name not in loaded:
            loaded[recipe.data.name] = {split: data.load(recipe.data.name, split) for split in ("train", "test")}
        file = results / f"table_{name}.json"
        figures = json.loads(file.read_text()) if file.exists() else []
        for seed in range(options.seeds):
            known = [(figure["seed"], figure["fields"], figure["device"]) for figure in figures]
            if (seed, options.field, device()) in known:
                continue
            if time.perf_counter() - begin + seconds > options.limit:
                print(f"{name}: seed {seed} would take {seconds:.0f} s, more than the limit allows", flush=True)
                break
            folder = re.sub(r"[^\w.=-]", "_", "-".join([name, *options.field, str(seed)]))
            workdir = Path(options.workdir, folder) if options.workdir else None
            resumed, start = workdir is not None and workdir.exists(), time.perf_counter()
            try:
                run = cj.fit(cj.override(recipe, {"seed": seed}), workdir, data=loaded[recipe.data.name])
            except cj.InputError as error:  # the next recipe may do
                print(f"{name}: seed {seed}: {error}", file=sys.stderr, flush=True)
                break
            # What a resumed run took in all stands in its log, which knows nothing of compiling and the evaluation.
            seconds = sum(line["seconds"] for line in run.history) if resumed else time.perf_counter() - start
            figures.append(figure(run, name, seed, options.field, seconds))
            file.write_text(json.dumps(figures, indent=1) + "\n")
            print(json.dumps(figures[-1]), flush=True)


def device() -> str:
    import jax

    kind = jax.devices()[0]
    return kind.device_kind if kind.platform != "cpu" else f"{cores()} CPU cores"


def figure(run: Any, name: str, seed: int, fields: list[str], seconds: float) -> dict[str, Any]:
    import jax

    from cifar_jax import training
    from cifar_jax.models.counts import counts

    parameters, multiply_adds = counts(training.model(run.recipe), run.recipe.data.image_shape)
    return {
        "recipe": name,
        "fields": fields,
        "seed": seed,
        "accuracy": run.evaluation.accuracy,
        "validation_accuracy": run.history[-1]["validation_accuracy"],
        "epochs": len(run.history),
        "trained_on": run.recipe.data.train_count,
        "parameters": parameters,
        "multiply_adds": multiply_adds,
        "device": device(),
        "seconds": round(seconds, 1),  # with compiling and the evaluation, where the run was begun here
        "epoch_seconds": round(statistics.median(line["seconds"] for line in run.history), 3),
        "jax": jax.__version__,
        "dtype": run.recipe.dtype,
        "commit": commit(),
    }


def table(results: Path) -> str:
    """A row for all figures that differ in their seed alone."""
    rows: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for file in sorted(results.glob("table_*.json")):
        for each in json.loads(file.read_text()):
            rows.setdefault(tuple(str(each[field]) for field in SAME), []).append(each)
    head = [
        "recipe",
        "test accuracy",
        "n",
        "epochs",
        "images",
        "parameters",
        "device, time of the quickest run",
        "command",
    ]
    lines = [head, ["---"] * len(head)]
    for found in rows.values():
        accuracies = [100 * each["accuracy"] for each in found]
        mean = f"{statistics.fmean(accuracies):.2f}"
        accuracy = f"{mean} ± {statistics.stdev(accuracies):.2f}%" if len(found) > 1 else f"{mean}% (one seed)"
        first = found[0]
        minutes = min(each["seconds"] for each in found) / 60
        fields = "".join(f" {shlex.quote(f'--config.{field}')}" for field in first["fields"])
        command = f"`benchmarks/table.py configs/{first['recipe']}.py{fields}`"
        cells = [f"`{first['recipe']}`", accuracy, str(len(found))]
        cells += [str(first["epochs"]), f"{first['trained_on']:,}", f"{first['parameters']:,}"]
        lines.append([*cells, f"{first['device']}, {minutes:.1f} min", command])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
