"""The same seed gives the same run on 1 and on 8 devices, up to the order of sums."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cifar_jax.runs.devices import Placement

ROOT = Path(__file__).parent.parent

# gelu: at the kink of relu a difference in the last bit of a sum grows to 1e-3 of a gradient within a few steps.
SCRIPT = """
import json, sys, tempfile
import cifar_jax as cj
import jax, numpy as np
from cifar_jax import training
from cifar_jax.runs import devices, stream
from cifar_jax.runs.loop import Executor
from tests import made

data = {"train": made.split(96, classes=4, size=8, seed=0), "test": made.split(43, classes=4, size=8, seed=1)}
recipe = made.recipe(
    epochs=2, batch_size=16, dtype="float32",
    model={"name": "resnet18", "width": 4, "stages": (1,), "activation": "gelu"},
    optimizer={"name": "sgd", "learning_rate": 0.05},
    **{"data.validation": 20, "evaluation.batch_size": 1000, "augment.crop": 1},
)
results = []
for count in (1, 8):
    executor = Executor(devices.Placement(jax.devices()[:count]))
    fitted = cj.fit(recipe, data=data, progress=False, executor=executor)
    leaves = jax.tree.leaves(fitted.state)
    results.append({
        "devices": sorted({len(leaf.sharding.device_set) for leaf in leaves}),
        "history": fitted.history,
        "leaves": [np.asarray(leaf, np.float64).ravel().tolist() for leaf in leaves],
        "confusion": fitted.evaluation.confusion_matrix.tolist(),
    })
whole, device_memory = fitted, devices.device_memory
devices.device_memory, stream.PART = lambda device: 30_000, 1 / 4  # bytes: the images take 18,432
fitted = cj.fit(recipe, data=data, progress=False, executor=executor)
devices.device_memory, equal = device_memory, lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes()
same = jax.tree.map(equal, whole.state, fitted.state)
results[1]["streamed"] = [fitted.recipe.part_steps, all(jax.tree.leaves(same))]
placement = devices.Placement(jax.devices())
text = devices.jit(lambda x: jax.lax.with_sharding_constraint(x, placement.batch) * 2).lower(np.ones((16, 3)))
results[1]["split"] = [list(shard.data.shape) for shard in text.compile()(np.ones((16, 3))).addressable_shards]
mlp = lambda units: {"name": "mlp", "widths": (units,)}
selecting = made.recipe({"selection.share": 0.5, "batch_size": 32}, model=mlp(37), proxy=mlp(11))
constrain = devices.constraint(placement.batch)[0]
def step(state, images, labels):
    batch = training.Batch(images, labels, labels, 0)
    return training.train_step(selecting, state, batch, constrain=constrain)
split = data["train"].images[:32], data["train"].labels[:32]
text = devices.jit(step).lower(made.init(selecting), *map(jax.device_put, split, [placement.batch] * 2)).compile()
results[1]["selected"] = [f"f32[{rows},37]" in text.as_text() for rows in (2, 16)]
try:
    cj.fit(cj.override(recipe, {"batch_size": 15}), data=data, progress=False)
except cj.InputError as error:
    results[1]["uneven"] = str(error)
folder = tempfile.mkdtemp()
small = cj.override(recipe, {"model": {"name": "mlp", "widths": (8,)}})  # each device compiles its own program
cj.ablate(small, [{"augment.crop": 0}], seeds=5, folder=folder, data=data, execution="devices", progress=False)
last = cj.load_run(f"{folder}/runs/crop=0/seed4")  # the tenth run, on eight devices
one = Executor(devices.Placement(jax.devices()[3:4]))
single = cj.fit(cj.override(small, {"augment.crop": 0, "seed": 4}), data=data, progress=False, executor=one)
same = jax.tree.map(lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), last.state, single.state)
results[1]["one each"] = all(jax.tree.leaves(same))
json.dump(results, sys.stdout)
"""


@pytest.fixture(scope="module")
def one_and_eight():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PYTHONPATH": str(ROOT)}
    process = subprocess.run([sys.executable, "-c", SCRIPT], env=os.environ | flags, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def test_each_run_used_its_devices(one_and_eight):
    assert [result["devices"] for result in one_and_eight] == [[1], [8]]
    assert one_and_eight[1]["split"] == [[2, 3]] * 8


def test_a_sharded_run_equals_the_single_one(one_and_eight):
    one, eight = one_and_eight
    for a, b in zip(one["leaves"], eight["leaves"], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5)
    for a, b in zip(one["history"], eight["history"], strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)
        assert a["validation_loss"] == pytest.approx(b["validation_loss"], rel=1e-4)


def test_streamed_images_are_split_over_the_devices_with_the_same_results(one_and_eight):
    """In parts of two steps, of which an epoch has four."""
    assert one_and_eight[1]["streamed"] == [2, True]


def test_every_test_image_counts_once_on_eight_devices(one_and_eight):
    """43 images in one batch over 8 devices."""
    assert np.sum(one_and_eight[1]["confusion"]) == 43


def test_the_selected_images_are_split_over_the_devices(one_and_eight):
    """16 of 32 images: every device computes the activations of 2, and none those of all."""
    assert one_and_eight[1]["selected"] == [True, False]


def test_a_study_trains_one_run_on_each_device(one_and_eight):
    """Ten runs on eight devices; one of them is the single run on another device, bit for bit."""
    assert one_and_eight[1]["one each"]


def test_a_batch_that_does_not_split_is_refused(one_and_eight):
    assert one_and_eight[1]["uneven"] == "batch_size=15 does not split over 8 devices; make it a multiple"


def test_one_device_needs_no_constraint():
    placement = Placement()
    assert placement.batch is None
    placement.check("batch_size", 7)
