"""The architectures: Linen modules, `__call__(images [B, H, W, C], *, train) -> logits [B, num_classes]`."""

from cifar_jax.models.cnn import CNN
from cifar_jax.models.resnet import resnet18
from cifar_jax.recipe import Table

MODELS: Table = {
    "cnn": CNN,
    "resnet18": resnet18,
}
