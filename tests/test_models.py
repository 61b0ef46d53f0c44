"""One table visits every architecture."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax import train
from cifar_jax.devices import jit
from cifar_jax.losses import cross_entropy
from cifar_jax.models import MODELS
from cifar_jax.recipe import parameters
from tests import made

TINY = {  # parameters that make a model small
    "cnn": {"width": 4, "kernel_size": 3, "hidden": 8},
    "resnet18": {"width": 4, "stages": (1, 1)},
}
COUNTS = {  # parameters with the defaults, for 32x32x3 and 10 classes
    "cnn": (5 * 5 * 3 + 1) * 32 + (5 * 5 * 32 + 1) * 64 + (8 * 8 * 64 + 1) * 128 + (128 + 1) * 10,
    "resnet18": 11_173_962,
}
OTHER = {  # another value of each field that a recipe may set
    "width": 6,
    "kernel_size": 5,
    "hidden": 12,
    "stages": (1, 2),
    "activation": "tanh",
    "dropout": 0.5,
}
every_model = pytest.mark.parametrize("name", MODELS)


def build(name, classes=5, dtype="float32", **fields):
    section = {"name": name, **TINY[name], **fields}
    return train.model(made.recipe({"data.num_classes": classes, "dtype": dtype}, model=section))


def images(batch=4, height=8, width=8, channels=3):
    return np.random.RandomState(0).normal(size=(batch, height, width, channels)).astype(np.float32)


@functools.cache
def variables(name, classes=5):
    """With running statistics and biases that are not those of the start."""
    start = jit(lambda x: build(name, classes).init(jax.random.key(0), x, train=False))(images())
    random = np.random.RandomState(1)
    return jax.tree.map(lambda leaf: leaf + 0.1 * random.uniform(0.5, 1, leaf.shape).astype(np.float32), start)


@functools.cache
def program(name, train, **fields):
    model = build(name, **fields)
    apply = lambda v, x, key: model.apply(v, x, train=train, mutable=["batch_stats"], rngs={"dropout": key})
    return jit(apply)


def shapes(name, x, **fields):
    return jax.eval_shape(lambda: build(name, **fields).init_with_output(jax.random.key(0), x, train=False))


def test_every_model_is_in_the_table():
    assert set(TINY) == set(COUNTS) == set(MODELS)


@every_model
def test_as_many_parameters_as_the_paper_says(name):
    model = train.model(made.recipe({"data.num_classes": 10}, model={"name": name}))
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == COUNTS[name]


@every_model
@pytest.mark.parametrize(
    ("size", "channels", "classes"), [((8, 8), 3, 2), ((9, 11), 1, 10), ((15, 8), 3, 10), ((32, 32), 3, 100)]
)
def test_logits_are_float32_one_a_class_for_every_size(name, size, channels, classes):
    logits, _ = shapes(name, np.zeros((3, *size, channels), np.float32), classes=classes)
    assert logits.shape == (3, classes)
    assert logits.dtype == jnp.float32


@every_model
def test_the_smallest_images_reach_the_logits(name):
    """At 8x8 no layer is left without pixels: each image has logits of its own."""
    logits, _ = program(name, train=False)(variables(name), images(), jax.random.key(0))
    assert np.isfinite(logits).all()
    assert len(np.unique(np.asarray(logits), axis=0)) == 4


@every_model
def test_gradients_reach_every_parameter(name):
    model, targets = build(name), jax.nn.one_hot(jnp.arange(4), 5)

    @jit
    def gradients(variables, images):
        def loss(params):
            logits, _ = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return cross_entropy(logits, targets).mean()

        return jax.grad(loss)(variables["params"])

    for path, leaf in jax.tree.leaves_with_path(gradients(variables(name), images())):
        assert np.isfinite(leaf).all(), jax.tree_util.keystr(path)
        assert np.abs(leaf).max() > 1e-6, jax.tree_util.keystr(path)


@every_model
def test_evaluation_sees_each_image_alone_and_changes_nothing(name):
    evaluate = program(name, train=False)
    together, changed = evaluate(variables(name), images(), jax.random.key(0))
    made.assert_same(changed.get("batch_stats", {}), variables(name).get("batch_stats", {}))
    others = np.concatenate([images()[:2], 3 * images()[2:] + 1])
    np.testing.assert_array_equal(evaluate(variables(name), others, jax.random.key(0))[0][:2], together[:2])


@every_model
def test_training_differs_from_evaluation_by_batch_statistics_only(name):
    key, statistics = jax.random.key(0), variables(name).get("batch_stats", {})
    evaluated, _ = program(name, train=False)(variables(name), images(), key)
    trained, changed = program(name, train=True)(variables(name), images(), key)
    if not statistics:
        np.testing.assert_allclose(trained, evaluated, rtol=1e-5, atol=1e-6)
        return
    assert np.abs(trained - evaluated).max() > 1e-3
    for (path, new), old in zip(
        jax.tree.leaves_with_path(changed["batch_stats"]), jax.tree.leaves(statistics), strict=True
    ):
        assert np.all(new != old), jax.tree_util.keystr(path)
    moved = {**variables(name), "batch_stats": jax.tree.map(lambda leaf: 2 * leaf, statistics)}
    np.testing.assert_array_equal(program(name, train=True)(moved, images(), key)[0], trained)
    assert np.abs(program(name, train=False)(moved, images(), key)[0] - evaluated).max() > 1e-3


@pytest.mark.parametrize("name", [name for name in MODELS if "dropout" in parameters(MODELS[name])])
def test_dropout_is_off_in_evaluation_and_drawn_from_the_key_in_training(name):
    keys = jax.random.key(0), jax.random.key(1)
    plain, _ = program(name, train=False)(variables(name), images(), keys[0])
    one, other = (program(name, train=False, dropout=0.5)(variables(name), images(), key)[0] for key in keys)
    np.testing.assert_array_equal(one, plain)
    np.testing.assert_array_equal(other, plain)
    dropped = program(name, train=True, dropout=0.5)
    first, again, second = (dropped(variables(name), images(), key)[0] for key in (keys[0], *keys))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != second)


@every_model
def test_bfloat16_computes_in_bfloat16_and_keeps_the_rest_in_float32(name):
    logits, start = shapes(name, images(), dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(start)} == {jnp.dtype("float32")}
    assert logits.dtype == jnp.float32
    exact, _ = program(name, train=False)(variables(name), images(), jax.random.key(0))
    rough, _ = program(name, train=False, dtype="bfloat16")(variables(name), images(), jax.random.key(0))
    error = np.abs(rough - exact).max() / np.abs(exact).max()
    assert 1e-5 < error < 0.04
    text = str(
        jax.make_jaxpr(lambda v, x: build(name, dtype="bfloat16").apply(v, x, train=False))(variables(name), images())
    )
    convolutions = [line for line in text.splitlines() if "= conv_general_dilated" in line]
    assert convolutions
    assert all(":bf16[" in line for line in convolutions)


def fields():
    return [
        (name, field) for name in MODELS for field in parameters(MODELS[name]) if field not in ("num_classes", "dtype")
    ]


@pytest.mark.parametrize(("name", "field"), fields())
def test_every_field_changes_the_model(name, field):
    assert field in OTHER, f"give OTHER another value of {field}"
    _, before = shapes(name, images())
    _, after = shapes(name, images(), **{field: OTHER[field]})
    if [leaf.shape for leaf in jax.tree.leaves(before)] != [leaf.shape for leaf in jax.tree.leaves(after)]:
        return
    outputs = [
        program(name, train=True, **changes)(variables(name), images(), jax.random.key(0))[0]
        for changes in ({}, {field: OTHER[field]})
    ]
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3


@every_model
def test_weights_come_from_the_key(name):
    start = jit(lambda key: build(name).init(key, images(), train=False)["params"])
    made.assert_same(start(jax.random.key(0)), start(jax.random.key(0)))
    kernels = [
        (one, other)
        for one, other in zip(*(jax.tree.leaves(start(jax.random.key(seed))) for seed in (0, 1)), strict=True)
        if one.ndim > 1
    ]
    assert kernels
    assert all(np.all(one != other) for one, other in kernels)
