"""Every image counts exactly once, and what is summed is what NumPy finds in the logits."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax import training
from cifar_jax.errors import InputError
from cifar_jax.runs.devices import jit
from cifar_jax.training import evaluation
from cifar_jax.training.metrics import CALIBRATION_BINS, summarise
from cifar_jax.training.state import evaluated_weights
from tests import made

CLASSES, COUNT = 7, 23


class Pixels(nn.Module):
    """An image [1, classes, 1] is its logits, pixel value by pixel value."""

    num_classes: int
    dtype: Any

    @nn.compact
    def __call__(self, images, *, train):
        return images.reshape(len(images), self.num_classes) + self.param("shift", nn.initializers.zeros, ())


def recipe(scale=10.0, **changes):
    """Logits are pixel / 255 * scale."""
    shape = {"data.num_classes": CLASSES, "data.image_shape": (1, CLASSES, 1)}
    return made.recipe({"model.name": Pixels, "data.mean": (0.0,), "data.std": (1 / scale,), **shape, **changes})


def sums(recipe, images, labels, views="one", state=None):
    program = jit(functools.partial(evaluation.sums, recipe, views=views))
    return jax.device_get(program(evaluated_weights(state or made.init(recipe)), images, labels))


def random_images(count=COUNT):
    random = np.random.RandomState(0)
    return random.randint(0, 256, (count, 1, CLASSES, 1)).astype(np.uint8), random.randint(0, CLASSES, count)


def directly(scores, labels):
    """The sums of float64 logits, one image at a time."""
    result: dict[str, Any] = {"loss_sum": 0.0, "top5": 0, "confusion": np.zeros((CLASSES, CLASSES), int)}
    result["calibration"] = np.zeros((CALIBRATION_BINS, 3))
    for row, label in zip(scores, labels, strict=True):
        probabilities = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        result["loss_sum"] -= np.log(probabilities[label])
        result["top5"] += label in np.argsort(-row, kind="stable")[:5]
        result["confusion"][label, row.argmax()] += 1
        index = min(int(probabilities.max() * CALIBRATION_BINS), CALIBRATION_BINS - 1)
        result["calibration"][index] += 1, probabilities.max(), row.argmax() == label
    return result


def assert_sums(actual, expected):
    assert actual.keys() == expected.keys()
    assert actual["top5"] == expected["top5"]
    np.testing.assert_array_equal(actual["confusion"], expected["confusion"])
    np.testing.assert_array_equal(actual["calibration"][:, [0, 2]], expected["calibration"][:, [0, 2]])
    np.testing.assert_allclose(actual["calibration"][:, 1], expected["calibration"][:, 1], rtol=1e-5)
    np.testing.assert_allclose(actual["loss_sum"], expected["loss_sum"], rtol=1e-5)


@pytest.mark.parametrize("size", [1, 7, COUNT - 1, COUNT, COUNT + 1, 1000])
def test_sums_are_numpys_whatever_the_batch_size(size):
    images, labels = random_images()
    expected = directly(images[:, 0, :, 0] / 255 * 10.0, labels)
    assert len(np.unique(expected["calibration"][:, 0])) > 2
    assert 0 < expected["top5"] < COUNT
    assert_sums(sums(recipe(**{"evaluation.batch_size": size}), images, labels), expected)


@pytest.mark.parametrize("size", [1, 3, 7, 8])
def test_each_image_counts_exactly_once(size):
    """Every (true, predicted) pair is another image's: the confusion matrix counts each image by name."""
    images = np.zeros((7, 1, CLASSES, 1), np.uint8)
    images[range(7), 0, (3 * np.arange(7) + 1) % 7, 0] = 255
    confusion = sums(recipe(**{"evaluation.batch_size": size}), images, np.arange(7))["confusion"]
    np.testing.assert_array_equal(confusion, np.eye(7)[(3 * np.arange(7) + 1) % 7])


def test_sums_of_a_network_do_not_depend_on_the_batch_size():
    data, state = made.split(29), made.init(made.recipe())
    whole = sums(made.recipe({"evaluation.batch_size": 29}), data.images, data.labels, state=state)
    assert whole["confusion"].sum() == 29
    assert whole["calibration"][:, 0].sum() == 29
    scores = evaluation.logits(made.recipe(), evaluated_weights(state), data.images)
    assert whole["calibration"][:, 2].sum() == np.sum(np.argmax(scores, -1) == data.labels)
    parts = sums(made.recipe({"evaluation.batch_size": 8}), data.images, data.labels, state=state)
    assert_sums(parts, whole)


@pytest.mark.parametrize("views", ["mirror", "flips", "mirror_shift"])
def test_views_average_logits(views):
    images, labels = random_images()
    tall = np.concatenate([images, images[:, :, ::-1]], 1)  # a second row, which a shift brings to the first

    class Upper(Pixels):
        def __call__(self, images, *, train):
            squared = images[:, 0, :, 0] ** 2  # not linear: averaging images would give others
            return squared + jnp.arange(CLASSES) / 3  # so that a mirrored image is another

    wide = recipe(**{"model.name": Upper, "data.image_shape": (2, CLASSES, 1)})
    state = training.TrainState(jnp.int32(0), {}, {}, (), {}, {})
    x = tall[..., 0] / 255 * 10.0
    pad = np.pad(x, [(0, 0), (1, 1), (1, 1)], mode="reflect")
    square = lambda rows: rows[:, 0] ** 2
    up, down = square(pad[:, :-2, :-2]), square(pad[:, 2:, 2:])
    plain = square(x)
    expected = (plain + plain[:, ::-1]) / 2
    if views == "flips":
        below = x[:, 1] ** 2
        expected = expected / 2 + (below + below[:, ::-1]) / 4
    if views == "mirror_shift":
        expected = expected / 2 + (up + up[:, ::-1] + down + down[:, ::-1]) / 8
    expected = expected + np.arange(CLASSES) / 3
    np.testing.assert_allclose(
        evaluation.logits(wide, evaluated_weights(state), tall, views), expected, rtol=1e-4, atol=1e-4
    )
    assert_sums(sums(wide, tall, labels, views, state), directly(expected, labels))


def test_logits_are_the_models_of_normalised_images_in_evaluation():
    chosen = made.recipe({"model.dropout": 0.5, "data.mean": (0.1, 0.2, 0.3), "data.std": (0.5, 0.4, 0.3)})
    data, state = made.split(), made.init(chosen)
    inputs = (data.images / 255 - np.array([0.1, 0.2, 0.3])) / np.array([0.5, 0.4, 0.3])
    expected = training.model(chosen).apply({"params": state.params}, inputs.astype(np.float32), train=False)
    actual = evaluation.logits(chosen, evaluated_weights(state), data.images)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_the_averaged_weights_are_evaluated_where_there_are_any():
    data, state = made.split(), made.init(made.recipe())
    other = made.init(made.recipe(seed=1)).params
    averaged = state.replace(average={"params": other, "batch_stats": {}})
    logits = functools.partial(evaluation.logits, made.recipe(), images=data.images)
    evaluated = lambda state: logits(weights=evaluated_weights(state))
    np.testing.assert_array_equal(evaluated(averaged), evaluated(state.replace(params=other)))
    assert np.any(evaluated(averaged) != evaluated(state))


def test_the_averaged_batch_statistics_are_evaluated_too():
    chosen = made.recipe({"average.decay": 0.9}, model={"name": "resnet18", "width": 4, "stages": (1, 1)})
    data, state = made.split(), made.init(chosen)
    shifted = {**state.average, "batch_stats": jax.tree.map(lambda leaf: leaf + 0.5, state.batch_stats)}
    averaged, moved = state.replace(average=shifted), state.replace(batch_stats=shifted["batch_stats"], average={})
    logits = jit(lambda state: evaluation.logits(chosen, evaluated_weights(state), data.images[:4]))
    np.testing.assert_allclose(logits(averaged), logits(moved), rtol=1e-5)
    assert np.abs(logits(averaged) - logits(state)).max() > 1e-3


def test_among_equal_logits_the_first_classes_are_the_top_five():
    """As for argmax: a model that knows nothing is not right in all of its top fives."""
    images, labels = np.full((21, 1, CLASSES, 1), 100, np.uint8), np.arange(21) % CLASSES
    result = sums(recipe(), images, labels)
    np.testing.assert_array_equal(result["confusion"], 3 * np.eye(CLASSES)[np.zeros(CLASSES, int)])
    assert result["top5"] == 15


def test_logits_that_are_not_numbers_are_in_no_top_five():
    state = made.init(recipe())
    state = state.replace(params={"shift": jnp.float32(jnp.nan)})
    assert sums(recipe(), *random_images(), state=state)["top5"] == 0


def test_the_loss_is_the_recipes():
    images, labels = random_images()
    smooth = recipe(**{"loss.label_smoothing": 0.3})
    scores = images[:, 0, :, 0] / 255 * 10.0
    log_probabilities = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    expected = -(0.7 * log_probabilities[range(COUNT), labels] + 0.3 * log_probabilities.mean(-1)).sum()
    assert sums(smooth, images, labels)["loss_sum"] == pytest.approx(expected, rel=1e-5)


def test_confusion_rows_are_true_classes():
    images = np.zeros((1, 1, CLASSES, 1), np.uint8)
    images[0, 0, 5] = 255
    result = summarise(sums(recipe(), images, np.array([2])), tuple("abcdefg"), "test", 1)
    assert result.confusion_matrix[2, 5] == 1
    assert result.count == 1


def test_unknown_views_are_answered_with_the_nearest():
    with pytest.raises(InputError, match="views 'miror' are unknown; did you mean 'mirror'"):
        evaluation.logits(made.recipe(), evaluated_weights(made.init(made.recipe())), made.split().images, "miror")
