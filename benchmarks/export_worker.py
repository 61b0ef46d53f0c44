"""A worker (see worker.py) that answers batches of images with one form of an exported model; export.py starts it.

    classifier   cj.load_classifier of the archive, in a process prepared as launch.py's
    stablehlo    jax.jit of the program's call: jax alone
    onnx         onnxruntime, its defaults
    torch        torchvision's network with the exported weights, contiguous or channels_last, whichever is faster here

Preprocessing and softmax are part of every side.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from worker import cores, serve, usage

Answer = Callable[[np.ndarray], np.ndarray]  # images uint8 [B, H, W, C] -> probabilities [B, classes]


def classifier(folder: Path, images: np.ndarray) -> Answer:
    import cifar_jax as cj

    cj.prepare_process()
    return cj.load_classifier(folder).probabilities


def stablehlo(folder: Path, images: np.ndarray) -> Answer:
    import jax
    from jax import export

    program = jax.jit(export.deserialize(bytearray((folder / "model.stablehlo").read_bytes())).call)
    return lambda images: np.asarray(program(images)["probabilities"])


def onnx(folder: Path, images: np.ndarray) -> Answer:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx")
    return lambda images: session.run(["probabilities"], {"images": images})[0]


def torch(folder: Path, images: np.ndarray) -> Answer:
    import torch
    import torchvision
    from safetensors.torch import load_file

    torch.set_num_threads(cores())
    about = json.loads((folder / "model.json").read_text())
    network = getattr(torchvision.models, about["architecture"])(num_classes=10)
    if about["architecture"].startswith("resnet"):
        network.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
        network.maxpool = torch.nn.Identity()
    else:
        network.avgpool, network.classifier = torch.nn.AdaptiveAvgPool2d(1), torch.nn.Linear(512, 10)
    network.load_state_dict(load_file(folder / "torchvision.safetensors"))
    network.eval()
    mean, std = (torch.tensor(about["normalisation"][name]).reshape(-1, 1, 1) for name in ("mean", "std"))

    def answer(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            inputs = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
            return (network((inputs - mean) / std) / about["temperature"]).softmax(-1).numpy()

    def seconds() -> float:
        answer(images)
        start = time.perf_counter()
        answer(images)
        return time.perf_counter() - start

    contiguous = seconds()
    network.to(memory_format=torch.channels_last)
    if contiguous < seconds():
        network.to(memory_format=torch.contiguous_format)
    return answer


SIDES = {each.__name__: each for each in (classifier, stablehlo, onnx, torch)}


class Side:
    def prepare(self, side: str, folder: str, batch_size: int) -> dict[str, Any]:
        """Loads the model, warms up, and says what it answers to the first images."""
        shape = json.loads((Path(folder) / "model.json").read_text())["image_shape"]
        self.images = np.random.RandomState(0).randint(0, 256, (batch_size, *shape)).astype(np.uint8)
        start = time.perf_counter()
        self.answer = SIDES[side](Path(folder), self.images)
        probabilities = self.answer(self.images)
        ready = time.perf_counter() - start
        self.answer(self.images)
        return {"ready_seconds": ready, "probabilities": probabilities[:8].tolist()}

    def run(self, calls: int) -> dict[str, Any]:
        """Milliseconds an image over so many calls."""
        start = time.perf_counter()
        for _ in range(calls):
            self.answer(self.images)
        return {"milliseconds": (time.perf_counter() - start) * 1000 / calls / len(self.images)}


if __name__ == "__main__":
    side = Side()
    serve({"prepare": side.prepare, "run": side.run, "describe": usage})
