"""The weights of a ResNet or VGG under torchvision's names and in its layouts: the inverse of runs/pretrained.py."""

from pathlib import Path

import jax
import numpy as np

from cifar_jax import training
from cifar_jax.errors import InputError
from cifar_jax.models.resnet import ResNet
from cifar_jax.models.vgg import VGG
from cifar_jax.runs.archive import flat_weights, safetensors_numpy
from cifar_jax.runs.classifier import Classifier
from cifar_jax.runs.files import write_bytes
from cifar_jax.runs.pretrained import FIELDS, LAYOUTS, WINDOWS

FILE = "torchvision.safetensors"


def write_torchvision(path: Path, classifier: Classifier) -> None:
    """Writes the tensors of `torchvision_tensors`. Raises InputError as that does, and where safetensors is missing."""
    content = safetensors_numpy(path).save(torchvision_tensors(classifier), {"format": "pt"})
    write_bytes(path, content)


def torchvision_tensors(classifier: Classifier) -> dict[str, np.ndarray]:
    """{"layer1.0.conv1.weight": float32 array, ...}; PyTorch computes the same logits of normalised images with them.

    A VGG without hidden layers has "classifier.weight" and "classifier.bias", for an `nn.Linear` in the place of
    torchvision's classifier. Raises InputError where torchvision has no such network.
    """
    model = training.model(classifier.recipe)
    if reason := difference(model, training.state.input_shape(classifier.recipe)):
        raise InputError(f"{FILE} cannot be written: {reason}")
    modules, _ = LAYOUTS[type(model)](model, {})
    tensors = {}
    for name, array in flat_weights(classifier.weights).items():
        _, *module, field = name.split("/")
        ours = "/".join(module)
        tensors[f"{modules[ours]}.{FIELDS[field]}"] = as_in_torch(array, WINDOWS.get(ours, (1, 1)))
    return tensors


def difference(model: object, shape: tuple[int, int, int]) -> str | None:
    """Why torchvision's networks do not compute what the model does on images [H, W, C], in words; None if they do."""
    if not isinstance(model, ResNet | VGG):
        return f"torchvision's names are known for ResNet and VGG, and the model is a {type(model).__name__}"
    if model.activation != "relu":
        return f"torchvision's networks use ReLU, and model.activation is '{model.activation}'"
    if isinstance(model, ResNet) and model.shortcut != "B" and len(model.stages) > 1:
        return f"torchvision's shortcuts are 1x1 convolutions (B), and model.shortcut is '{model.shortcut}'"
    if isinstance(model, VGG) and any(size % 2 ** len(model.stages) for size in shape[:2]):
        return f"torchvision's pooling drops the last row of an odd number, and the images are {shape[0]}x{shape[1]}"
    return None


def as_in_torch(array: np.ndarray, window: tuple[int, int]) -> np.ndarray:
    """[h, w, in, out] -> [out, in, h, w]; [in, out] -> [out, in], where `in` is ordered by pixel here and by channel
    there; a vector stays. float32."""
    if array.ndim == 2:
        inner = array.reshape(*window, -1, array.shape[-1]).transpose(3, 2, 0, 1)
        array = inner.reshape(len(inner), -1)
    elif array.ndim == 4:
        array = array.transpose(3, 2, 0, 1)
    return np.ascontiguousarray(jax.device_get(array), np.float32)
