"""Training with 64-bit values in JAX: in float32, whose loops must keep their dtypes, and in float64."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, sys
import jax
import cifar_jax as cj
from tests import made

data = {"train": made.split(32), "test": made.split(16, seed=1)}
models = {"cnn": {}, "resnet18": {"width": 4, "stages": (1,)}, "speedrun94": {"widths": (4, 8)}}
more = {
    "cnn": {"augment.mixup": 0.2, "augment.brightness": 0.2, "lookahead.steps": 2},
    "resnet18": {"average.start_epoch": 1, "sam.rho": 0.05},
    "speedrun94": {"average.decay": 0.9},
}
results = {}
for dtype in ("float32", "float64"):
    for name, fields in models.items():
        changes = {"model": {"name": name, **fields}, "dtype": dtype, "epochs": 2, "gradient_accumulation": 2}
        changes |= {"augment.flip": 0.5, "augment.crop": 1, "data.validation": 8, **more[name]}
        run = cj.fit(made.recipe(changes), data=data, progress=False)
        losses = [line["train_loss"] for line in run.history]
        results[f"{name} {dtype}"] = [losses, sorted({str(leaf.dtype) for leaf in jax.tree.leaves(run.state.params)})]
json.dump(results, sys.stdout)
"""


@pytest.fixture(scope="module")
def results():
    environment = os.environ | {"JAX_ENABLE_X64": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", ["cnn", "resnet18", "speedrun94"])
def test_both_dtypes_train_to_the_same_losses(results, name):
    """Another dtype draws other random numbers from the same key, so only the size of the losses is the same."""
    (single, single_dtypes), (double, double_dtypes) = results[f"{name} float32"], results[f"{name} float64"]
    assert (single_dtypes, double_dtypes) == (["float32"], ["float64"])
    assert double == pytest.approx(single, rel=0.5)
    assert single != double
