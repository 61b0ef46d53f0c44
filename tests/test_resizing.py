"""Progressive resizing: training images grow from stage to stage, evaluation sees them whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cifar_jax import fit
from cifar_jax.errors import InputError
from cifar_jax.models.counts import counts, multiply_adds
from cifar_jax.runs import fit as run
from cifar_jax.runs.devices import jit
from cifar_jax.training import augment
from cifar_jax.training import step as train
from cifar_jax.training.check import check
from cifar_jax.training.step import Phase
from tests import made

MODEL = {"name": "convnet", "widths": (4,), "convolutions": (1,), "dropout": 0.0}
STAGES = ((0.5, 1), (0.75, 3))
DATA = {"train": made.split(), "test": made.split(seed=1)}


def growing(**changes):
    return made.recipe({"model": MODEL, "progressive_resizing": STAGES, "data.validation": 0, **changes})


@pytest.mark.parametrize("share", [0.25, 0.5, 0.7, 0.75, 1.0])
def test_resize_is_pillows(share):
    before = jax.random.uniform(jax.random.key(0), (2, 32, 20, 3))
    after = np.asarray(augment.resize(before, share))
    assert after.shape == (2, round(share * 32), round(share * 20), 3)
    for one, other in zip(np.asarray(before), after, strict=True):
        for channel in range(3):
            size = other.shape[1], other.shape[0]
            expected = Image.fromarray(one[..., channel], "F").resize(size, Image.Resampling.BILINEAR)
            np.testing.assert_allclose(other[..., channel], np.asarray(expected), atol=1e-6)


def test_a_step_sees_the_images_augmented_then_resized():
    """Its loss and its update are those of the gradient on images that were resized by hand. Squares: the square of a
    mean is not the mean of the squares, so the order shows."""
    squared = lambda key, images, targets: (images**2, targets)
    recipe = growing(**{"augment": squared, "optimizer.momentum": 0.0, "optimizer.weight_decay": 0.0})
    state, images, labels = made.init(recipe), DATA["train"].images[:8], DATA["train"].labels[:8]
    step = jit(lambda state: train.train_step(recipe, state, images, labels, jnp.arange(8), None, Phase(share=0.5)))
    after, sums = step(state)
    small = augment.resize(jnp.square(images / np.float32(255)), 0.5)
    assert small.shape == (8, 4, 4, 3)
    inputs, targets = train.normalise(recipe, small), np.eye(4, dtype=np.float32)[labels]
    loss, gradients, *_ = train.loss_and_gradients(
        recipe, state.params, state.batch_stats, inputs, targets, jax.random.key(0)
    )
    assert float(sums["loss_sum"]) == pytest.approx(8 * float(loss), rel=1e-5)
    rate = recipe.optimizer.learning_rate
    expected = jax.tree.map(lambda weight, gradient: weight - rate * gradient, state.params, gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), after.params, expected)


def test_the_stages_hold_for_their_epochs_and_whole_images_afterwards():
    recipe = growing(epochs=5)
    expected = ((1, Phase(share=0.5)), (2, Phase(share=0.75)), (2, Phase()))
    assert run._phases(recipe, 0, 5) == expected
    assert run._phases(recipe, 2, 4) == ((1, Phase(share=0.75)), (1, Phase()))
    assert run._phases(growing(epochs=3), 0, 3) == expected[:2]  # no epoch on whole images, where so asked


def test_fit_is_the_loop_over_the_stages_and_evaluates_whole_images():
    recipe = growing(chunk_epochs=4)
    found = fit(recipe, data=DATA, progress=False)
    state = made.init(recipe)
    epoch = jit(functools.partial(train.train_epoch, recipe), static_argnums=4)
    for share in (0.5, 0.75, 0.75, 1.0):
        state, _ = epoch(state, DATA["train"].images, DATA["train"].labels, None, Phase(share=share))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found.state.params, state.params)
    variables = {"params": found.state.params, "batch_stats": found.state.batch_stats}
    images = train.normalise(recipe, DATA["test"].images / np.float32(255))
    logits = train.model(recipe).apply(variables, images, train=False)
    np.testing.assert_allclose(found.logits(DATA["test"].images), logits, rtol=1e-4, atol=1e-5)


def test_a_smaller_image_costs_what_the_model_costs_at_that_size():
    recipe, work = growing(), {}
    images, labels = jnp.zeros((8, 8, 8, 3)), jnp.zeros(8, jnp.int32)
    for share in (0.5, 1.0):
        step = functools.partial(train.train_step, recipe, phase=Phase(share=share))
        resizing = functools.partial(augment.resize, share=share)
        work[share] = multiply_adds(jax.make_jaxpr(step)(made.init(recipe), images, labels, labels).jaxpr)
        work[share] -= multiply_adds(jax.make_jaxpr(resizing)(images).jaxpr)
    small, whole = (counts(train.model(recipe), (side, side, 3))[1] for side in (4, 8))
    assert work[0.5] / work[1.0] == pytest.approx(small / whole, rel=0.02)


@pytest.mark.parametrize(
    ("stages", "answer"),
    [
        ((0.5, 2), r"holds 0.5; a stage is \(share of the sides, number of its last epoch\)"),
        (((0.5,),), r"holds \(0.5,\); a stage is"),
        (((0.5, 1.5),), r"holds \(0.5, 1.5\); a stage is"),
        (((0.5, True),), r"holds \(0.5, True\); a stage is"),
        (((0.0, 2),), r"holds \(0.0, 2\); it must have a share above 0 and at most 1"),
        (((1.5, 2),), r"holds \(1.5, 2\); it must have a share above 0 and at most 1"),
        (((0.5, 2), (0.75, 2)), r"holds \(0.75, 2\); .* end after the stage before, within 4 epochs"),
        (((0.5, 5),), r"holds \(0.5, 5\); .* within 4 epochs"),
        (((0.05, 2),), "a share of 0.05 leaves no pixel of images of 8x8"),
    ],
    ids=str,
)
def test_bad_stages_are_answered(stages, answer):
    with pytest.raises(InputError, match=f"^progressive_resizing:? {answer}"):
        check(growing(progressive_resizing=stages))


@pytest.mark.parametrize("name", ["cnn", "mlp", "vit"])
def test_a_model_for_one_size_of_image_is_refused(name):
    with pytest.raises(InputError, match="progressive_resizing: the model has parameters for one size of image"):
        check(growing(model={"name": name}))


def test_another_size_of_images_without_stages_is_told_too():
    """An augmentation that crops, before a model with parameters for the whole image."""
    cropped = lambda key, images, targets: (images[:, 1:, 1:], targets)
    with pytest.raises(InputError, match="the images of a step have another size than its parameters are for"):
        check(made.recipe({"augment": cropped}))
