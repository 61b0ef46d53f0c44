"""Weights under torchvision's names: the inverse of starting weights, and PyTorch's logits.

The tests of PyTorch need an environment with torch, torchvision and safetensors: this one, or the Python that the
variable CIFAR_JAX_TORCH_PYTHON names.
"""

import functools
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

import cifar_jax as cj
from cifar_jax import training
from cifar_jax.runs import pretrained
from cifar_jax.runs.classifier import Classifier
from cifar_jax.training import evaluated_weights
from tests import made

pytest.importorskip("safetensors")

from cifar_jax.inference.torchvision_names import torchvision_tensors, write_torchvision

RESNETS = {
    "CIFAR stem": {"name": "resnet18", "stages": (1, 2), "width": 4},
    "ImageNet stem": {"name": "resnet18", "stages": (1, 2), "width": 4, "stem": "imagenet"},
    "bottlenecks": {"name": "resnet50", "stages": (1, 1), "width": 4},
}
VGGS = {
    "VGG": {"name": "vgg11", "stages": (1, 2), "width": 2},
    "VGG with normalisation": {"name": "vgg11_bn", "stages": (1, 2), "width": 2},
    "VGG with hidden layers": {"name": "vgg11_bn", "stages": (1, 2), "width": 2, "classifier": "hidden"},
}


def classifier(model, **changes):
    recipe = made.recipe({"model": model, **changes})
    return Classifier(recipe, made.weights(recipe), made.split().classes, 1.5)


@pytest.mark.parametrize("model", [*RESNETS.values(), *VGGS.values()], ids=[*RESNETS, *VGGS])
def test_starting_weights_read_it_bit_for_bit(model, tmp_path):
    """`init_from` is tested against torchvision's forward pass in tests/runs/test_pretrained.py."""
    given = classifier(model)
    write_torchvision(tmp_path / "weights.safetensors", given)
    recipe = made.recipe({"model": model, "init_from": str(tmp_path / "weights.safetensors")})
    state = pretrained.first_state(recipe, {}, jax.eval_shape(lambda: training.init(recipe)))
    made.assert_same(evaluated_weights(state), given.weights)


REFUSED = {
    "another architecture": ({"name": "cnn", "width": 4}, {}, "are known for ResNet and VGG, and the model is a CNN"),
    "shortcuts without weights": (
        {"name": "resnet20", "stages": (1, 1), "width": 4},
        {},
        "shortcuts are 1x1 convolutions (B), and model.shortcut is 'A'",
    ),
    "another activation": (
        {"name": "resnet18", "stages": (1,), "width": 4, "activation": "silu"},
        {},
        "use ReLU, and model.activation is 'silu'",
    ),
    "odd images of a VGG": (
        {"name": "vgg11", "stages": (1, 1), "width": 2},
        {"data.image_shape": (6, 8, 3)},
        "drops the last row of an odd number, and the images are 6x8",
    ),
}


@pytest.mark.parametrize(("model", "changes", "told"), REFUSED.values(), ids=REFUSED)
def test_what_torchvision_has_no_network_for_is_refused(model, changes, told):
    with pytest.raises(cj.InputError) as error:
        torchvision_tensors(classifier(model, **changes))
    assert told in str(error.value)


@functools.cache
def torch_python():
    """A Python with the libraries, or None."""
    for python in (os.environ.get("CIFAR_JAX_TORCH_PYTHON"), sys.executable):
        check = [python, "-c", "import numpy, safetensors.torch, torch, torchvision"]
        if python and subprocess.run(check, capture_output=True).returncode == 0:
            return python
    return None


with_torch = pytest.mark.skipif(
    torch_python() is None, reason="no torch, torchvision and safetensors; CIFAR_JAX_TORCH_PYTHON can name a Python"
)
IMAGES = np.random.RandomState(0).randint(0, 256, (3, 32, 32, 3)).astype(np.uint8)


@with_torch
def test_the_script_of_the_page_gives_our_probabilities(tmp_path):
    from tests.inference.test_export import SCRIPTS, in_a_clean_process

    (script,) = [script for script in SCRIPTS if "import torch" in script]
    given = classifier({"name": "resnet18"}, **{"data.image_shape": (32, 32, 3)})
    small = jax.tree.map(lambda leaf: leaf * np.float32(0.3), given.weights["params"]["head"])
    given.weights["params"]["head"] = small  # so that the probabilities are not 0 and 1
    from cifar_jax.runs.archive import write_archive

    write_archive(tmp_path / "exported", given, metrics={}, data={}, functions={})
    write_torchvision(tmp_path / "exported" / "torchvision.safetensors", given)
    np.save(tmp_path / "images.npy", IMAGES)
    found, _ = in_a_clean_process(torch_python(), script, tmp_path)
    assert found.std() > 1e-3
    np.testing.assert_allclose(found, given.probabilities(IMAGES), atol=1e-4)


NETWORKS = {  # our model, the network of torchvision that is the same
    "resnet50, ImageNet stem": ({"name": "resnet50", "stem": "imagenet"}, "m.resnet50(num_classes=4)"),
    "vgg11_bn": ({"name": "vgg11_bn"}, "headless(m.vgg11_bn())"),
    "vgg11 with hidden layers": ({"name": "vgg11", "classifier": "hidden"}, "m.vgg11(num_classes=4)"),
}
PROGRAM = """
import numpy as np, torch, torchvision.models as m
from safetensors.torch import load_file
def headless(vgg):
    vgg.avgpool, vgg.classifier = torch.nn.AdaptiveAvgPool2d(1), torch.nn.Linear(512, 4)
    return vgg
network = NETWORK.eval()
network.load_state_dict(load_file("torchvision.safetensors"))
inputs = (torch.from_numpy(np.load("images.npy")).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
with torch.no_grad():
    np.save("logits.npy", network(inputs).numpy())
"""


@with_torch
@pytest.mark.parametrize(("model", "network"), NETWORKS.values(), ids=NETWORKS)
def test_pytorch_computes_our_logits(model, network, tmp_path):
    given = classifier(model, **{"data.image_shape": (32, 32, 3), "data.mean": (0.5,), "data.std": (0.5,)})
    write_torchvision(tmp_path / "torchvision.safetensors", given)
    np.save(tmp_path / "images.npy", IMAGES)
    command = [torch_python(), "-I", "-c", PROGRAM.replace("NETWORK", network)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ours = given.logits(IMAGES)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), ours, atol=1e-4 * np.abs(ours).max(), rtol=0)
