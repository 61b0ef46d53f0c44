"""The training step and epoch as functions: of the recipe, the state and the data, and of nothing else."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax import fit, training
from cifar_jax.errors import InputError
from cifar_jax.models.counts import multiply_adds
from cifar_jax.recipe import override
from cifar_jax.runs import programs
from cifar_jax.runs.devices import jit
from cifar_jax.training import losses
from cifar_jax.training.check import check
from cifar_jax.training.gradients import gradients_of
from cifar_jax.training.keys import Purpose, key
from cifar_jax.training.parameter_groups import frozen_patterns
from cifar_jax.training.state import model_inputs
from cifar_jax.training.step import Phase
from tests import made

EVERYTHING = {  # all that a step may depend on
    "model.dropout": 0.3,
    "augment.alternating_flip": 1,
    "augment.crop": 2,
    "augment.brightness": 0.5,  # and no policy, which takes 3 s to compile; test_augment has them
    "augment.cutmix": 1.0,
    "average.decay": 0.9,
    "loss.label_smoothing": 0.1,
    "schedule.name": "cosine",
    "gradient_clip_norm": 1.0,
}


def batch(start=0, size=8):
    data = made.split()
    return data.images[start : start + size], data.labels[start : start + size]


def whole():
    return batch(0, made.COUNT)


def test_the_loss_falls():
    recipe = made.recipe(epochs=30)
    state, losses, right = made.init(recipe), [], []
    for _ in range(30):
        state, sums = made.epoch(recipe)(state, *whole())
        losses.append(sums["loss_sum"].sum() / made.COUNT)
        right.append(int(sums["correct"].sum()))
    assert 1 < losses[0] < 2  # log(4) = 1.39 is chance
    assert losses[-1] < 0.05
    assert right[-1] == made.COUNT


def test_a_step_is_a_pure_function():
    recipe = made.recipe(EVERYTHING)
    state = made.init(recipe)
    before = jax.tree.map(np.array, state)
    results = [made.step(recipe)(state, *batch()) for _ in range(2)]
    made.assert_same(*results)
    made.assert_same(jax.tree.map(np.array, state), before)
    made.assert_same(jit(functools.partial(training.init, recipe))(), state)


def test_a_step_moves_every_weight_and_counts_itself():
    recipe = made.recipe()
    state = made.init(recipe)
    assert state.step.dtype == jnp.int32
    after, sums = made.step(recipe)(state, *batch())
    assert (int(state.step), int(after.step)) == (0, 1)
    for one, other in zip(jax.tree.leaves(state.params), jax.tree.leaves(after.params), strict=True):
        assert np.any(one != other)
    assert {name: (leaf.shape, str(leaf.dtype)) for name, leaf in sums.items()} == {
        "loss_sum": ((), "float32"),
        "correct": ((), "int32"),
        "count": ((), "int32"),
        "learning_rate": ((), "float32"),
    }


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_steps_sums_and_gradient_are_those_of_the_formulas(smoothing):
    optimizer = {"name": "sgd", "learning_rate": 0.5, "momentum": 0.0}
    fields = {"loss.label_smoothing": smoothing, "data.mean": (0.1, 0.2, 0.3), "data.std": (0.5, 0.4, 0.3)}
    recipe = made.recipe(fields, optimizer=optimizer)
    state, (images, labels) = made.init(recipe), batch()
    inputs = ((images / 255 - np.array([0.1, 0.2, 0.3])) / np.array([0.5, 0.4, 0.3])).astype(np.float32)
    targets = (1 - smoothing) * np.eye(4)[labels] + smoothing / 4
    apply = jit(lambda params: training.model(recipe).apply({"params": params}, inputs, train=False))
    logits = np.float64(apply(state.params))
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    after, sums = made.step(recipe)(state, images, labels)
    assert float(sums["loss_sum"]) == pytest.approx(-(targets * log_probabilities).sum(), rel=1e-5)
    assert int(sums["correct"]) == np.sum(logits.argmax(-1) == labels)
    assert int(sums["count"]) == 8
    assert float(sums["learning_rate"]) == 0.5
    bias = (np.exp(log_probabilities) - targets).mean(0)  # the gradient of the last bias, by hand
    moved = after.params["head"]["bias"] - state.params["head"]["bias"]
    np.testing.assert_allclose(moved, -0.5 * bias, rtol=1e-4, atol=1e-6)


def test_label_smoothing_changes_the_loss():
    losses = [
        float(made.step(recipe)(made.init(recipe), *batch())[1]["loss_sum"])
        for recipe in (made.recipe(), made.recipe({"loss.label_smoothing": 0.2}))
    ]
    assert abs(losses[0] - losses[1]) > 1e-3


def test_the_learning_rate_follows_the_schedule_at_each_step():
    recipe = made.recipe({"schedule": {"name": "cosine", "warmup_epochs": 1.0}})
    state, rates = made.init(recipe), []
    for _ in range(4):
        state, sums = made.epoch(recipe)(state, *whole())
        rates += sums["learning_rate"].tolist()
    assert int(state.step) == 16
    expected = [training.learning_rate(recipe, step) for step in range(16)]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
    assert rates[0] == 0
    assert rates[4] == pytest.approx(0.02)
    assert 0 < rates[15] < 0.002


class Recorder(nn.Module):
    """Remembers the first pixel of the latest images it was trained on, in their order."""

    num_classes: int
    dtype: Any

    @nn.compact
    def __call__(self, images, *, train):
        seen = self.variable("batch_stats", "seen", jnp.full, (64,), -1.0)
        if train and not self.is_initializing():
            seen.value = jnp.concatenate([seen.value, images[:, 0, 0, 0]])[-64:]
        bias = self.param("bias", nn.initializers.zeros, (self.num_classes,))
        return jnp.zeros((len(images), 1)) + bias


def recording(**changes):
    plain = {"data.mean": (0.0,), "data.std": (1 / 255,), "data.image_shape": (1, 1, 1)}
    return made.recipe({"model.name": Recorder, **plain, **changes})


def numbered(count):
    """Images whose only pixel is their number."""
    return np.arange(count, dtype=np.uint8).reshape(count, 1, 1, 1), np.arange(count, dtype=np.int32) % 4


def orders(count, size, epochs=2, **changes):
    """The images visited in each epoch, in their order."""
    recipe = recording(**{"data.train_count": count, "batch_size": size, **changes})
    state, result = made.init(recipe), []
    for _ in range(epochs):
        state, sums = made.epoch(recipe)(state, *numbered(count))
        assert sums["count"].tolist() == [size] * (count // size)
        seen = np.rint(np.asarray(state.batch_stats["seen"])[-(count // size) * size :])
        result.append(seen.astype(int).tolist())
    return result


def test_an_epoch_visits_each_image_exactly_once_where_the_batches_divide_them():
    first, second = orders(30, 6)
    assert sorted(first) == sorted(second) == list(range(30))
    assert first != second
    assert first != sorted(first)


def test_an_epoch_visits_no_image_twice_and_leaves_others_out_each_time():
    first, second = orders(31, 8)
    for order in (first, second):
        assert len(order) == len(set(order)) == 24
        assert set(order) <= set(range(31))
    assert set(first) != set(second)


def test_the_order_is_the_seeds():
    assert orders(30, 6, 1) == orders(30, 6, 1)
    assert orders(30, 6, 1) != orders(30, 6, 1, seed=1)


def test_labels_stay_with_their_images():
    """The gradient of the bias counts labels: after an epoch with lr it must be that of the images seen."""
    recipe = recording(**{"data.train_count": 30, "batch_size": 6})
    images, labels = numbered(30)
    labels = (images.ravel() % 7 % 4).astype(np.int32)
    start = made.init(recipe)
    after, _ = made.epoch(recipe)(start, images, labels)
    seen = np.rint(after.batch_stats["seen"][-30:]).astype(int).reshape(5, 6)
    bias, velocity = np.zeros(4), np.zeros(4)
    for chosen in seen:
        probabilities = np.exp(bias) / np.exp(bias).sum()
        velocity = 0.9 * velocity + probabilities - np.eye(4)[chosen % 7 % 4].mean(0)
        bias = bias - 0.02 * velocity
    np.testing.assert_allclose(after.params["bias"], bias, rtol=1e-4, atol=1e-6)


def test_each_step_and_each_seed_draws_its_own_augmentation():
    def draw(key, images, targets):
        return jnp.full_like(images, jax.random.uniform(key) / 255), targets

    def drawn(recipe, step):
        state = made.init(recipe).replace(step=jnp.int32(step))
        seen = made.step(recipe)(state, *(array[:8] for array in numbered(8)))[0].batch_stats["seen"]
        assert len(set(seen[-8:].tolist())) == 1
        return float(seen[-1])

    recipe = recording(augment=draw)
    assert drawn(recipe, 3) == drawn(recipe, 3)
    assert len({drawn(recipe, step) for step in range(10)}) == 10
    assert drawn(recipe, 3) != drawn(recording(augment=draw, seed=1), 3)


def test_each_step_draws_its_own_dropout():
    recipe = made.recipe({"model.dropout": 0.5})
    losses = [
        float(made.step(recipe)(made.init(recipe).replace(step=jnp.int32(step)), *batch())[1]["loss_sum"])
        for step in (0, 0, 1, 2)
    ]
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


def test_two_epochs_in_one_program_are_one_and_one_bit_for_bit():
    recipe = made.recipe(EVERYTHING)

    @jit
    def both(state, images, labels):
        return jax.lax.scan(lambda state, _: training.train_epoch(recipe, state, images, labels), state, length=2)

    state, sums = both(made.init(recipe), *whole())
    first, first_sums = made.epoch(recipe)(made.init(recipe), *whole())
    stored = jax.tree.map(jnp.asarray, jax.tree.map(np.array, first))  # as a checkpoint would bring it back
    second, second_sums = made.epoch(recipe)(stored, *whole())
    made.assert_same(state, second)
    made.assert_same(sums, jax.tree.map(lambda *parts: jnp.stack(parts), first_sums, second_sums))
    assert int(state.step) == 8


def test_an_epoch_is_its_steps_in_the_shuffled_order():
    recipe = made.recipe(EVERYTHING)
    images, labels = whole()
    order = np.asarray(jax.random.permutation(jax.random.fold_in(key(recipe, Purpose.ORDER), 0), made.COUNT))
    state = made.init(recipe)
    for chosen in order.reshape(4, 8):
        state, _ = made.step(recipe)(state, images[chosen], labels[chosen], chosen)
    expected, _ = made.epoch(recipe)(made.init(recipe), images, labels)
    close = lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, state, expected)


def test_a_traced_learning_rate_and_seed_give_the_static_ones_result():
    recipe = made.recipe(EVERYTHING | {"seed": 5, "optimizer.learning_rate": 0.03})

    @jit
    def traced(numbers, images, labels):
        changed = override(made.recipe(EVERYTHING), numbers)
        return training.train_epoch(changed, training.init(changed), images, labels)

    numbers = {"seed": jnp.asarray(5), "optimizer.learning_rate": jnp.asarray(0.03)}
    state, sums = traced(numbers, *whole())
    expected, expected_sums = made.epoch(recipe)(made.init(recipe), *whole())
    made.assert_same(state, expected)
    made.assert_same(sums, expected_sums)


def test_each_purpose_of_a_seed_has_keys_of_its_own():
    found = [
        tuple(np.asarray(jax.random.key_data(key(made.recipe(seed=seed), purpose))).tolist())
        for seed in (0, 1, 2**31 - 1)
        for purpose in Purpose
    ]
    assert len(set(found)) == 12


def test_normalise_takes_one_number_a_channel_or_one_for_all():
    images = np.random.RandomState(0).uniform(size=(2, 3, 3, 3)).astype(np.float32)
    three = made.recipe({"data.mean": (0.1, 0.2, 0.3), "data.std": (0.5, 0.25, 1.0)})
    np.testing.assert_allclose(
        model_inputs(three, images), (images - [0.1, 0.2, 0.3]) / [0.5, 0.25, 1.0], rtol=1e-5, atol=1e-6
    )
    one = made.recipe({"data.mean": (0.5,), "data.std": (0.25,)})
    np.testing.assert_allclose(model_inputs(one, images), (images - 0.5) / 0.25, rtol=1e-5, atol=1e-6)


GREY = {"data.image_shape": (8, 8, 1), "data.mean": (0.1, 0.2, 0.3), "data.std": (0.5, 0.5, 0.5)}
BAD = [  # changes, what the answer must say
    ({"batch_size": 33}, "batch_size=33 is larger than the training set of 32 images"),
    ({"batch_size": 0}, "'batch_size' is 0; it must be at least 1"),
    ({"seed": -1}, "'seed' is -1; it must be between 0 and"),
    ({"seed": 2**32}, "'seed' is 4294967296; it must be between 0 and"),
    ({"epochs": 0}, "'epochs' is 0; it must be at least 1"),
    ({"chunk_epochs": 0}, "'chunk_epochs' is 0; it must be at least 1"),
    ({"data.validation": -1}, "'data.validation' is -1; it must be at least 0"),
    ({"optimizer.learning_rate": -0.1}, "'optimizer.learning_rate' is -0.1; it must be at least 0"),
    ({"optimizer.learning_rate": float("nan")}, "'optimizer.learning_rate' is nan"),
    ({"optimizer.weight_decay": -0.1}, "'optimizer.weight_decay' is -0.1; it must be at least 0"),
    ({"gradient_clip_norm": -1.0}, "'gradient_clip_norm' is -1.0; it must be at least 0"),
    ({"model.dropout": 1.5}, "'model.dropout' is 1.5; it must be between 0 and 1"),
    ({"loss.label_smoothing": 1.5}, "'loss.label_smoothing' is 1.5; it must be between 0 and 1"),
    ({"loss": {"name": "focal", "gamma": -1.0}}, "'loss.gamma' is -1.0; it must be at least 0"),
    ({"augment.flip": 1.5}, "'augment.flip' is 1.5; it must be between 0 and 1"),
    ({"augment.crop": -1}, "'augment.crop' is -1; it must be at least 0"),
    ({"augment.alternating_flip": 2}, "'augment.alternating_flip' is 2; it must be between 0 and 1"),
    ({"augment.rotation": 200.0}, "'augment.rotation' is 200.0; it must be between 0 and 180"),
    ({"augment.brightness": 1.5}, "'augment.brightness' is 1.5; it must be between 0 and 1"),
    ({"augment.contrast": -0.5}, "'augment.contrast' is -0.5; it must be between 0 and 1"),
    ({"augment.saturation": 1.5}, "'augment.saturation' is 1.5; it must be between 0 and 1"),
    ({"augment.randaugment": 11.0}, "'augment.randaugment' is 11.0; it must be between 0 and 10"),
    ({"augment.trivial_augment": 2.0}, "'augment.trivial_augment' is 2.0; it must be between 0 and 1"),
    ({"augment.cutout": -1}, "'augment.cutout' is -1; it must be at least 0"),
    ({"augment.random_erasing": 1.5}, "'augment.random_erasing' is 1.5; it must be between 0 and 1"),
    ({"augment.mixup": -1.0}, "'augment.mixup' is -1.0; it must be at least 0"),
    ({"augment.cutmix": -1.0}, "'augment.cutmix' is -1.0; it must be at least 0"),
    ({"average.decay": 1.5}, "'average.decay' is 1.5; it must be between 0 and 1"),
    ({"early_stopping.patience": -1}, "'early_stopping.patience' is -1; it must be at least 0"),
    ({"seeds.order": -2}, "'seeds.order' is -2; it must be between -1 and"),
    ({"chunk_epochs": 2, "part_steps": 2}, "part_steps=2 and chunk_epochs=2: one splits epochs and the other joins"),
    ({"objective.name": "classificatoin"}, "objective 'classificatoin' is unknown; did you mean 'classification'"),
    ({"objective.name": "distillation"}, "objective 'distillation' needs a teacher; set objective.teacher"),
    ({"early_stopping.metric": "accuracy"}, "early_stopping.metric is 'accuracy'; it must be 'validation_accuracy' or"),
    ({"checkpoint.every_epochs": -1}, "'checkpoint.every_epochs' is -1; it must be at least 0"),
    ({"evaluation.batch_size": 0}, "'evaluation.batch_size' is 0; it must be at least 1"),
    ({"evaluation.views": "miror"}, "views 'miror' are unknown; did you mean 'mirror'"),
    ({"model.name": "cn"}, "model 'cn' is unknown; did you mean 'cnn'"),
    ({"model.widht": 3}, "'model.widht' is unknown to model 'cnn'; did you mean 'model.width'"),
    ({"model.width": 0}, "'model.width' is 0"),
    ({"model.activation": "rellu"}, "activation 'rellu' is unknown; did you mean 'relu'"),
    (
        {"optimizer.momentun": 0.5},
        "'optimizer.momentun' is unknown to optimizer 'sgd'; did you mean 'optimizer.momentum'",
    ),
    ({"optimizer.decayed": "kernel"}, "optimizer.decayed 'kernel' is unknown; did you mean 'kernels'"),
    ({"schedule.name": "cosin"}, "schedule 'cosin' is unknown; did you mean 'cosine'"),
    (
        {"schedule.warmup": 1.0},
        "'schedule.warmup' is unknown to schedule 'constant'; did you mean 'schedule.warmup_epochs'",
    ),
    ({"schedule.warmup_epochs": -1.0}, "'schedule.warmup_epochs' is -1.0"),
    ({"loss.name": "cross_entrop"}, "loss 'cross_entrop' is unknown; did you mean 'cross_entropy'"),
    (
        {"loss.smoothing": 0.1},
        "'loss.smoothing' is unknown to loss 'cross_entropy'; did you mean 'loss.label_smoothing'",
    ),
    (GREY, "'data.mean'"),
    ({"data.std": (0.5, 0.0, 0.5)}, "'data.std'"),
]


@pytest.mark.parametrize(("changes", "answer"), BAD, ids=[",".join(changes) for changes, _ in BAD])
def test_check_answers_a_bad_field_by_name(changes, answer):
    with pytest.raises(InputError) as error:
        check(made.recipe(changes))
    assert answer in str(error.value)


def test_check_lets_a_good_recipe_pass_and_functions_too():
    check(made.recipe(EVERYTHING))
    check(recording(augment=lambda key, images, targets: (images, targets)))
    check(made.recipe({"early_stopping.patience": 2, "data.validation": 4}))


def accumulated(parts, changes, rate=0.02):
    recipe = made.recipe({"gradient_accumulation": parts, "optimizer.learning_rate": rate, **changes})
    state, data = made.init(recipe), made.split()
    return recipe, *made.step(recipe)(state, data.images[:8], data.labels[:8])


@pytest.mark.parametrize("changes", [{}, {"sam.rho": 0.5}], ids=str)
def test_gradient_accumulation_changes_nothing_but_the_order_of_sums(changes):
    smooth = {"loss.label_smoothing": 0.1, "model.activation": "gelu", **changes}
    _, whole, whole_sums = accumulated(1, smooth)
    for parts in (2, 8):
        _, state, sums = accumulated(parts, smooth)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), state.params, whole.params)
        assert sums["correct"] == whole_sums["correct"]
        assert float(sums["loss_sum"]) == pytest.approx(float(whole_sums["loss_sum"]), rel=1e-5)


def test_each_part_of_a_batch_is_normalised_by_its_own_statistics():
    model = {"name": "convnet", "widths": (4,), "convolutions": (1,), "dropout": 0.0}
    recipe, state, _ = accumulated(2, {"model": model})
    first, data = made.init(recipe), made.split()
    one = made.recipe({"model": model, "batch_size": 4})
    batch_stats = first.batch_stats
    for part in (slice(0, 8, 2), slice(1, 8, 2)):
        step = made.step(one)(first.replace(batch_stats=batch_stats), data.images[part], data.labels[part])
        batch_stats = step[0].batch_stats
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), state.batch_stats, batch_stats)


def test_each_part_of_a_batch_has_a_key_of_its_own():
    recipe, dropout_key = made.recipe({"gradient_accumulation": 2}), jax.random.key(0)

    def losses(params, batch_stats, part, part_key):
        noise = jax.random.uniform(part_key, part["x"].shape)
        return part["x"] * params, batch_stats, {"noise": noise}

    found = gradients_of(recipe, losses, jnp.float32(1), {}, {"x": jnp.ones(8)}, dropout_key)
    parts = [float(jax.random.uniform(jax.random.fold_in(dropout_key, part), (4,)).sum()) for part in (0, 1)]
    assert parts[0] != parts[1]
    assert float(found.metrics["noise"]) == pytest.approx(sum(parts))


def test_a_batch_must_divide_into_its_parts():
    with pytest.raises(InputError, match="batch_size=8 does not divide into gradient_accumulation=3 parts"):
        check(made.recipe(gradient_accumulation=3))


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({"schedule": {"name": "one_cycle", "peak": 1.0}}, "'schedule.peak' is 1.0; it must be between"),
        ({"schedule": {"name": "linear", "start": -0.1}}, "'schedule.start' is -0.1; it must be between 0 and 1"),
        ({"optimizer": {"name": "adam", "learning_rate": 0.1, "epsilon": -1.0}}, "'optimizer.epsilon' is -1.0"),
        ({"model": {"name": "vit", "patch_size": 0}}, "'model.patch_size' is 0; it must be at least 1"),
        ({"model": {"name": "wide_resnet16_4", "widen": 0}}, "'model.widen' is 0; it must be at least 1"),
    ],
)
def test_numbers_out_of_range_are_told_before_anything_is_traced(changes, answer):
    with pytest.raises(InputError) as error:
        check(made.recipe(changes))
    assert answer in str(error.value)


FREEZING = (("Convolution_0/.*", 1.0, 1.0, 2), ("Convolution_1/.*", 1.0, 1.0, 1.5), ("(Dense|head).*", 1.0, 1.0))


def test_frozen_parameters_cost_no_gradients_and_the_others_train_as_before():
    recipe = made.recipe(groups=FREEZING, optimizer={"name": "sgd", "learning_rate": 0.1, "weight_decay": 0.01})
    images, labels = map(jnp.asarray, whole())
    state = made.init(recipe)
    late = state.replace(step=jnp.int32(8))  # two epochs are over: both groups of convolutions are frozen
    patterns = frozen_patterns(recipe.groups, 2)
    assert patterns == ("Convolution_0/.*", "Convolution_1/.*")
    epoch = lambda patterns: lambda state: training.train_epoch(recipe, state, images, labels, phase=Phase(patterns))
    (slow, _), (fast, _) = (jit(epoch(frozen))(late) for frozen in ((), patterns))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), slow.params, fast.params)
    made.assert_same(fast.params["Convolution_0"], state.params["Convolution_0"])
    assert np.any(fast.params["head"]["kernel"] != state.params["head"]["kernel"])
    work = [multiply_adds(jax.make_jaxpr(epoch(frozen))(late).jaxpr) for frozen in ((), patterns[:1], patterns)]
    assert work[0] > work[1] > work[2]


@pytest.mark.parametrize("chunk_epochs", [1, 4])
def test_fit_stops_the_gradients_of_a_group_after_its_epochs(chunk_epochs):
    """The run is that of a loop that never stops them; the first epochs with all groups are one part of it."""
    data = {"train": made.split(), "test": made.split(seed=1)}
    recipe = made.recipe(groups=FREEZING, chunk_epochs=chunk_epochs, **{"data.validation": 0})
    patterns = ("Convolution_0/.*", "Convolution_1/.*")
    assert programs.phases(recipe, 0, 4) == ((2, Phase()), (2, Phase(patterns)))
    assert programs.phases(recipe, 1, 3) == ((1, Phase()), (1, Phase(patterns)))
    found = fit(recipe, data=data, progress=False).state
    state = made.init(recipe)
    for _ in range(4):
        state, _ = made.epoch(recipe)(state, data["train"].images, data["train"].labels)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found.params, state.params)


@pytest.mark.parametrize("field", [{"gradient_clip_norm": 1e-3}, {"sam.rho": 0.1}], ids=str)
def test_groups_of_rate_zero_have_no_part_in_clipping_or_sam(field):
    """Beside the step in which only the others' gradients are clipped, and only the others are perturbed."""
    groups = (("Convolution.*", 0.0, 1.0), ("(Dense|head).*", 1.0, 1.0))
    sgd = {"name": "sgd", "learning_rate": 0.5, "momentum": 0.0}
    recipe = made.recipe({**field, "groups": groups}, optimizer=sgd)
    state, (images, labels) = made.init(recipe), batch()
    inputs, targets = model_inputs(recipe, images / np.float32(255)), jax.nn.one_hot(labels, made.CLASSES)

    def gradients(params):
        found = made.loss_and_gradients(recipe, params, {}, inputs, targets).gradients
        own = lambda path, leaf: leaf * path[0].key.startswith(("Dense", "head"))
        return jax.tree_util.tree_map_with_path(own, found)

    expected = jit(gradients)(state.params)
    length = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(expected)))
    if recipe.sam.rho:
        expected = jit(gradients)(jax.tree.map(lambda w, g: w + 0.1 * g / length, state.params, expected))
    else:
        expected = jax.tree.map(lambda g: g * 1e-3 / length, expected)
    after, _ = made.step(recipe)(state, images, labels)
    moved = jax.tree.map(np.subtract, after.params, state.params)
    jax.tree.map(lambda m, g: np.testing.assert_allclose(m, -0.5 * g, rtol=1e-3, atol=1e-7), moved, expected)


def test_an_object_that_can_be_called_stands_for_a_loss():
    class Scaled:
        def __call__(self, logits, targets):
            return 3 * losses.cross_entropy(logits, targets)

    state, (images, labels) = made.init(made.recipe()), batch()
    one = made.step(made.recipe())(state, images, labels)[1]["loss_sum"]
    three = made.step(made.recipe(loss={"name": Scaled()}))(state, images, labels)[1]["loss_sum"]
    assert float(three) == pytest.approx(3 * float(one), rel=1e-5)
