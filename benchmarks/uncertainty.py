"""One table in the columns of google/uncertainty-baselines: accuracy, negative log-likelihood and calibration error of
the test split, their means under corruption, and the AUROC of telling other images from the test images.

    python benchmarks/uncertainty.py RUN...     # seeds of one recipe: the mean of single models, and the ensemble
    python benchmarks/uncertainty.py RUN... --other=noise --other=digits

Corruptions are the 13 of `cj.robustness`, at five severities. A run keeps the temperature that it was calibrated with.
The result is stored as uncertainty_<model>.json in --out.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

from measuring import commit, machine
from worker import HERE

import cifar_jax as cj
from cifar_jax.runs.robustness import Robustness


def row(found: Robustness) -> dict[str, float]:
    """The figures of one line, by column."""
    under = found.mean_under_corruption()
    columns = {
        "accuracy": found.clean.accuracy,
        "nll": found.clean.loss,
        "ece": found.clean.expected_calibration_error,
        "cA": under["accuracy"],
        "cNLL": under["loss"],
        "cECE": under["expected_calibration_error"],
    }
    return columns | {f"AUROC {other.name} {other.score}": other.auroc for other in found.out_of_distribution}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--other", action="append", default=[], help="a data set, a folder, or noise")
    parser.add_argument("--data_dir")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    runs = [cj.load_run(path) for path in options.runs]
    chosen = {"out_of_distribution": options.other or ["noise", "digits"], "data_dir": options.data_dir}
    singles = [row(cj.robustness(run, **chosen)) for run in runs]
    lines = {"single": {name: statistics.mean(single[name] for single in singles) for name in singles[0]}}
    if len(runs) > 1:
        lines["ensemble"] = row(cj.robustness(runs, **chosen))
    name = runs[0].recipe.model.name
    print(f"| {name} | n | {' | '.join(lines['single'])} |")
    for kind, figures in lines.items():
        shown = [f"{value:.3f}" if "nll" in column.lower() else f"{value:.2%}" for column, value in figures.items()]
        print(f"| {kind} | {len(runs)} | {' | '.join(shown)} |")
    result = {"what": "robustness", **machine(), "commit": commit(), "model": name, "singles": singles, **lines}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"uncertainty_{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
