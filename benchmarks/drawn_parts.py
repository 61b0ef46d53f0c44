"""How many defects are found on the parts that examples/draw_parts.py draws, and what starting weights change.

    python benchmarks/drawn_parts.py FOLDER            # draws, trains what is missing, evaluates
    python benchmarks/drawn_parts.py --smoke           # few images, an epoch: finds errors, measures nothing

Each way trains seeds 0 to 2: on all 5,000 training images, or on a fifth of them (20 with a defect) from random
weights, or from a body that was trained on CIFAR-10: as a whole, frozen, or at a tenth of the learning rate. An image
counts as a defect where 1 - P(good) reaches a threshold: the one with the highest recall at a precision of at least 90%
on validation. Recall and precision are those on the test split at that threshold. Writes drawn_parts.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measuring import commit, machine
from worker import HERE

import cifar_jax as cj
from cifar_jax.runs.thresholds import choose_value, rates

SEEDS = (0, 1, 2)
PRECISION = 0.9
BODY = {"model.widths": (16, 32, 64, 64), "model.convolutions": (1,), "model.dropout": 0.0, "epochs": 8}
FROZEN, SLOWER = ((("head/.*", 1, 1), ("(?!head/).*", factor, int(factor > 0))) for factor in (0, 0.1))


def ways(folder: Path) -> dict[str, dict[str, Any]]:
    """The fields of configs/parts.py that each way changes; names are those of the workdirs."""
    fifth = {"data.path": str(folder / "fifth"), "average.decay": 0.99}  # 640 steps: 0.998 would remember the first
    started = {**fifth, "init_from": str(folder / "runs" / "body")}
    return {
        "parts": {"data.path": str(folder / "parts")},
        "fifth": fifth,
        "tuned": started,
        "slower": {**started, "groups": SLOWER},
        "frozen": {**started, "groups": FROZEN},
    }


def train(folder: Path, name: str, fields: dict[str, Any], seed: int, smoke: bool) -> Any:
    recipe = cj.load_recipe(HERE.parent / "configs" / "parts.py", {**fields, "seed": seed})
    return cj.fit(cj.override(recipe, {"epochs": 1} if smoke else {}), folder / "runs" / f"{name}{seed}")


def figures(run: Any, wanted: float) -> dict[str, Any]:
    """Recall and precision of any defect on test, at the threshold that was chosen on validation."""
    held_out, test = (cj.predictions(run, split, progress=False) for split in ("validation", "test"))
    good = run.classes.index("good")
    both = lambda found: np.stack([found.probabilities[:, good], 1 - found.probabilities[:, good]], -1)
    labels = lambda found: (found.labels != good).astype(int)
    names = ("good", "defect")
    threshold = choose_value(both(held_out), labels(held_out), names, "defect", precision=wanted)
    recall, precision = rates(both(test)[:, 1], labels(test) == 1, threshold.value)
    shown = {"threshold": threshold.value, "test_accuracy": float(test.correct.mean())}
    return shown | {"recall": [recall.part, recall.whole], "precision": [precision.part, precision.whole]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="of the images and runs; a temporary one if not given")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        return measure(Path(options.folder or temporary).resolve(), options.smoke)


def measure(folder: Path, smoke: bool) -> int:
    scale = 0.2 if smoke else 1.0
    draw = [sys.executable, str(HERE.parent / "examples" / "draw_parts.py")]
    for name, share in (("parts", 1.0), ("fifth", 0.2)):
        if not (folder / name).exists():
            subprocess.run([*draw, str(folder / name), f"--share={share}", f"--scale={scale}"], check=True)
    body = cj.load_recipe(HERE.parent / "configs" / "convnet.py", {} if smoke else BODY)
    if smoke:
        body = cj.override(body, {**BODY, "data.name": "digits", "data.validation": 100, "epochs": 1})
    cj.fit(body, folder / "runs" / "body")
    result: dict[str, Any] = {"what": "defects found on drawn parts", **machine(), "commit": commit(), "ways": {}}
    for name, fields in ways(folder).items():
        trained = [train(folder, name, fields, seed, smoke) for seed in (SEEDS[:2] if smoke else SEEDS)]
        runs = [figures(run, 0.001 if smoke else PRECISION) for run in trained]
        result["ways"][name] = runs
        for figure in ("recall", "precision"):
            values = [part / whole for part, whole in (run[figure] for run in runs)]
            print(f"{name:8} {figure:9} {statistics.mean(values):7.2%} ± {statistics.stdev(values):.2%} of {values}")
    if not smoke:
        (HERE / "results" / "drawn_parts.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
