"""Models with jax_enable_x64: exact derivatives in float64, and float32 that stays float32."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax.errors import InputError
from cifar_jax.runs.devices import compute_dtype, jit
from cifar_jax.training.losses import LOSSES
from tests.models.test_models import TINY, build, images

TARGETS = np.eye(5, dtype=np.float32)[:4]


def loss(model, variables, params, inputs, name="cross_entropy", **settings):
    """The mean loss in training mode, and the new batch statistics."""
    given = {**variables, "params": params}
    logits, changed = model.apply(
        given, inputs, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}
    )
    return LOSSES[name](logits, TARGETS, **settings).mean(), changed.get("batch_stats", {})


def check_dtypes(dtype):
    """Parameters, statistics before and after a step, loss and gradients of every model are in `dtype`."""
    for name in TINY:
        model = build(name, dtype=dtype)
        variables = jax.eval_shape(lambda model=model: model.init(jax.random.key(0), images(), train=False))
        losses = {"cross_entropy": {"class_weights": (1.0, 2.0, 0.5, 1.0, 1.0)}, "focal": {}}
        for kind, settings in losses.items() if name == "mlp" else [("cross_entropy", {})]:
            function = lambda given, model=model, kind=kind, settings=settings: jax.value_and_grad(
                lambda params: loss(model, given, params, images(), kind, **settings), has_aux=True
            )(given["params"])
            (value, statistics), gradients = jax.eval_shape(function, variables)
            found = {str(leaf.dtype) for leaf in jax.tree.leaves((variables, value, statistics, gradients))}
            assert found == {dtype}, (name, kind, found)


def check_gradients(name):
    """Along a random direction the gradient is the central difference, to more digits than float32 has."""
    model, random = build(name, dtype="float64"), np.random.RandomState(2)
    inputs = images().astype(np.float64)
    variables = jit(lambda: model.init(jax.random.key(0), inputs, train=False))()
    direction = jax.tree.map(lambda leaf: random.normal(size=leaf.shape), variables["params"])

    @jit
    def along(step):
        params = jax.tree.map(lambda leaf, move: leaf + step * move, variables["params"], direction)
        value, gradients = jax.value_and_grad(lambda params: loss(model, variables, params, inputs)[0])(params)
        return value, sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradients, direction)))

    step = 1e-6
    difference = (along(step)[0] - along(-step)[0]) / (2 * step)
    np.testing.assert_allclose(along(0.0)[1], difference, rtol=1e-7, err_msg=name)


def test_every_model_with_64_bit_values():
    """In a process of its own, because the setting applies to a whole process."""
    environment = {**os.environ, "JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.models.test_float64"]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr


@pytest.mark.skipif(jax.config.jax_enable_x64, reason="the whole suite runs with 64-bit values")
def test_float64_without_64_bit_values_is_refused():
    with pytest.raises(InputError, match=r"dtype 'float64' needs 64-bit values in JAX, .* JAX_ENABLE_X64=1, or choose"):
        compute_dtype("float64")
    with pytest.raises(InputError, match="dtype 'float128' is unknown"):
        compute_dtype("float128")


if __name__ == "__main__":
    assert compute_dtype("float64") == "float64"
    for dtype in ("float32", "float64"):
        check_dtypes(dtype)
    for name in ("convnet", "convmixer256_8", "vit"):  # convolution, pooling, norm; depthwise, GELU; attention
        check_gradients(name)
