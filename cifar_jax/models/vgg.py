"""VGG (Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015), table 1.

    stage    output     11 (A)      13 (B)      16 (D)      19 (E)
    1        32 x 32    3x3, 64     2 x         2 x         2 x       max-pool 2x2
    2        16 x 16    3x3, 128    2 x         2 x         2 x       max-pool 2x2
    3         8 x  8    2 x 256     2 x         3 x         4 x       max-pool 2x2
    4         4 x  4    2 x 512     2 x         3 x         4 x       max-pool 2x2
    5         2 x  2    2 x 512     2 x         3 x         4 x       max-pool 2x2
    head      1 x  1    average pool, dense

The default classifier is one dense layer on the average over the pixels of stage 5, as is usual for 32x32 images. With
model.classifier=hidden it is the paper's: two hidden layers of 4,096 units, which hold most of the parameters, and the
dense layer. Its input is 7x7 pixels, the size that 224x224 images give; other sizes are average-pooled to 7x7, as in
torchvision.

With `batch_norm` one follows each convolution (the paper is older); the biases stay, as in the implementations whose
counts are quoted. Weights start with variance 2 / fan in: without normalisation, 2 / fan out would make the signal 13
times smaller on its way to the head, as the channels grow from 3 to 512.

                            parameters (10 classes)    multiply-adds (32x32)
    vgg11                                9,225,610                        152.8 M
    vgg13                                9,410,122                        228.3 M
    vgg16                               14,719,818                        313.2 M
    vgg19                               20,029,514                        398.1 M
    vgg11_bn                             9,231,114                        152.8 M
    vgg13_bn                             9,416,010                        228.3 M
    vgg16_bn                            14,728,266                        313.2 M
    vgg19_bn                            20,040,522                        398.1 M
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cifar_jax.models.kernels import adaptive_average_pool, at_least_float32, max_pool
from cifar_jax.models.layers import BatchNorm, Convolution, activation, choice

CLASSIFIERS = {"average": 0, "hidden": 2}  # hidden layers before the head


class VGG(nn.Module):
    num_classes: int
    stages: tuple[int, ...] = (2, 2, 3, 3, 3)  # convolutions in each stage; max-pooling follows each
    width: int = 64  # channels of the first stage; each stage doubles them, up to 8 times
    batch_norm: bool = True
    classifier: str = "average"  # of the pixels; or "hidden": two hidden layers of 64 * width on 7x7 pixels
    activation: str = "relu"
    dropout: float = 0.0  # fraction dropped in training of the pooled features, or of each hidden layer's
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        norm = partial(BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)
        conv = partial(Convolution, kernel_init=nn.initializers.he_normal(), dtype=self.dtype)
        x = images
        for stage, convolutions in enumerate(self.stages):
            for _ in range(convolutions):
                x = conv(self.width * min(2**stage, 8))(x)
                if self.batch_norm:
                    x = norm()(x)
                x = activation(self.activation)(x)
            x = max_pool(x, padding="SAME")  # a single pixel stays one: images may be smaller than 32x32
        hidden = choice("classifier", self.classifier, CLASSIFIERS)
        drop = nn.Dropout(self.dropout, deterministic=not train)
        wide, init = at_least_float32(self.dtype), nn.initializers.he_normal()
        x = adaptive_average_pool(x, (7, 7)).reshape(x.shape[0], -1) if hidden else x.mean((1, 2), dtype=wide)
        for number in range(hidden):
            settings = {"dtype": self.dtype, "param_dtype": wide, "kernel_init": init}
            dense = nn.Dense(64 * self.width, name=f"hidden{number + 1}", **settings)
            x = activation(self.activation)(dense(x if number == 0 else drop(x)))
        return nn.Dense(self.num_classes, param_dtype=wide, name="head")(drop(x).astype(wide))


vgg11 = partial(VGG, stages=(1, 1, 2, 2, 2), batch_norm=False)
vgg13 = partial(VGG, stages=(2, 2, 2, 2, 2), batch_norm=False)
vgg16 = partial(VGG, stages=(2, 2, 3, 3, 3), batch_norm=False)
vgg19 = partial(VGG, stages=(2, 2, 4, 4, 4), batch_norm=False)
vgg11_bn = partial(VGG, stages=(1, 1, 2, 2, 2), batch_norm=True)
vgg13_bn = partial(VGG, stages=(2, 2, 2, 2, 2), batch_norm=True)
vgg16_bn = partial(VGG, stages=(2, 2, 3, 3, 3), batch_norm=True)
vgg19_bn = partial(VGG, stages=(2, 2, 4, 4, 4), batch_norm=True)
