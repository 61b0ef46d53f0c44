"""The architectures: Linen modules, `__call__(images [B, H, W, C], *, train) -> logits [B, num_classes]`.

The last layer of each is a module named `head`, whose input [B, D] is the embedding (`embed`). cnn.py is the one to
read first; layers.py and kernels.py hold what the architectures are built from.
"""

from cifar_jax.models.cnn import CNN
from cifar_jax.models.convmixer import convmixer256_8
from cifar_jax.models.convnet import ConvNet
from cifar_jax.models.densenet import densenet_bc100_12
from cifar_jax.models.embedding import embed
from cifar_jax.models.mlp import MLP
from cifar_jax.models.mobilenet import MobileNetV2
from cifar_jax.models.preactivation import preactivation_resnet18
from cifar_jax.models.resnet import (
    resnet18,
    resnet20,
    resnet32,
    resnet34,
    resnet44,
    resnet50,
    resnet56,
    resnet110,
)
from cifar_jax.models.speedrun import speedrun94, speedrun96
from cifar_jax.models.vgg import vgg11, vgg11_bn, vgg13, vgg13_bn, vgg16, vgg16_bn, vgg19, vgg19_bn
from cifar_jax.models.vit import ViT
from cifar_jax.models.wide_resnet import wide_resnet16_4, wide_resnet16_8, wide_resnet28_10
from cifar_jax.recipe import Table

__all__ = ["MODELS", "embed"]

MODELS: Table = {
    "mlp": MLP,
    "cnn": CNN,
    "convnet": ConvNet,
    "vgg11": vgg11,
    "vgg13": vgg13,
    "vgg16": vgg16,
    "vgg19": vgg19,
    "vgg11_bn": vgg11_bn,
    "vgg13_bn": vgg13_bn,
    "vgg16_bn": vgg16_bn,
    "vgg19_bn": vgg19_bn,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet44": resnet44,
    "resnet56": resnet56,
    "resnet110": resnet110,
    "preactivation_resnet18": preactivation_resnet18,
    "wide_resnet16_4": wide_resnet16_4,
    "wide_resnet16_8": wide_resnet16_8,
    "wide_resnet28_10": wide_resnet28_10,
    "densenet_bc100_12": densenet_bc100_12,
    "mobilenet_v2": MobileNetV2,
    "convmixer256_8": convmixer256_8,
    "vit": ViT,
    "speedrun94": speedrun94,
    "speedrun96": speedrun96,
}
