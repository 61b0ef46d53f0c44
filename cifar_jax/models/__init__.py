"""The architectures. A model is a Linen module: `__call__(images [B, H, W, C], *, train) -> logits [B, num_classes]`."""

from cifar_jax.models.cnn import CNN
from cifar_jax.models.resnet import resnet18

MODELS = {
    "cnn": CNN,
    "resnet18": resnet18,
}
