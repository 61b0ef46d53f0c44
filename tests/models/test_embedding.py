"""The embedding is the input of the module `head`, for every architecture."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from cifar_jax.errors import InputError
from cifar_jax.models.embedding import embed
from cifar_jax.runs.devices import jit
from tests.models.test_models import build, every_model, images, program, shapes, variables


@every_model
def test_the_head_of_the_embedding_is_the_logits(name):
    model = build(name)
    logits, embeddings = jit(lambda v, x: embed(model, v, x))(variables(name), images())
    head = variables(name)["params"]["head"]
    assert embeddings.shape == (4, len(head["kernel"]))
    assert embeddings.dtype == np.float32
    expected = (embeddings @ head["kernel"] + head.get("bias", 0)) * getattr(model, "head_scale", 1)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5 * np.abs(logits).max())
    plain, _ = program(name, train=False)(variables(name), images(), jax.random.key(0))
    np.testing.assert_allclose(logits, plain, rtol=1e-5, atol=1e-5 * np.abs(logits).max())


@pytest.mark.parametrize(
    ("name", "fields"),
    [("vgg11", {"classifier": "hidden"}), ("convnet", {"hidden": 0, "reduction": "flatten"}), ("cnn", {"hidden": 0})],
)
def test_the_embedding_comes_before_the_head_whatever_comes_before_that(name, fields):
    _, start = shapes(name, images(), **fields)
    _, embeddings = jax.eval_shape(lambda v: embed(build(name, **fields), v, images()), start)
    assert embeddings.shape == (4, len(start["params"]["head"]["kernel"]))


@every_model
def test_every_architecture_has_exactly_one_module_named_head(name):
    """And it is at the top level: nothing deeper has that name."""
    _, start = shapes(name, images())
    paths = [path for path in flatten_dict(start["params"]) if "head" in path]
    assert {path[:-1] for path in paths} == {("head",)}


class Nameless(nn.Module):
    last: str = "last"
    pixels: bool = False

    @nn.compact
    def __call__(self, images, *, train):
        x = images if self.pixels else images.mean((1, 2))
        x = nn.remat(nn.Dense)(5, name=self.last)(inputs=x)
        return x.mean((1, 2)) if self.pixels else x


def test_a_model_without_a_head_is_told_to_name_it():
    """A lifted head that is called by keyword is found."""
    start = jax.eval_shape(lambda: Nameless().init(jax.random.key(0), images(), train=False))
    with pytest.raises(InputError, match=r"model 'Nameless' has no module named 'head'.*name its last layer 'head'"):
        jax.eval_shape(lambda v: embed(Nameless(), v, images()), start)
    headed = Nameless("head")
    start = jit(lambda: headed.init(jax.random.key(0), images(), train=False))()
    _, embeddings = jit(lambda v: embed(headed, v, images()))(start)
    np.testing.assert_allclose(embeddings, images().mean((1, 2)), rtol=1e-5, atol=1e-6)


def test_an_input_of_the_head_that_is_no_vector_is_refused():
    model = Nameless("head", pixels=True)
    start = jax.eval_shape(lambda: model.init(jax.random.key(0), images(), train=False))
    with pytest.raises(InputError, match=r"an input of shape \(4, 8, 8, 3\); an embedding is \[B, D\]"):
        jax.eval_shape(lambda v: embed(model, v, images()), start)
