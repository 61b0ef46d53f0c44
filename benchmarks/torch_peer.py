"""The PyTorch peers: the same networks and the same epoch, written as PyTorch is best written for a CPU.

A worker (see worker.py) that against_torch.py starts; it needs torch and numpy alone. fp32, channels_last, the whole
data set in memory as uint8, one permutation an epoch, no host read before the epoch's end. Two forms are measured:

    plain   ReLU, then max-pool, as tutorials write it
    fast    max-pool, then ReLU: the same function of a quarter of the values; 8 to 18% less on the two small networks.
            against_torch.py also gives this worker our malloc settings: nothing on `cnn`, 4% on `resnet18`, 20% and
            more on `two_conv`

Tried on two cores of an AVX-512 machine with torch 2.13, and no faster: fused SGD, normalising the whole data set
beforehand, ReLU in place, contiguous NCHW (all within 3%). torch.compile of network and loss takes 1.9 times as long
for `cnn` and 2.5 times for `two_conv`, and 3% less for `resnet18`, after 23 s of compilation.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from worker import cores, serve, usage


def pooled(form: str) -> list[nn.Module]:
    """ReLU and 2x2 max-pool: they commute, and the form says which comes first."""
    layers: list[nn.Module] = [nn.ReLU(), nn.MaxPool2d(2)]
    return layers if form == "plain" else layers[::-1]


class Features(nn.Module):
    """[B, C, H, W] -> [B, H * W * C]: in this order channels_last needs no copy."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.permute(0, 2, 3, 1).flatten(1)


def cnn(form: str, width: int = 32, kernel_size: int = 5, hidden: int = 128) -> nn.Module:
    """cifar_jax/models/cnn.py."""
    return nn.Sequential(
        nn.Conv2d(3, width, kernel_size, padding=kernel_size // 2),
        *pooled(form),
        nn.Conv2d(width, 2 * width, kernel_size, padding=kernel_size // 2),
        *pooled(form),
        Features(),
        nn.Linear(8 * 8 * 2 * width, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 10),
    )


def two_conv(form: str, width: int = 32) -> nn.Module:
    """Two 3x3 convolutions, each with 2x2 max-pooling, and one linear layer."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        *pooled(form),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        *pooled(form),
        Features(),
        nn.Linear(8 * 8 * 2 * width, 10),
    )


class BasicBlock(nn.Module):
    def __init__(self, channels: int, features: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, features, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(features)
        self.shortcut: nn.Module = nn.Identity()
        if channels != features:
            projection = nn.Conv2d(channels, features, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x), inplace=True)


def resnet18(form: str, width: int = 64) -> nn.Module:
    """cifar_jax/models/resnet.py; it has no max-pool, so both forms are one."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True)]
    for stage in range(4):
        features = width * 2**stage
        channels = features // 2 if stage else width
        layers += [BasicBlock(channels, features, 2 if stage else 1), BasicBlock(features, features, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, 10))


NETWORKS = {"cnn": cnn, "two_conv": two_conv, "resnet18": resnet18}


class Peer:
    def prepare(self, form: str, folder: str, setting: dict[str, Any]) -> dict[str, Any]:
        """Takes the arrays in `folder` and the numbers of our recipe, and warms up with a few steps."""
        torch.set_num_threads(cores())
        self.form, self.setting = form, setting
        self.images = torch.from_numpy(np.load(Path(folder) / "images.npy"))  # uint8 [N, H, W, C]
        self.labels = torch.from_numpy(np.load(Path(folder) / "labels.npy")).long()
        mean, std = (torch.tensor(setting[name]).reshape(1, -1, 1, 1) for name in ("mean", "std"))
        self.scale, self.shift = 1 / (255 * std), -mean / std
        self.start()
        start = time.perf_counter()
        self.epoch(steps=3)
        seconds = time.perf_counter() - start
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        return {"ready_seconds": seconds, "parameters": parameters}

    def start(self) -> None:
        """Fresh weights."""
        model = dict(self.setting["model"])
        network = NETWORKS[model.pop("name")](self.form, **model)
        self.model = network.to(memory_format=torch.channels_last)
        rate, momentum = self.setting["learning_rate"], self.setting["momentum"]
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=rate, momentum=momentum)

    def epoch(self, steps: int) -> tuple[float, float]:
        """`steps` steps -> mean loss and accuracy, summed on the way and read once."""
        size = self.setting["batch_size"]
        loss_sum, correct = torch.zeros(()), torch.zeros((), dtype=torch.int64)
        order = torch.randperm(len(self.images))[: steps * size]
        for chosen in order.split(size):
            # The images lie as [B, H, W, C]: seen as [B, C, H, W] they are channels_last without a copy.
            images = self.images.index_select(0, chosen).permute(0, 3, 1, 2)
            labels = self.labels.index_select(0, chosen)
            logits = self.model(images.mul(self.scale).add_(self.shift))
            loss = F.cross_entropy(logits, labels)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            loss_sum += loss.detach() * len(labels)
            correct += (logits.detach().argmax(1) == labels).sum()
        return loss_sum.item() / len(order), correct.item() / len(order)

    def train(self, epochs: int) -> dict[str, Any]:
        """Trains from fresh weights; drawing them is not timed."""
        self.start()
        start = time.perf_counter()
        for _ in range(epochs):
            loss, accuracy = self.epoch(len(self.images) // self.setting["batch_size"])
        return {"seconds": time.perf_counter() - start, "loss": loss, "accuracy": accuracy}

    def describe(self) -> dict[str, Any]:
        return {"torch": torch.__version__, "device": "cpu", "threads": torch.get_num_threads(), **usage()}


if __name__ == "__main__":
    peer = Peer()
    serve({"prepare": peer.prepare, "train": peer.train, "describe": peer.describe})
