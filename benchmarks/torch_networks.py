"""The PyTorch networks that ours are measured beside; a function's parameters are the fields of our model.

`form` is "plain", ReLU and then max-pool as tutorials have it, or "fast", max-pool first: the same function. Networks
whose max-pool, if any, has its place elsewhere have one form. Parameters are created in the order in which ours are,
so that torch_peer.py can start from our weights and compare.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn


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


def tutorial(form: str, widths: Sequence[int] = (6, 16), hidden: Sequence[int] = (120, 84)) -> nn.Module:
    """The network of PyTorch's "60 minute blitz": 5x5 convolutions without padding."""
    return nn.Sequential(
        nn.Conv2d(3, widths[0], 5),
        *pooled(form),
        nn.Conv2d(widths[0], widths[1], 5),
        *pooled(form),
        Features(),
        nn.Linear(5 * 5 * widths[1], hidden[0]),
        nn.ReLU(),
        nn.Linear(hidden[0], hidden[1]),
        nn.ReLU(),
        nn.Linear(hidden[1], 10),
    )


class Padded(nn.Module):
    """Option A: every second pixel, and zeros in the new channels."""

    def __init__(self, stride: int, more: int) -> None:
        super().__init__()
        self.stride, self.more = stride, more

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))


def projected(channels: int, features: int, stride: int) -> nn.Module:
    """Option B: a 1x1 convolution."""
    return nn.Sequential(nn.Conv2d(channels, features, 1, stride, bias=False), nn.BatchNorm2d(features))


class BasicBlock(nn.Module):
    def __init__(self, channels: int, features: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, features, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(features)
        self.shortcut: nn.Module = nn.Identity()
        if channels != features:
            padded = shortcut == "A"
            self.shortcut = Padded(stride, features - channels) if padded else projected(channels, features, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x), inplace=True)


def resnet(width: int, stages: Sequence[int], shortcut: str) -> nn.Module:
    """cifar_jax/models/resnet.py with basic blocks; it has no max-pool, so both forms are one."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True)]
    channels = width
    for stage, blocks in enumerate(stages):
        features = width * 2**stage
        for number in range(blocks):
            layers.append(BasicBlock(channels, features, 2 if stage and not number else 1, shortcut))
            channels = features
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def resnet18(form: str, width: int = 64, stages: Sequence[int] = (2, 2, 2, 2)) -> nn.Module:
    return resnet(width, stages, "B")


def resnet20(form: str, width: int = 16, stages: Sequence[int] = (3, 3, 3)) -> nn.Module:
    return resnet(width, stages, "A")


def vgg16_bn(form: str, width: int = 64, stages: Sequence[int] = (2, 2, 3, 3, 3)) -> nn.Module:
    """cifar_jax/models/vgg.py: one linear layer over the mean of the pixels that are left."""
    layers: list[nn.Module] = []
    channels = 3
    for stage, convolutions in enumerate(stages):
        features = width * min(2**stage, 8)
        for _ in range(convolutions):
            layers += [nn.Conv2d(channels, features, 3, padding=1), nn.BatchNorm2d(features), nn.ReLU(True)]
            channels = features
        layers[-1:] = pooled(form)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


class WideBlock(nn.Module):
    """norm, ReLU, 3x3, norm, ReLU, 3x3; where the channels change the shortcut starts behind the first ReLU."""

    def __init__(self, channels: int, features: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        same = channels == features
        self.shortcut = None if same else nn.Conv2d(channels, features, 1, stride, bias=False)
        self.conv1 = nn.Conv2d(channels, features, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm1(x), inplace=True)
        if self.shortcut is not None:
            x = self.shortcut(y)
        return x + self.conv2(F.relu(self.norm2(self.conv1(y)), inplace=True))


def wide_resnet16_4(form: str, depth: int = 16, widen: int = 4, width: int = 16) -> nn.Module:
    """cifar_jax/models/wide_resnet.py; no max-pool, one form."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1, bias=False)]
    channels = width
    for group in range(3):
        features = width * widen * 2**group
        for number in range((depth - 4) // 6):
            layers.append(WideBlock(channels, features, 2 if group and not number else 1))
            channels = features
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]
    return nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU(True), *head)


class Whitening(nn.Module):
    """A 2x2 convolution whose filters are frozen and whose bias is not; GELU."""

    whitening: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("whitening", torch.randn(24, 3, 2, 2))
        self.bias = nn.Parameter(torch.empty(24).uniform_(-(12**-0.5), 12**-0.5))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.gelu(F.conv2d(images, self.whitening, self.bias))


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


def speedrun94(form: str, widths: Sequence[int] = (64, 256, 256)) -> nn.Module:
    """cifar_jax/models/speedrun.py; max-pool stands before the norm, one form."""

    def norm(features: int) -> list[nn.Module]:
        layer = nn.BatchNorm2d(features, eps=1e-12, momentum=0.4)
        layer.weight.requires_grad = False
        return [layer, nn.GELU()]

    layers: list[nn.Module] = [Whitening()]
    channels = 24
    for features in widths:
        layers += [nn.Conv2d(channels, features, 3, padding=1, bias=False), nn.MaxPool2d(2), *norm(features)]
        layers += [nn.Conv2d(features, features, 3, padding=1, bias=False), *norm(features)]
        channels = features
    head = [nn.MaxPool2d(3), nn.Flatten(), nn.Linear(channels, 10, bias=False), Scale(1 / 256)]
    return nn.Sequential(*layers, *head)


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "cnn": cnn,
    "two_conv": two_conv,
    "tutorial": tutorial,
    "resnet18": resnet18,
    "resnet20": resnet20,
    "vgg16_bn": vgg16_bn,
    "wide_resnet16_4": wide_resnet16_4,
    "speedrun94": speedrun94,
}
