"""Vision Transformer (Dosovitskiy et al., "An Image Is Worth 16x16 Words", ICLR 2021) of a size for CIFAR-10.

    layer                                                              output (32x32, patch 4)
    patches, dense; class token; learned position embedding            65 x width
    [norm, attention with `heads` heads, + input;
     norm, dense, GELU, dense, + input] x depth                        65 x width
    norm, class token, dense                                           num_classes

The sizes are those of Lee et al. ("Vision Transformer for Small-Size Datasets", 2021) for CIFAR: width 192, depth 9,
12 heads, hidden layers twice as wide, patch 4, queries, keys and values without biases; they train with drop_path 0.1.

                            parameters (10 classes)    multiply-adds (32x32)
    vit                                  2,692,426                        187.7 M
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cifar_jax.errors import InputError
from cifar_jax.models.kernels import at_least_float32
from cifar_jax.models.layers import Convolution, DropPath, activation, choice, drop_path_rates

POOLINGS = {"token": lambda x: x[:, 0], "average": lambda x: x.mean(1, dtype=at_least_float32(x.dtype))}


def dense(features: int, dtype: Any, use_bias: bool = True, name: str | None = None) -> nn.Dense:
    """A dense layer in `dtype` whose weights start as in Glorot & Bengio 2010."""
    init = nn.initializers.xavier_uniform()
    return nn.Dense(features, use_bias, dtype, at_least_float32(dtype), kernel_init=init, name=name)


def attention(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
    """softmax(queries keys^T / sqrt(d)) values, each [B, tokens, heads, d]; the softmax in at least float32.

    JAX's function computes its softmax in float32 for float64 inputs too.
    """
    if queries.dtype != jnp.float64:
        return jax.nn.dot_product_attention(queries, keys, values)
    scores = jnp.einsum("bqhd,bkhd->bhqk", queries, keys) / queries.shape[-1] ** 0.5
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), values)


class Attention(nn.Module):
    """Multi-head self-attention over x [B, tokens, width]; the softmax is taken in at least float32."""

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, tokens, width = x.shape
        queries, keys, values = (
            dense(width, self.dtype, use_bias=False, name=name)(x).reshape(batch, tokens, self.heads, -1)
            for name in ("queries", "keys", "values")
        )
        x = attention(queries, keys, values)
        return dense(width, self.dtype, name="out")(x.reshape(batch, tokens, width))


class EncoderBlock(nn.Module):
    """Attention, then a hidden layer, each with a norm before it and a residual connection (figure 1, right)."""

    heads: int
    expansion: int
    activation: str
    dropout: float
    drop_path: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = partial(nn.LayerNorm, epsilon=1e-6, dtype=self.dtype, param_dtype=at_least_float32(self.dtype))
        drop = partial(nn.Dropout, self.dropout, deterministic=not train)
        y = Attention(self.heads, self.dtype)(norm()(x))
        x += DropPath(self.drop_path)(drop()(y), train)
        y = activation(self.activation)(dense(self.expansion * x.shape[-1], self.dtype)(norm()(x)))
        y = dense(x.shape[-1], self.dtype)(drop()(y))
        return x + DropPath(self.drop_path)(drop()(y), train)


class ViT(nn.Module):
    num_classes: int
    width: int = 192  # channels of a token
    depth: int = 9  # blocks
    heads: int = 12
    expansion: int = 2  # width of the hidden layers over `width`
    patch_size: int = 4  # pixels along each side; the border is padded with zeros
    pooling: str = "token"  # the class token's output, or the average of the patches' without such a token
    activation: str = "gelu"
    dropout: float = 0.0  # fraction dropped in training after the embedding, the attention and both dense layers
    drop_path: float = 0.0  # probability that the last block's branches are dropped; it grows linearly up to there
    remat: bool = False  # recompute each block for its gradient instead of storing its activations
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        if self.width % self.heads:
            raise InputError(f"model.heads={self.heads} does not divide model.width={self.width}; change one of them")
        pool = choice("pooling", self.pooling, POOLINGS)
        block = nn.remat(EncoderBlock, static_argnums=(2,)) if self.remat else EncoderBlock
        small, wide = nn.initializers.normal(0.02), at_least_float32(self.dtype)
        patch = (self.patch_size, self.patch_size)
        init = nn.initializers.lecun_normal()  # Xavier's fan out would count each of the patch's pixels
        x = Convolution(self.width, patch, patch, dtype=self.dtype, kernel_init=init, name="patches")(images)
        x = x.reshape(x.shape[0], -1, self.width)
        if self.pooling == "token":
            token = self.param("token", small, (1, 1, self.width), wide).astype(self.dtype)
            x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, self.width)), x], 1)
        x += self.param("positions", small, (1, *x.shape[1:]), wide).astype(self.dtype)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        for number, rate in enumerate(drop_path_rates(self.drop_path, self.depth)):
            settings = self.heads, self.expansion, self.activation, self.dropout, rate, self.dtype
            x = block(*settings, name=f"block{number + 1}")(x, train)
        x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, param_dtype=wide, name="last_norm")(x)
        return nn.Dense(self.num_classes, param_dtype=wide, name="head")(pool(x).astype(wide))
