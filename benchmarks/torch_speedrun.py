"""configs/speedrun94.py in PyTorch, float32, on the CPU: a peer of benchmarks/speedrun.py where there is no GPU.

    python benchmarks/speedrun.py --peer torch=benchmarks/torch_speedrun.py --peer-python=PATH

It is laid out as the public speedruns are: images in cifar10/*.pt, `range(200)` runs, a printed row each. Written from
the recipe, in eager PyTorch with channels_last; a batch is taken in SPEEDRUN_PARTS parts, whose working sets are small.
"""

import os
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, os.environ["SPEEDRUN_BENCHMARKS"])
from torch_networks import speedrun94

EPOCHS, PARTS = (int(os.environ.get(f"SPEEDRUN_{name}", default)) for name, default in (("EPOCHS", 8), ("PARTS", 8)))
BATCH = 2000
FILTERS, BIASES, HEAD, DECAY = 0.24, 0.053, 0.67, 0.004
MEAN = torch.tensor((0.4914, 0.4822, 0.4465)).view(1, 3, 1, 1)
STD = torch.tensor((0.2470, 0.2435, 0.2616)).view(1, 3, 1, 1)


def load(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images float32 [N, 3, 32, 32], normalised, channels_last, and labels int64 [N]."""
    stored = torch.load(Path("cifar10", f"{split}.pt"), weights_only=True)
    images = (stored["images"].permute(0, 3, 1, 2).float() / 255 - MEAN) / STD
    return images.contiguous(memory_format=torch.channels_last), stored["labels"]


def whiten(model: torch.nn.Module, images: torch.Tensor) -> None:
    """The first convolution's filters from the 2x2 patches of images."""
    patches = images.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12)
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = (vectors / (values + 5e-4).sqrt()).T.flip(0).reshape(12, 3, 2, 2)
    model[0].whitening.copy_(torch.cat([filters, -filters]))


def start_weights(model: torch.nn.Module) -> None:
    """Convolutions uniform, their first filters the identity; the head of deviation 1."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data.uniform_(-(parameter[0].numel() ** -0.5), parameter[0].numel() ** -0.5)
            torch.nn.init.dirac_(parameter.data[: parameter.shape[1]])
        elif parameter.ndim == 2:
            parameter.data.uniform_(-1, 1).div_(parameter.data.std())


def orthogonal(gradient: torch.Tensor) -> torch.Tensor:
    x = gradient.reshape(len(gradient), -1).bfloat16()
    x = x / (x.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(3):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.T if tall else x).float().view(gradient.shape)


@torch.no_grad()
def muon(filters: list[torch.Tensor], buffers: list[torch.Tensor], rate: float) -> None:
    for weight, buffer in zip(filters, buffers, strict=True):
        buffer.mul_(0.6).add_(weight.grad)
        weight.mul_(len(weight) ** 0.5 / weight.norm())
        weight.add_(orthogonal(weight.grad.add(buffer, alpha=0.6)), alpha=-rate)


def crop(images: torch.Tensor) -> torch.Tensor:
    """Each image shifted by -2..2 along both axes, reflected at its border."""
    padded = F.pad(images, (2, 2, 2, 2), "reflect").contiguous(memory_format=torch.channels_last)
    shifts = torch.randint(0, 5, (len(images), 2))
    shifted = torch.empty_like(images, memory_format=torch.channels_last)
    for row in range(5):
        for column in range(5):
            chosen = ((shifts[:, 0] == row) & (shifts[:, 1] == column)).nonzero()[:, 0]
            shifted[chosen] = padded[chosen, :, row : row + 32, column : column + 32]
    return shifted


@torch.inference_mode()
def accuracy(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """With six views."""
    correct = 0
    for batch, answers in zip(images.split(1000), labels.split(1000), strict=True):
        padded = F.pad(batch, (1, 1, 1, 1), "reflect").contiguous(memory_format=torch.channels_last)
        logits = torch.zeros(len(batch), 10)
        for weight, view in ((0.25, batch), (0.125, padded[:, :, :32, :32]), (0.125, padded[:, :, 2:, 2:])):
            view = view.contiguous(memory_format=torch.channels_last)
            logits += weight * (model(view) + model(view.flip(3)))
        correct += int((logits.argmax(1) == answers).sum())
    return correct / len(labels)


def main(run: int, train: tuple[torch.Tensor, torch.Tensor], test: tuple[torch.Tensor, torch.Tensor]) -> None:
    torch.manual_seed(run)
    begin = time.perf_counter()
    images, labels = train
    model = speedrun94("plain").to(memory_format=torch.channels_last)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1 - 0.6 ** (1 / PARTS)
    start_weights(model)
    with torch.no_grad():
        whiten(model, images[:5000])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    filters = [parameter for parameter in trained if parameter.ndim == 4]
    buffers = [torch.zeros_like(weight) for weight in filters]
    rates = [(HEAD if parameter.ndim == 2 else BIASES) * BATCH for parameter in trained if parameter.ndim != 4]
    others = [parameter for parameter in trained if parameter.ndim != 4]
    groups = [
        {"params": [each], "lr": rate, "weight_decay": DECAY / rate} for each, rate in zip(others, rates, strict=False)
    ]
    sgd = torch.optim.SGD(groups, momentum=0.85, nesterov=True)
    whitening = next(index for index, parameter in enumerate(others) if parameter is model[0].bias)
    steps = len(images) // BATCH
    flipped = torch.rand(len(images)) < 0.5
    step, last = 0, 0.0
    for epoch in range(EPOCHS):
        for chosen in torch.randperm(len(images))[: steps * BATCH].split(BATCH):
            batch = images[chosen]
            mirrored = (flipped[chosen] ^ (epoch % 2 == 1)).nonzero()[:, 0]
            batch[mirrored] = batch[mirrored].flip(3)
            batch, answers = crop(batch), labels[chosen]
            model.zero_grad(set_to_none=True)
            last = 0.0
            for part, goal in zip(batch.split(BATCH // PARTS), answers.split(BATCH // PARTS), strict=True):
                loss = F.cross_entropy(model(part), goal, label_smoothing=0.2) / PARTS
                loss.backward()
                last += loss.item()
            left = 1 - step / (steps * EPOCHS)
            for index, (group, rate) in enumerate(zip(sgd.param_groups, rates, strict=True)):
                group["lr"] = rate * (max(0.0, 1 - step / (3 * steps)) if index == whitening else left)
            sgd.step()
            muon(filters, buffers, FILTERS * left)
            step += 1
    model.eval()
    correct = accuracy(model, *test)
    seconds = time.perf_counter() - begin
    print(f"| {run:6} | eval | {last:.4f} |  | {correct:.4f} | {seconds:.4f} |", flush=True)


if __name__ == "__main__":
    sets = load("train"), load("test")
    for run in range(200):
        main(run, *sets)
