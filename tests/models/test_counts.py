"""Rows of layers add up to the counts of the model; memory follows what is saved for the gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from cifar_jax.models.counts import Layer, counts, layers, memory
from cifar_jax.recipe import parameters
from tests.models.test_models import MODELS, TINY, build, every_model, images, shapes

SIZE = (8, 8, 3)


@every_model
def test_the_rows_add_up_to_the_counts(name):
    model = build(name)
    rows = layers(model, SIZE)
    assert counts(model, SIZE) == (sum(row.parameters for row in rows), sum(row.multiply_adds for row in rows))
    assert len({row.path for row in rows}) == len(rows)
    head = rows[-1]
    assert (head.path, head.kind, head.output_shape) == ("head", "Dense", (5,))
    assert head.parameters == sum(leaf.size for leaf in jax.tree.leaves(shapes(name, images())[1]["params"]["head"]))


def test_the_rows_of_a_small_network():
    """8x8 pixels, 4 and 8 channels, 8 hidden units, 5 classes."""
    assert layers(build("cnn"), SIZE) == [
        Layer("Convolution_0", "Convolution", (8, 8, 4), (27 + 1) * 4, 64 * 27 * 4),
        Layer("Convolution_1", "Convolution", (4, 4, 8), (36 + 1) * 8, 16 * 36 * 8),
        Layer("Dense_0", "Dense", (8,), (32 + 1) * 8, 32 * 8),
        Layer("head", "Dense", (5,), (8 + 1) * 5, 8 * 5),
    ]


def test_a_module_has_its_own_costs_and_not_those_of_its_submodules():
    """Attention's scores and sums are its own; the model's are its token and its positions."""
    rows = {row.path: row for row in layers(build("vit"), SIZE)}
    assert rows["block1/Attention_0"] == Layer("block1/Attention_0", "Attention", (5, 16), 0, 2 * 5 * 5 * 16)
    assert rows["block1/Attention_0/out"].parameters == 17 * 16
    assert rows[""] == Layer("", "ViT", (5,), 16 + 5 * 16, 0)
    assert "block1" not in rows


def with_remat():
    return [name for name in TINY if "remat" in parameters(MODELS[name])]


@pytest.mark.parametrize("name", with_remat())
def test_rematerialisation_changes_no_count_and_saves_less(name):
    plain, again = (build(name, remat=remat) for remat in (False, True))
    number = lambda rows: [(row.path, row.output_shape, row.parameters, row.multiply_adds) for row in rows]
    assert number(layers(plain, SIZE)) == number(layers(again, SIZE))
    first, second = (memory(model, SIZE, 4) for model in (plain, again))
    assert first["parameters"] == second["parameters"]
    assert first["activations"] > second["activations"] > 0


class Shared(nn.Module):
    """A module that is called twice, and a submodule from `setup` whose output is a pair."""

    def setup(self):
        self.twice = nn.Dense(3)
        self.pair = Pair()

    def __call__(self, images, *, train):
        return self.pair(self.twice(self.twice(images.mean((1, 2)))))[0]


class Pair(nn.Module):
    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (3,))
        return x * scale, x


def test_a_module_that_is_called_twice_has_one_row():
    assert layers(Shared(), SIZE) == [Layer("twice", "Dense", (3,), 12, 18), Layer("pair", "Pair", None, 3, 0)]
    assert counts(Shared(), SIZE) == (15, 18)


@every_model
def test_memory_grows_with_the_batch_by_the_same_amount_for_each_image(name):
    model = build(name)
    one, two, four = (memory(model, SIZE, batch_size) for batch_size in (1, 2, 4))
    assert one["parameters"] == two["parameters"] == 4 * counts(model, SIZE)[0]
    image = two["activations"] - one["activations"]
    assert image > 0
    assert four["activations"] - two["activations"] == 2 * image


def test_the_activations_of_a_small_network():
    """The reshaped images [4, 192], tanh's output [4, 8], which the second layer needs too, and its derivative."""

    class Two(nn.Module):
        @nn.compact
        def __call__(self, images, *, train):
            x = images.reshape(len(images), -1)
            return nn.Dense(5)(jnp.tanh(nn.Dense(8)(x)))

    plain = memory(Two(), SIZE, 4)
    assert plain["parameters"] == 4 * (193 * 8 + 9 * 5)
    assert plain["activations"] == 4 * (4 * 192 + 2 * 4 * 8)


def test_half_the_bits_take_less_memory():
    sizes = [memory(build("resnet18", dtype=dtype), (32, 32, 3), 8)["activations"] for dtype in ("float32", "bfloat16")]
    assert 0.4 < sizes[1] / sizes[0] < 0.7
