"""Optimisers against their papers' formulas in float64, schedules against plain Python."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cifar_jax import training
from cifar_jax.errors import InputError
from cifar_jax.recipe import build, freeze, from_json, override, to_json
from cifar_jax.training.check import check
from cifar_jax.training.optimizers import DECAYED, OPTIMIZERS, orthogonal
from cifar_jax.training.parameter_groups import frozen_patterns
from cifar_jax.training.schedules import SCHEDULES
from cifar_jax.training.state import model_inputs
from cifar_jax.training.update import optimizer
from tests import made

RATES = (0.1, 0.03, 0.2)  # another in each step: the optimiser is rebuilt with it


def tree(seed):
    random = np.random.RandomState(seed)
    return {
        "Dense": {"kernel": random.normal(size=(3, 4)), "bias": random.normal(size=4)},
        "Norm": {"scale": random.normal(size=4), "embedding": random.normal(size=(2, 2, 3))},
        "Conv": {"wide": random.normal(size=(3, 3, 2, 4)), "tall": random.normal(size=(1, 1, 3, 7))},
    }


def decayed_share(decayed):
    """1 where weights decay: biases and scales have one dimension."""
    return jax.tree.map(lambda leaf: float(decayed == "all" or leaf.ndim > 1), tree(0))


def sgd(momentum=0.9, nesterov=False, weight_decay=0.0, factor=1.0):
    def steps(weight, decays, gradients):
        velocity = 0
        for gradient, rate in zip(gradients, factor * np.array(RATES), strict=True):
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


def lamb(beta1=0.9, beta2=0.999, epsilon=1e-6, weight_decay=0.0):
    """You et al. 2020, algorithm 2, with phi the identity."""

    def steps(weight, decays, gradients):
        first = second = 0
        for t, (gradient, rate) in enumerate(zip(gradients, RATES, strict=True), start=1):
            first = beta1 * first + (1 - beta1) * gradient
            second = beta2 * second + (1 - beta2) * gradient**2
            update = first / (1 - beta1**t) / (np.sqrt(second / (1 - beta2**t)) + epsilon)
            update = update + weight_decay * decays * weight
            weight = weight - rate * np.linalg.norm(weight) / np.linalg.norm(update) * update
        return weight

    return steps


def lion(beta1=0.9, beta2=0.99, weight_decay=0.0):
    """Chen et al. 2023, algorithm 2."""

    def steps(weight, decays, gradients):
        momentum = 0
        for gradient, rate in zip(gradients, RATES, strict=True):
            direction = np.sign(beta1 * momentum + (1 - beta1) * gradient)
            momentum = beta2 * momentum + (1 - beta2) * gradient
            weight = weight - rate * (direction + weight_decay * decays * weight)
        return weight

    return steps


def newton_schulz(matrix, steps=3, coefficients=(3.4445, -4.7750, 2.0315)):
    """In float64, on the matrix [C_out, ...]: with A = X X^T, X <- a X + (b A + c A A) X."""
    a, b, c = coefficients
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / np.linalg.norm(x)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def as_matrix(filters):
    return np.moveaxis(filters, -1, 0).reshape(filters.shape[-1], -1)


def muon(momentum=0.6, normalised=True, sgd_factor=1.0, sgd_momentum=0.85, weight_decay=0.0):
    """Filters [h, w, C_in, C_out] by Muon as in airbench, the rest by Nesterov SGD."""
    rest = sgd(sgd_momentum, True, weight_decay, sgd_factor)

    def steps(weight, decays, gradients):
        if weight.ndim != 4:
            return rest(weight, decays, gradients)
        buffer, matrix = 0, as_matrix(weight)
        for gradient, rate in zip(gradients, RATES, strict=True):
            buffer = momentum * buffer + as_matrix(gradient)
            if normalised:
                matrix = matrix * np.sqrt(len(matrix)) / np.linalg.norm(matrix)
            matrix = matrix - rate * newton_schulz(as_matrix(gradient) + momentum * buffer)
        h, w, inner, outer = weight.shape
        return np.moveaxis(matrix.reshape(outer, h, w, inner), 0, -1)

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
    ({"name": "lamb"}, lamb(), "kernels"),
    ({"name": "lamb", "beta1": 0.8, "beta2": 0.9, "epsilon": 0.1, "weight_decay": 0.3}, lamb(0.8, 0.9, 0.1, 0.3),
     "kernels"),
    ({"name": "lion"}, lion(), "kernels"),
    ({"name": "lion", "beta1": 0.8, "beta2": 0.9, "weight_decay": 0.3, "decayed": "all"}, lion(0.8, 0.9, 0.3), "all"),
    ({"name": "muon", "dtype": "float32"}, muon(), "kernels"),
    ({"name": "muon", "dtype": "float32", "momentum": 0.8, "normalised": False, "sgd_factor": 0.3, "sgd_momentum": 0.7,
      "weight_decay": 0.2, "decayed": "all"}, muon(0.8, False, 0.3, 0.7, 0.2), "all"),
]  # fmt: skip


def test_every_optimiser_is_tested():
    assert {section["name"] for section, _, _ in CASES} == set(OPTIMIZERS)


def at(rate, recipe):
    """The recipe's transformation at that learning rate."""
    changes = {"optimizer.learning_rate": rate, "schedule": {"name": "constant"}}
    return optimizer(override(recipe, changes), 0)


@pytest.mark.parametrize(("section", "formula", "decayed"), CASES)
def test_optimiser_follows_its_formula(section, formula, decayed):
    recipe = made.recipe(optimizer={**section, "learning_rate": 1.0})
    gradients = [tree(seed) for seed in (1, 2, 3)]
    params = jax.tree.map(jnp.float32, tree(0))
    state = at(0.0, recipe).init(params)
    for gradient, rate in zip(gradients, RATES, strict=True):
        updates, state = at(rate, recipe).update(jax.tree.map(jnp.float32, gradient), state, params)
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


@pytest.mark.parametrize("shape", [(3, 3, 8, 16), (3, 3, 2, 40), (1, 1, 5, 5)])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.05)])
def test_newton_schulz_is_numpys(shape, dtype, tolerance):
    filters = np.random.RandomState(0).normal(size=shape)
    found = orthogonal(jnp.asarray(filters, jnp.float32), dtype=dtype)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(as_matrix(np.asarray(found)), newton_schulz(as_matrix(filters)), atol=tolerance)


def test_muons_direction_is_nearly_orthogonal_and_keeps_the_singular_vectors():
    filters = np.random.RandomState(0).normal(size=(3, 3, 8, 16))
    left, _, right = np.linalg.svd(as_matrix(filters), full_matrices=False)
    for steps, low in ((3, 0.5), (5, 0.65)):
        found = as_matrix(np.float64(orthogonal(jnp.asarray(filters, jnp.float32), steps, dtype="float32")))
        inside = left.T @ found @ right.T
        np.testing.assert_allclose(inside, np.diag(np.diag(inside)), atol=1e-5)
        assert low < np.diag(inside).min()
        assert np.diag(inside).max() < 1.25
    scaled = orthogonal(jnp.asarray(1000 * filters, jnp.float32), 5, dtype="float32")
    np.testing.assert_allclose(as_matrix(scaled), found, atol=1e-4)  # the gradient's scale does not matter
    assert not np.asarray(orthogonal(jnp.zeros((3, 3, 2, 4)))).any()


def test_filters_of_several_sizes_are_made_orthogonal_each_on_its_own():
    shapes = [(3, 3, 3, 8), (3, 3, 8, 8), (3, 3, 1, 8), (1, 1, 4, 40), (3, 3, 1, 40), (1, 1, 8, 8)]
    filters = {str(shape): np.random.RandomState(0).normal(size=shape).astype(np.float32) for shape in shapes}
    found = orthogonal({"first": filters, "second": {"other": filters[str(shapes[0])] * 2}}, dtype="float32")
    for name, leaf in filters.items():
        np.testing.assert_allclose(
            as_matrix(np.asarray(found["first"][name])), newton_schulz(as_matrix(leaf)), atol=1e-5
        )
    np.testing.assert_allclose(found["second"]["other"], found["first"][str(shapes[0])], atol=1e-5)
    assert orthogonal({}) == {}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("scale", [1e-5, 1e5])
def test_muons_direction_does_not_depend_on_the_gradients_scale_in_any_dtype(dtype, scale):
    """The square of 1e-5 is 0 in float16, and 1e5 is infinite."""
    filters = np.random.RandomState(0).normal(size=(3, 3, 8, 16))
    found = orthogonal(jnp.asarray(scale * filters, jnp.float32), dtype=dtype)
    np.testing.assert_allclose(as_matrix(np.asarray(found)), newton_schulz(as_matrix(filters)), atol=0.05)


def test_muon_keeps_the_norm_of_filters_at_the_root_of_their_number():
    params = {"Conv_0": {"kernel": jnp.asarray(tree(0)["Conv"]["wide"], jnp.float32)}}
    transformation = build(
        OPTIMIZERS, made.recipe(optimizer={"name": "muon", "learning_rate": 0.0}).optimizer, "optimizer"
    )
    updates, _ = transformation.update(params, transformation.init(params), params)
    assert np.linalg.norm((params["Conv_0"]["kernel"] + updates["Conv_0"]["kernel"]).ravel()) == pytest.approx(2)


OPTIMIZER = {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.2}


def run_groups(groups, optimizer=OPTIMIZER, factor=1.0):
    recipe = made.recipe(optimizer=optimizer, groups=groups)
    params = jax.tree.map(jnp.float32, tree(0))
    state = at(0.0, recipe).init(params)
    for seed, rate in zip((1, 2, 3), RATES, strict=True):
        gradients = jax.tree.map(jnp.float32, tree(seed))
        updates, state = at(factor * rate, recipe).update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_groups_have_their_own_rate_and_decay(name):
    optimizer = {"name": name, "learning_rate": 1.0, "weight_decay": 0.2}
    groups = (("Dense/.*", 0.5, 3.0), ("Norm/.*", 0.0, 1.0), ("Conv/.*", 1.0, 0.0))
    found = run_groups(groups, optimizer)
    made.assert_same(found["Norm"], jax.tree.map(jnp.float32, tree(0)["Norm"]))  # frozen
    plain = run_groups((), {**optimizer, "weight_decay": 0.0})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found["Conv"], plain["Conv"])
    half = run_groups((), {**optimizer, "weight_decay": 0.6}, factor=0.5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found["Dense"], half["Dense"])


def test_one_group_of_everything_is_none():
    made.assert_same(run_groups(((".*", 1.0, 1.0),)), run_groups(()))


def test_the_default_decay_of_an_optimizer_is_scaled_too():
    optimizer = {"name": "adamw", "learning_rate": 1.0}
    twice = run_groups(((".*", 1.0, 2.0),), optimizer)
    made.assert_same(twice, run_groups((), optimizer | {"weight_decay": 0.02}))


def test_a_function_of_the_callers_takes_groups_of_rates():
    groups = (("Dense/.*", 0.5, 1.0), ("(Norm|Conv)/.*", 1.0, 1.0))
    made.assert_same(
        run_groups(groups, {"name": optax.sgd, "learning_rate": 1.0})["Conv"],
        run_groups((), {"name": optax.sgd, "learning_rate": 1.0})["Conv"],
    )


@pytest.mark.parametrize(
    ("groups", "answer"),
    [
        ((("Dense_.*", 1.0, 1.0),), "parameter 'Convolution_0/bias' matches 0 of 'Dense_.*'; it must match one"),
        (((".*", 1.0, 1.0), ("Convolution_0/bias", 1.0, 0.0)), "parameter 'Convolution_0/bias' matches 2 of"),
        (
            ((".*", 1.0, 1.0), ("Cnov.*", 1.0, 0.0)),
            "pattern 'Cnov.*' matches no parameter; there are Convolution_0/bias",
        ),
        (
            (("Dense_.*", 1.0),),
            "a group is (pattern, learning-rate factor, weight-decay factor) or the same and epochs",
        ),
        (((".*", 1.0, 1.0, 2.0, 3.0),), "a group is (pattern, learning-rate factor, weight-decay factor) or the same"),
        (("Dense_.*", 1.0, 1.0), "groups holds 'Dense_.*'; a group is"),
        ((("(", 1.0, 1.0),), "the pattern '(', which is no regular expression"),
        (((".*", -1.0, 1.0),), "its factors and epochs must be numbers of at least 0"),
        (((".*", 1.0, 1.0, -3),), "its factors and epochs must be numbers of at least 0"),
    ],
)
def test_groups_must_cover_every_parameter_just_once(groups, answer):
    with pytest.raises(InputError) as error:
        check(made.recipe(groups=groups))
    assert answer in str(error.value)


def test_groups_come_back_from_json_and_train():
    recipe = made.recipe(groups=[["Convolution_.*/kernel", 1, 0.0], ["Convolution_.*/bias|(Dense_|head).*", 0.5, 1.0]])
    assert recipe.groups == (("Convolution_.*/kernel", 1, 0.0), ("Convolution_.*/bias|(Dense_|head).*", 0.5, 1.0))
    back = freeze(from_json(json.loads(json.dumps(to_json(recipe)))))
    assert back == recipe
    assert back.groups == recipe.groups
    check(back)


def test_a_group_with_epochs_of_its_own_ends_its_schedule_there_and_freezes():
    """4 epochs of 4 steps: the biases' schedule is that of a run of one and a half."""
    groups = (("(Dense_0|head)/kernel|Convolution.*", 1.0, 1.0), ("(Dense_0|head)/bias", 2.0, 1.0, 1.5))
    recipe = made.recipe(groups=groups, schedule={"name": "linear"}, optimizer={"name": "sgd", "learning_rate": 0.5})
    params = made.init(recipe).params
    ones = jax.tree.map(jnp.ones_like, params)
    for step, short in enumerate([1 - step / 6 for step in range(6)] + [0.0] * 4):
        transformation = optimizer(recipe, step)
        updates, _ = transformation.update(ones, optimizer(recipe, 0).init(params), params)
        np.testing.assert_allclose(updates["Dense_0"]["bias"], -short, atol=1e-6)
        np.testing.assert_allclose(updates["Dense_0"]["kernel"], -0.5 * (1 - step / 16), rtol=1e-6)


def test_nothing_moves_a_group_after_its_epochs_not_even_muons_norm():
    groups = (("Convolution.*", 1.0, 1.0, 1), ("(Dense|head).*", 1.0, 1.0))
    recipe = made.recipe(groups=groups, optimizer={"name": "muon", "learning_rate": 0.1})
    params = made.init(recipe).params
    ones = jax.tree.map(jnp.ones_like, params)
    for step, moves in ((3, True), (4, False)):
        transformation = optimizer(recipe, step)
        updates, _ = transformation.update(ones, transformation.init(params), params)
        assert bool(np.any(updates["Convolution_0"]["kernel"])) == moves
        assert np.any(updates["Dense_0"]["kernel"])


def test_a_decay_factor_multiplies_the_default_of_the_callers_function():
    def mine(learning_rate, weight_decay=0.5):
        return optax.chain(optax.add_decayed_weights(weight_decay), optax.scale(-learning_rate))

    recipe = made.recipe(groups=((".*", 1.0, 2.0),), optimizer={"name": mine, "learning_rate": 0.1})
    params = {"w": jnp.ones(3)}
    transformation = optimizer(recipe, 0)
    updates, _ = transformation.update({"w": jnp.zeros(3)}, transformation.init(params), params)
    np.testing.assert_allclose(updates["w"], -training.learning_rate(recipe, 0) * 2 * 0.5, rtol=1e-6)
    without = made.recipe(groups=((".*", 1.0, 2.0),), optimizer={"name": optax.lion, "learning_rate": 0.1})
    check(without)
    bare = made.recipe(groups=((".*", 1.0, 2.0),), optimizer={"name": optax.sgd, "learning_rate": 0.1})
    with pytest.raises(InputError, match=r"weight-decay factor of 2\.0; the optimizer has no decay"):
        optimizer(bare, 0)


def test_frozen_names_the_groups_that_train_no_more():
    groups = (("a", 1.0, 1.0), ("b", 0.0, 1.0), ("c", 1.0, 1.0, 1.5), ("d", 1.0, 1.0, 0.0))
    assert frozen_patterns((), 5) == ()
    assert [frozen_patterns(groups, epoch) for epoch in (0, 1, 2, 9)] == [("b",), ("b",), ("b", "c"), ("b", "c")]
    with pytest.raises(InputError, match="a group is"):
        frozen_patterns((("a", 1.0),), 0)


def test_a_group_is_frozen_after_its_epochs_whatever_the_schedule():
    groups = (("Dense_.*", 1.0, 1.0, 1), ("Convolution.*", 1.0, 1.0))
    recipe = made.recipe(groups=groups, schedule={"name": "constant"})
    rates = [float(training.learning_rate(recipe, step, 1)) for step in (0, 3, 4, 9)]
    assert rates == pytest.approx([0.02, 0.02, 0, 0])


def global_norm(params):
    return math.sqrt(sum(np.sum(np.float64(leaf) ** 2) for leaf in jax.tree.leaves(params)))


@pytest.mark.parametrize("share", [0.25, 4.0])
def test_gradients_are_clipped_to_the_global_norm_before_anything_else(share):
    params, gradients = jax.tree.map(jnp.float32, tree(0)), jax.tree.map(jnp.float32, tree(1))
    norm = global_norm(gradients)
    optimizer = {"name": "sgd", "learning_rate": 1.0, "momentum": 0.0, "weight_decay": 0.5, "decayed": "all"}
    transformation = at(0.1, made.recipe(optimizer=optimizer, gradient_clip_norm=share * norm))
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
    (
        {"name": "linear", "start": 0.2, "warmup_epochs": 2.0},
        lambda e: (0.2 + 0.8 * warm(e, 2)) * (1 - share(e, EPOCHS, 2)),
    ),
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
        rate = training.learning_rate(recipe, step)
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


# sharpness-aware minimisation, lookahead, stochastic weight averaging

RESNET = {"name": "resnet18", "width": 4, "stages": (1, 1)}


def latest(state):
    return {"params": state.params, "batch_stats": state.batch_stats}


def close(actual, expected, rtol=1e-4, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), actual, expected)


def test_sam_steps_by_the_gradient_at_the_perturbed_weights():
    """By two steps of plain SGD with rate 1, which give gradients: at w, and at w + rho g / |g|."""
    plain = made.recipe(optimizer={"name": "sgd", "learning_rate": 1.0, "momentum": 0.0}, model=RESNET)
    data, state = made.split(), made.init(plain)
    batch = data.images[:8], data.labels[:8]
    gradient = lambda at: jax.tree.map(jnp.subtract, at.params, made.step(plain)(at, *batch)[0].params)
    first = gradient(state)
    scale = 0.1 / global_norm(first)
    worst = state.replace(params=jax.tree.map(lambda w, g: w + scale * g, state.params, first))
    after, sums = made.step(made.recipe({"sam.rho": 0.1}, optimizer=plain.optimizer, model=RESNET))(state, *batch)
    close(jax.tree.map(jnp.subtract, state.params, after.params), gradient(worst), 1e-3, 1e-5)
    assert np.abs(jax.tree.leaves(first)[0] - jax.tree.leaves(gradient(worst))[0]).max() > 1e-3
    expected, plain_sums = made.step(plain)(state, *batch)
    close(after.batch_stats, expected.batch_stats)  # those of the first evaluation
    close(sums, plain_sums)


@pytest.mark.parametrize("power", [0.0, 3.0])
def test_lookahead_pulls_slow_weights_and_goes_on_from_them(power):
    fields = {"lookahead.steps": 3, "lookahead.pull": 0.4, "lookahead.power": power}
    recipe, plain = made.recipe(fields, model=RESNET), made.recipe(model=RESNET)
    data, state = made.split(), made.init(recipe)
    batch, slow = (data.images[:8], data.labels[:8]), latest(state)
    close(state.average, slow)
    for step in range(1, 8):
        expected, _ = made.step(plain)(state.replace(average={}), *batch)
        state, _ = made.step(recipe)(state, *batch)
        if step % 3:
            close(latest(state), latest(expected))
        else:
            kept = 0.6 * (step / 16) ** power
            slow = jax.tree.map(lambda old, new, kept=kept: kept * old + (1 - kept) * new, slow, latest(expected))
            close(latest(state), slow)
        close(state.average, slow)


@pytest.mark.parametrize("model", [{"name": "cnn", "width": 4, "hidden": 8}, RESNET], ids=["cnn", "resnet"])
def test_weights_are_averaged_evenly_over_the_epochs_from_the_start_epoch_on(model):
    recipe, plain = (made.recipe({"average.start_epoch": s}, model=model, epochs=5) for s in (2, 0))
    data, state, unaveraged, ends = made.split(), made.init(recipe), made.init(plain), []
    for epoch in range(1, 5):
        state, _ = made.epoch(recipe)(state, data.images, data.labels)
        unaveraged, _ = made.epoch(plain)(unaveraged, data.images, data.labels)
        close(latest(state), latest(unaveraged))  # training goes on as without
        ends.append(jax.tree.map(np.float64, state.params))
        if epoch <= 2:
            close(state.average, latest(state))
        else:
            mean = jax.tree.map(lambda *leaves: np.mean(leaves, 0), *ends[1:])
            close(state.average["params"], mean)


def test_the_averaged_weights_have_batch_statistics_of_their_own():
    """Those of the averaged weights on the training images: nearer than the latest weights' ones."""
    fields = {"average.start_epoch": 1, "schedule.name": "constant", "optimizer.learning_rate": 0.1}
    recipe = made.recipe(fields, model=RESNET, epochs=9)
    data, state = made.split(), made.init(recipe)
    for _ in range(6):
        state, _ = made.epoch(recipe)(state, data.images, data.labels)
    images, statistics = model_inputs(recipe, data.images / np.float32(255)), state.batch_stats
    forward = jax.jit(
        lambda params, batch_stats: training.model(recipe).apply(
            {"params": params, "batch_stats": batch_stats}, images, train=True, mutable=["batch_stats"]
        )[1]["batch_stats"]
    )
    for _ in range(60):  # to the statistics of the whole set in one batch
        statistics = forward(state.average["params"], statistics)
    distance = lambda other: global_norm(jax.tree.map(jnp.subtract, other, statistics))
    assert distance(state.average["batch_stats"]) < 0.7 * distance(state.batch_stats)


@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        (
            {"average.decay": 0.9, "lookahead.steps": 5},
            "average.decay, lookahead.steps are set; a run keeps one average",
        ),
        ({"average.start_epoch": 9}, "average.start_epoch=9 is after the last of 4 epochs"),
        ({"average.start_epoch": -1}, "'average.start_epoch' is -1; it must be at least 0"),
        ({"lookahead.steps": -1}, "'lookahead.steps' is -1; it must be at least 0"),
        ({"lookahead.pull": 1.5}, "'lookahead.pull' is 1.5; it must be between 0 and 1"),
        ({"lookahead.power": -1.0}, "'lookahead.power' is -1.0; it must be at least 0"),
        ({"sam.rho": -1.0}, "'sam.rho' is -1.0; it must be at least 0"),
    ],
)
def test_averages_are_checked(fields, answer):
    with pytest.raises(InputError) as error:
        check(made.recipe(fields))
    assert answer in str(error.value)
