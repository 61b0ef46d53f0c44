"""The PyTorch peers: the same networks and the same epoch, written as PyTorch is best written.

A worker (see worker.py) that against_torch.py starts; it needs torch and numpy alone. fp32, channels_last, the whole
data set in memory as uint8, one permutation an epoch, no host read before the epoch's end. Two forms are measured:

    plain   ReLU, then max-pool, as tutorials write it
    fast    max-pool, then ReLU: the same function of a quarter of the values; 8 to 18% less on the two small networks.
            against_torch.py also gives this worker our malloc settings: nothing on `cnn`, 4% on `resnet18`, 20% and
            more on `two_conv`

And two on an NVIDIA GPU, in bfloat16 by autocast (fp32 without one), with cuDNN's search for the fastest algorithms:

    eager       fused SGD
    compiled    the same with torch.compile of the network and its loss

Tried on two cores of an AVX-512 machine with torch 2.13, and no faster: fused SGD, normalising the whole data set
beforehand, ReLU in place, contiguous NCHW (all within 3%). torch.compile of network and loss takes 1.9 times as long
for `cnn` and 2.5 times for `two_conv`, and 3% less for `resnet18`, after 23 s of compilation.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch_networks import NETWORKS
from worker import cores, serve, usage


def seen(array: np.ndarray) -> torch.Tensor:
    """Our kernel [h, w, C, O] as PyTorch's [O, C, h, w], our [C, O] as its [O, C]."""
    return torch.from_numpy(array.transpose(range(array.ndim - 1, -1, -1) if array.ndim < 4 else (3, 2, 0, 1)))


class Peer:
    def prepare(self, form: str, folder: str, setting: dict[str, Any]) -> dict[str, Any]:
        """Takes the arrays in `folder` and the numbers of our recipe, compares, and warms up with a few steps."""
        self.take(form, setting)
        self.images = torch.from_numpy(np.load(Path(folder) / "images.npy")).to(self.device)  # uint8 [N, H, W, C]
        self.labels = torch.from_numpy(np.load(Path(folder) / "labels.npy")).long().to(self.device)
        difference = self.difference(Path(folder) / "check.npz")
        torch.backends.cudnn.benchmark = torch.backends.cudnn.allow_tf32 = True
        self.half = self.device.type == "cuda"
        self.compile = form == "compiled"
        self.start()
        start = time.perf_counter()
        self.epoch(steps=3)
        seconds = time.perf_counter() - start
        return {"ready_seconds": seconds, "difference": difference}

    def take(self, form: str, setting: dict[str, Any]) -> None:
        torch.set_num_threads(cores())
        self.form, self.setting, self.half, self.compile = form, setting, False, False
        gpu = form in ("eager", "compiled") and torch.cuda.is_available()
        self.device: Any = torch.device("cuda" if gpu else "cpu")
        mean, std = (torch.tensor(setting[name]).reshape(1, -1, 1, 1).to(self.device) for name in ("mean", "std"))
        self.scale, self.shift = 1 / (255 * std), -mean / std

    def start(self, learning_rate: float = 0.0) -> None:
        """Fresh weights."""
        model = dict(self.setting["model"])
        network = NETWORKS[model.pop("name")](self.form, **model)
        self.model = network.to(self.device, memory_format=torch.channels_last)
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        rate, momentum = learning_rate or self.setting["learning_rate"], self.setting["momentum"]
        fused = {"fused": True} if self.device.type == "cuda" else {}
        self.optimizer = torch.optim.SGD(self.trained, lr=rate, momentum=momentum, **fused)
        self.forward = torch.compile(self.loss) if self.compile else self.loss

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Our weights before the check's steps. Raises ValueError where the networks are not alike."""
        before = [arrays[f"before{index}"] for index in range(int(arrays["count"]))]
        ours, own = [seen(array).shape for array in before], [tuple(parameter.shape) for parameter in self.trained]
        if ours != own:
            raise ValueError(f"the sides do not train the same network; in order, ours: {ours}, PyTorch's: {own}")
        buffers = dict(self.model.named_buffers())
        with torch.no_grad():
            for parameter, array in zip(self.trained, before, strict=True):
                parameter.copy_(seen(array))
            for name in arrays["buffers"]:
                (buffer,) = [buffers[key] for key in buffers if key.rsplit(".", 1)[-1] == name]
                buffer.copy_(seen(arrays[name]))

    def difference(self, path: Path) -> float:
        """How far some steps from our weights end from where ours do, as a share of the way: see Ours.check."""
        arrays = np.load(path)
        self.start(float(arrays["learning_rate"]))
        self.load(arrays)
        labels = torch.from_numpy(arrays["labels"]).long()
        torch.backends.cudnn.allow_tf32 = False  # as exact as float32 is: VGG-16 would end 16 to 23% of the way apart
        for _ in range(int(arrays["steps"])):
            self.step(torch.from_numpy(arrays["images"]).to(self.device), labels.to(self.device))
        missed = way = 0.0
        for index, parameter in enumerate(self.trained):
            before, after = seen(arrays[f"before{index}"]), seen(arrays[f"after{index}"])
            missed += float((parameter.detach().cpu() - after).double().square().sum())
            way += float((after - before).double().square().sum())
        return (missed / way) ** 0.5

    def loss(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # Seen as [B, C, H, W] the images are channels_last without a copy.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            logits = self.model(images.permute(0, 3, 1, 2).mul(self.scale).add_(self.shift))
        return F.cross_entropy(logits.float(), labels), logits

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One step on uint8 [B, H, W, C] and int64 [B] -> its mean loss, the logits before it."""
        loss, logits = self.forward(images, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach(), logits.detach()

    def epoch(self, steps: int) -> tuple[float, float]:
        """`steps` steps -> mean loss and accuracy, summed on the way and read once."""
        size = self.setting["batch_size"]
        loss_sum = torch.zeros((), device=self.device)
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        order = torch.randperm(len(self.images), device=self.device)[: steps * size]
        for chosen in order.split(size):
            labels = self.labels.index_select(0, chosen)
            loss, logits = self.step(self.images.index_select(0, chosen), labels)
            loss_sum += loss * len(labels)
            correct += (logits.argmax(1) == labels).sum()
        return loss_sum.item() / len(order), correct.item() / len(order)

    def train(self, epochs: int) -> dict[str, Any]:
        """Trains from fresh weights; drawing them is not timed."""
        self.start()
        start = time.perf_counter()
        for _ in range(epochs):
            loss, accuracy = self.epoch(len(self.images) // self.setting["batch_size"])
        return {"seconds": time.perf_counter() - start, "loss": loss, "accuracy": accuracy}

    def prepare_inference(self, form: str, folder: str, setting: dict[str, Any]) -> dict[str, Any]:
        """Takes the batches in `folder`, and compares the logits of the first with ours."""
        self.take(form, setting)
        self.batches = list(np.load(Path(folder) / "images.npy"))
        arrays = np.load(Path(folder) / "check.npz")
        self.start()
        self.load(arrays)
        self.model.eval()
        difference = np.abs(self.logits(self.batches[0]) - arrays["logits"]).max() / np.abs(arrays["logits"]).max()
        self.start()
        self.model.eval()
        start = time.perf_counter()
        self.logits(self.batches[0])
        return {"ready_seconds": time.perf_counter() - start, "difference": float(difference)}

    def logits(self, images: np.ndarray) -> np.ndarray:
        """uint8 [B, H, W, C] -> float32 [B, classes]."""
        with torch.inference_mode():
            given = torch.from_numpy(images).permute(0, 3, 1, 2)
            return self.model(given.mul(self.scale).add_(self.shift)).numpy()

    def infer(self, calls: int) -> dict[str, Any]:
        """The seconds of each call, from images in NumPy to logits in NumPy."""
        seconds = []
        for number in range(calls):
            start = time.perf_counter()
            self.logits(self.batches[number % len(self.batches)])
            seconds.append(time.perf_counter() - start)
        return {"seconds": seconds}

    def describe(self) -> dict[str, Any]:
        return {"torch": torch.__version__, "device": self.device.type, "threads": torch.get_num_threads(), **usage()}


if __name__ == "__main__":
    peer = Peer()
    serve(
        {
            "prepare": peer.prepare,
            "train": peer.train,
            "prepare_inference": peer.prepare_inference,
            "infer": peer.infer,
            "describe": peer.describe,
        }
    )
