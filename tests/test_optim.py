"""Optimisers against their papers' formulas in float64, schedules against plain Python."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cifar_jax import train
from cifar_jax.optim import DECAYED, OPTIMIZERS, SCHEDULES
from cifar_jax.recipe import InputError, build
from tests import made

RATES = (0.1, 0.03, 0.2)  # another in each step: the optimiser is rebuilt with it


def tree(seed):
    random = np.random.RandomState(seed)
    return {
        "Dense": {"kernel": random.normal(size=(3, 4)), "bias": random.normal(size=4)},
        "Norm": {"scale": random.normal(size=4), "embedding": random.normal(size=(2, 2, 3))},
    }


def decayed_share(decayed):
    """1 where weights decay: biases and scales have one dimension."""
    return jax.tree.map(lambda leaf: float(decayed == "all" or leaf.ndim > 1), tree(0))


def sgd(momentum=0.9, nesterov=False, weight_decay=0.0):
    def steps(weight, decays, gradients):
        velocity = 0
        for gradient, rate in zip(gradients, RATES, strict=True):
            gradient = gradient + weight_decay * decays * weight
            velocity = momentum * velocity + gradient
            weight = weight - rate * (gradient + momentum * velocity if nesterov else velocity)
        return weight

    return steps


def adam(beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.0, decoupled=False):
    def steps(weight, decays, gradients):
        first = second = 0
        for t, (gradient, rate) in enumerate(zip(gradients, RATES, strict=True), start=1):
            decay = weight_decay * decays * weight
            gradient = gradient if decoupled else gradient + decay
            first = beta1 * first + (1 - beta1) * gradient
            second = beta2 * second + (1 - beta2) * gradient**2
            update = first / (1 - beta1**t) / (np.sqrt(second / (1 - beta2**t)) + epsilon)
            weight = weight - rate * (update + decay if decoupled else update)
        return weight

    return steps


CASES = [  # the recipe's section, the formula, what decays
    ({"name": "sgd"}, sgd(), "kernels"),
    ({"name": "sgd", "momentum": 0.0}, sgd(momentum=0), "kernels"),
    ({"name": "sgd", "momentum": 0.7, "weight_decay": 0.1}, sgd(0.7, weight_decay=0.1), "kernels"),
    ({"name": "sgd", "nesterov": True, "weight_decay": 0.1, "decayed": "all"}, sgd(0.9, True, 0.1), "all"),
    ({"name": "adam"}, adam(), "kernels"),
    ({"name": "adam", "beta1": 0.8, "beta2": 0.9, "epsilon": 0.1, "weight_decay": 0.1},
     adam(0.8, 0.9, 0.1, 0.1), "kernels"),
    ({"name": "adam", "weight_decay": 0.1, "decayed": "all"}, adam(weight_decay=0.1), "all"),
    ({"name": "adamw"}, adam(weight_decay=0.01, decoupled=True), "kernels"),
    ({"name": "adamw", "beta1": 0.8, "beta2": 0.9, "epsilon": 0.1, "weight_decay": 0.3, "decayed": "all"},
     adam(0.8, 0.9, 0.1, 0.3, decoupled=True), "all"),
]  # fmt: skip


def test_every_optimiser_is_tested():
    assert {section["name"] for section, _, _ in CASES} == set(OPTIMIZERS)


@pytest.mark.parametrize(("section", "formula", "decayed"), CASES)
def test_optimiser_follows_its_formula(section, formula, decayed):
    recipe = made.recipe(optimizer={**section, "learning_rate": 1.0})
    gradients = [tree(seed) for seed in (1, 2, 3)]
    params = jax.tree.map(jnp.float32, tree(0))
    state = train.optimizer(recipe, 0.0).init(params)
    for gradient, rate in zip(gradients, RATES, strict=True):
        updates, state = train.optimizer(recipe, rate).update(jax.tree.map(jnp.float32, gradient), state, params)
        params = optax.apply_updates(params, updates)
    expected = jax.tree.map(
        lambda *leaves: formula(*leaves[:2], leaves[2:]), tree(0), decayed_share(decayed), *gradients
    )
    jax.tree.map(lambda actual, leaf: np.testing.assert_allclose(actual, leaf, rtol=2e-5, atol=2e-6), params, expected)


@pytest.mark.parametrize("decayed", DECAYED)
def test_masks_name_every_parameter_of_a_model(decayed):
    params = made.init(made.recipe()).params
    for path, decays in jax.tree.leaves_with_path(DECAYED[decayed](params)):
        assert decays is (decayed == "all" or path[-1].key == "kernel"), path


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_unknown_mask_is_answered_with_the_nearest(name):
    section = made.recipe(optimizer={"name": name, "learning_rate": 0.1, "decayed": "kernel"}).optimizer
    with pytest.raises(InputError, match=r"optimizer\.decayed 'kernel' is unknown; did you mean 'kernels'"):
        build(OPTIMIZERS, section, "optimizer")


def global_norm(params):
    return math.sqrt(sum(np.sum(np.float64(leaf) ** 2) for leaf in jax.tree.leaves(params)))


@pytest.mark.parametrize("share", [0.25, 4.0])
def test_gradients_are_clipped_to_the_global_norm_before_anything_else(share):
    params, gradients = jax.tree.map(jnp.float32, tree(0)), jax.tree.map(jnp.float32, tree(1))
    norm = global_norm(gradients)
    optimizer = {"name": "sgd", "learning_rate": 1.0, "momentum": 0.0, "weight_decay": 0.5, "decayed": "all"}
    transformation = train.optimizer(made.recipe(optimizer=optimizer, gradient_clip_norm=share * norm), 0.1)
    updates, _ = transformation.update(gradients, transformation.init(params), params)
    expected = jax.tree.map(lambda w, g: -0.1 * (min(share, 1) * g + 0.5 * w), params, gradients)
    jax.tree.map(lambda actual, leaf: np.testing.assert_allclose(actual, leaf, rtol=1e-5, atol=1e-6), updates, expected)


def test_clipping_bounds_a_step_of_training():
    data = made.split()
    steps = {}
    for clip in (0.0, 1e-3):
        optimizer = {"name": "sgd", "learning_rate": 1.0, "momentum": 0.0}
        recipe = made.recipe(optimizer=optimizer, gradient_clip_norm=clip)
        before = made.init(recipe)
        after, _ = made.step(recipe)(before, data.images[:8], data.labels[:8])
        steps[clip] = global_norm(jax.tree.map(jnp.subtract, after.params, before.params))
    assert steps[0.0] > 0.01
    assert steps[1e-3] == pytest.approx(1e-3, rel=1e-3)


def warm(epoch, warmup):
    return min(epoch / warmup, 1) if warmup else 1


def share(epoch, epochs, warmup):
    return min(max((epoch - warmup) / (epochs - warmup), 0), 1)


def half_wave(low, high, part):
    return low + (high - low) * (1 - math.cos(math.pi * part)) / 2


def one_cycle(epoch, epochs, peak=0.3, start=0.04, final=4e-6):
    part = epoch / epochs
    return half_wave(start, 1, part / peak) if part < peak else half_wave(1, final, (part - peak) / (1 - peak))


EPOCHS = 10.0
FACTORS = [  # the recipe's section, the factor at an epoch
    ({"name": "constant"}, lambda e: 1),
    ({"name": "constant", "warmup_epochs": 2.5}, lambda e: warm(e, 2.5)),
    ({"name": "step"}, lambda e: 1),
    ({"name": "step", "milestones": (3.0, 6.5)}, lambda e: 0.1 ** ((e >= 3) + (e >= 6.5))),
    (
        {"name": "step", "milestones": (1.0, 6.5, 8.0), "factor": 0.5, "warmup_epochs": 2.0},
        lambda e: 0.5 ** sum(e >= milestone for milestone in (1, 6.5, 8)) * warm(e, 2),
    ),
    ({"name": "linear"}, lambda e: 1 - e / EPOCHS),
    ({"name": "linear", "final": 0.2, "warmup_epochs": 2.0}, lambda e: warm(e, 2) * (1 - 0.8 * share(e, EPOCHS, 2))),
    ({"name": "cosine"}, lambda e: half_wave(1, 0, e / EPOCHS)),
    (
        {"name": "cosine", "final": 0.1, "warmup_epochs": 3.0},
        lambda e: warm(e, 3) * half_wave(1, 0.1, share(e, EPOCHS, 3)),
    ),
    ({"name": "one_cycle"}, lambda e: one_cycle(e, EPOCHS)),
    ({"name": "one_cycle", "peak": 0.5, "start": 0.2, "final": 0.01}, lambda e: one_cycle(e, EPOCHS, 0.5, 0.2, 0.01)),
]
POINTS = sorted({*np.linspace(0, EPOCHS, 61).tolist(), 1.0, 2.0, 2.5, 3.0, 6.5, 8.0, 2.999, 6.499})


def factor(section, epoch, epochs=EPOCHS):
    return build(SCHEDULES, made.recipe(schedule=section).schedule, "schedule", epoch=jnp.float32(epoch), epochs=epochs)


def test_every_schedule_is_tested():
    assert {section["name"] for section, _ in FACTORS} == set(SCHEDULES)


@pytest.mark.parametrize(("section", "expected"), FACTORS)
def test_schedule_follows_its_formula(section, expected):
    actual = factor(section, jnp.array(POINTS, jnp.float32))
    np.testing.assert_allclose(actual, [expected(epoch) for epoch in POINTS], rtol=1e-5, atol=2e-7)


def test_one_cycle_starts_peaks_and_ends_where_it_says():
    assert float(factor({"name": "one_cycle"}, 0)) == pytest.approx(0.04)
    assert float(factor({"name": "one_cycle"}, 3)) == 1
    assert float(factor({"name": "one_cycle"}, 10)) == pytest.approx(4e-6, abs=1e-7)
    curve = factor({"name": "one_cycle"}, np.linspace(0, 10, 101))
    assert np.argmax(curve) == 30
    assert (np.diff(curve[:31]) > 0).all()
    assert (np.diff(curve[30:]) < 0).all()


@pytest.mark.parametrize("name", ["constant", "step", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [4.0, 6.0])
def test_a_warm_up_as_long_as_the_run_or_longer_still_warms_up(name, warmup):
    """Else a short trial of a long recipe trains with learning rate 0, and nobody is told."""
    actual = factor({"name": name, "warmup_epochs": warmup}, jnp.array([0.0, 1.0, 2.0, 3.75]), epochs=4.0)
    np.testing.assert_allclose(actual, np.array([0, 1, 2, 3.75]) / warmup, rtol=1e-6)


@pytest.mark.parametrize("schedule", [{"name": "constant"}, {"name": "cosine", "warmup_epochs": 1.0}])
def test_the_learning_rate_of_a_step_is_the_schedules_at_its_epoch(schedule):
    recipe = made.recipe(schedule=schedule, optimizer={"name": "sgd", "learning_rate": 0.3}, epochs=10)
    for step in (0, 1, 2, 5, 17, 39):  # four steps an epoch
        rate = train.learning_rate(recipe, step)
        assert rate.dtype == jnp.float32
        assert float(rate) == pytest.approx(0.3 * float(factor(schedule, step / 4)), rel=1e-6)


@pytest.mark.parametrize("model", [None, {"name": "resnet18", "width": 4, "stages": (1, 1)}], ids=["cnn", "resnet"])
def test_the_average_moves_by_its_decay_each_step(model):
    recipe = made.recipe({"average.decay": 0.75} | ({"model": model} if model else {}))
    data, state = made.split(), made.init(recipe)
    latest = {"params": state.params, "batch_stats": state.batch_stats}
    made.assert_same(state.average, latest)
    expected = jax.tree.map(np.float64, latest)
    for start in (0, 8, 16):
        before = state
        state, _ = made.step(recipe)(state, data.images[start : start + 8], data.labels[start : start + 8])
        latest = {"params": state.params, "batch_stats": state.batch_stats}
        assert all(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (before.average, latest)), strict=True))
        expected = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * np.float64(new), expected, latest)
    close = lambda actual, leaf: np.testing.assert_allclose(actual, leaf, rtol=1e-5, atol=1e-7)
    jax.tree.map(close, state.average, expected)


def test_without_decay_no_average_is_kept():
    assert made.init(made.recipe()).average == {}
