"""Forward-mode differentiation of every model, inside `forward_mode`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cifar_jax as cj
from cifar_jax.models import MODELS, kernels
from cifar_jax.models.embedding import embed
from tests.models.test_models import TINY

IMAGES = np.random.RandomState(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
FAMILIES = {getattr(MODELS[name], "func", MODELS[name]): name for name in reversed(TINY)}  # one of each class


@pytest.mark.parametrize("name", sorted(FAMILIES.values()))
def test_hessian_vector_products_equal_those_of_reverse_mode(name):
    fields = {field: value for field, value in TINY[name].items() if field not in ("dropout", "drop_path")}
    module = MODELS[name](num_classes=3, **fields)
    variables = module.init(jax.random.key(0), IMAGES, train=False)
    params, rest = variables["params"], {name: value for name, value in variables.items() if name != "params"}

    def loss(params):
        given = {"params": params, **rest}
        logits, _ = module.apply(
            given, IMAGES, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(1)}
        )
        return jnp.mean(jnp.square(jax.nn.log_softmax(logits)))

    keys = iter(jax.random.split(jax.random.key(2), 1000))
    vector = jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape), params)
    along = lambda gradients: sum(
        jnp.vdot(g, v) for g, v in zip(*map(jax.tree.leaves, (gradients, vector)), strict=True)
    )
    expected = jax.jit(jax.grad(lambda params: along(jax.grad(loss)(params))))(params)
    product = jax.jit(lambda params: jax.jvp(jax.grad(loss), (params,), (vector,))[1])
    with pytest.raises(TypeError, match="forward-mode"):
        product(params)
    with cj.forward_mode():
        found = product(params)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    assert largest > 0
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-3 * largest)


@pytest.mark.parametrize("name", sorted(FAMILIES.values()))
def test_the_embedding_is_what_the_head_takes_and_the_logits_are_those_of_forward_mode(name):
    module = MODELS[name](num_classes=3, **TINY[name])
    variables = module.init(jax.random.key(0), IMAGES, train=False)
    logits, embeddings = jax.jit(lambda images: embed(module, variables, images))(IMAGES)
    head = variables["params"]["head"]
    own = embeddings @ head["kernel"] * getattr(module, "head_scale", 1.0) + head.get("bias", 0.0)
    np.testing.assert_allclose(own, logits, rtol=1e-4, atol=1e-5)
    assert embeddings.shape == (4, head["kernel"].shape[0])
    assert embeddings.dtype == jnp.float32
    paths = [path for path, _ in jax.tree.leaves_with_path(variables["params"])]
    assert {path[0].key for path in paths if any(part.key == "head" for part in path)} == {"head"}
    with cj.forward_mode():
        plain = jax.jit(lambda images: module.apply(variables, images, train=False))(IMAGES)
    np.testing.assert_allclose(plain, logits, rtol=1e-3, atol=1e-4)


def test_a_function_that_was_traced_before_is_traced_again_inside_and_after():
    traces = []

    @jax.jit
    def pooled(x):
        traces.append(1)
        return kernels.max_pool(kernels.gelu(x))

    operations = lambda: str(jax.make_jaxpr(pooled)(IMAGES))
    pooled(IMAGES)
    outside = operations()
    with cj.forward_mode():
        pooled(IMAGES)
        assert "reduce_window" in operations()
        with cj.forward_mode():
            pooled(IMAGES)
        with pytest.raises(ZeroDivisionError), cj.forward_mode():
            raise ZeroDivisionError
        jax.jvp(pooled, (IMAGES,), (IMAGES,))
    assert operations() == outside
    assert "custom_vjp" in outside
    assert len(traces) == 2
