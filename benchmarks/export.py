"""Milliseconds an image of an exported model beside Classifier and PyTorch: all sides warm, taking turns.

    python benchmarks/export.py --torch-python=PATH    # an environment with torch, torchvision and safetensors
    python benchmarks/export.py --smoke                # one round: finds errors, measures nothing

Models with initial weights, 32x32 images in batches of 1 and 16; every side must give the same probabilities. Writes
export.json to --out.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from measuring import OthersClock, commit, machine, ratio, spread, turns
from worker import HERE, Worker

sys.path.insert(0, str(HERE.parent))
MODELS = ("resnet18", "vgg11_bn")
CALLS = {1: 10, 16: 1}  # calls in a turn, by batch size
AGREE = 1e-4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", help="the Python with PyTorch; without it there is no such side")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--rounds", type=int, default=4, help="passes there and back")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the result")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    pythons = {"classifier": sys.executable, "stablehlo": sys.executable, "onnx": sys.executable}
    if options.torch_python:
        pythons["torch"] = options.torch_python
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        for model in MODELS[:1] if options.smoke else options.models:
            folder = Path(name) / model
            export(model, folder)
            for size, calls in CALLS.items():
                chosen = (1, 1) if options.smoke else (options.rounds, calls)
                measured[f"{model}, batch {size}"] = measure(pythons, folder, size, *chosen)
    what = "milliseconds an image of an exported model"
    result = {"what": what, **machine(), "commit": commit(), "measured": measured}
    print(json.dumps(result, indent=1))
    if not options.smoke:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "export.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0


def export(model: str, folder: Path) -> None:
    """The model with the weights that its recipe starts from, for CIFAR-10 in float32."""
    import cifar_jax as cj
    from cifar_jax import training
    from cifar_jax.recipe import resolve
    from cifar_jax.runs.workdir import Run

    recipe = cj.load_recipe("configs/cnn.py", {"model": {"name": model}, "dtype": "float32"})
    facts = {"data.num_classes": 10, "data.image_shape": (32, 32, 3), "data.train_count": 50_000}
    resolved = resolve(recipe, facts)
    classes = tuple(map(str, range(10)))
    cj.export(Run(resolved, training.init(resolved), classes, [], None, None, {}), folder)


def measure(pythons: Mapping[str, str], folder: Path, size: int, rounds: int, calls: int) -> dict[str, Any]:
    """The sides' milliseconds in each turn, and ours over PyTorch's pass by pass."""
    workers = {side: Worker(python, "export_worker.py") for side, python in pythons.items()}
    try:
        ready = {
            side: worker.ask("prepare", side=side, folder=str(folder), batch_size=size)
            for side, worker in workers.items()
        }
        check(ready)
        clock = OthersClock(workers.values())
        sides = {side: lambda worker=worker: worker.ask("run", calls=calls) for side, worker in workers.items()}
        answers = turns(sides, rounds)
        share = clock.share()
    finally:
        for worker in workers.values():
            worker.close()
    times = {side: [answer["milliseconds"] for answer in each] for side, each in answers.items()}
    base = "torch" if "torch" in times else "classifier"
    return {
        "milliseconds": {side: spread(each) for side, each in times.items()},
        f"over_{base}": {side: ratio(each, times[base]) for side, each in times.items() if side != base},
        "ready_seconds": {side: round(answer["ready_seconds"], 2) for side, answer in ready.items()},
        "turns": {side: [round(each, 4) for each in values] for side, values in times.items()},
        "others_share_of_cpu": share,
    }


def check(ready: Mapping[str, dict[str, Any]]) -> None:
    """Raises ValueError where a side does not give the classifier's probabilities."""
    expected = np.array(ready["classifier"]["probabilities"])
    for side, answer in ready.items():
        gap = float(np.abs(np.array(answer["probabilities"]) - expected).max())
        if not gap <= AGREE:
            raise ValueError(f"{side} differs from the classifier by {gap:.2g}")


if __name__ == "__main__":
    sys.exit(main())
