"""Training on the images that a proxy finds hardest."""

import jax
import numpy as np
import pytest

from cifar_jax import training
from cifar_jax.errors import InputError
from cifar_jax.models import speedrun
from cifar_jax.recipe import override
from cifar_jax.runs.devices import jit
from cifar_jax.runs.recipes import load_recipe
from cifar_jax.training import losses
from cifar_jax.training.check import check
from cifar_jax.training.state import model_inputs
from cifar_jax.training.update import optimizer
from tests import made

PROXY = {"name": "cnn", "width": 2, "kernel_size": 3, "hidden": 4}
SELECTION = {"selection": {"share": 0.5, "every": 2}}


def recipe(changes=None, **more):
    return made.recipe({**SELECTION, **(changes or {})}, proxy=PROXY, **more)


def proxy_losses(recipe, state, images, labels):
    """Of each image, by the proxy."""
    apply = training.model(recipe, "proxy").apply
    logits = apply({"params": state.proxy["params"]}, model_inputs(recipe, images / np.float32(255)), train=True)
    return np.asarray(losses.cross_entropy(logits, jax.nn.one_hot(labels, made.CLASSES)))


def test_a_step_trains_on_the_hardest_half_alone():
    """It is a step of a recipe without selection on those images, of the model and, where it is due, of the proxy."""
    data, selecting = made.split(), recipe()
    state, images, labels = made.init(selecting), data.images[:8], data.labels[:8]
    hard = np.argsort(proxy_losses(selecting, state, images, labels))[4:]
    after, sums = made.step(selecting)(state, images, labels)
    plain = made.recipe(batch_size=4)
    alone, alone_sums = made.step(plain)(state.replace(proxy={}), images[hard], labels[hard])
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, after.params, alone.params)
    assert sums["count"] == 4
    assert float(sums["loss_sum"]) == pytest.approx(float(alone_sums["loss_sum"]), rel=1e-5)
    own = made.recipe(batch_size=4, model=PROXY)
    start = made.init(own).replace(params=state.proxy["params"], opt_state=state.proxy["opt_state"])
    jax.tree.map(close, after.proxy["params"], made.step(own)(start, images[hard], labels[hard])[0].params)


def test_the_proxy_learns_through_the_statistics_of_the_whole_batch():
    """Its losses on the chosen half, of logits that batch normalisation made with all images, as the peer's are."""
    data, selecting = made.split(), made.recipe(recipe(), proxy={"name": "speedrun94", "widths": (4,)})
    state, images, labels = made.init(selecting), data.images[:8], data.labels[:8]
    inputs, targets = model_inputs(selecting, images / np.float32(255)), jax.nn.one_hot(labels, made.CLASSES)
    apply = training.model(selecting, "proxy").apply

    def chosen(params):
        variables = {"params": params, "batch_stats": state.proxy["batch_stats"]}
        logits, updated = apply(variables, inputs, train=True, mutable=["batch_stats"])
        return jax.lax.top_k(losses.cross_entropy(logits, targets), 4)[0].mean(), updated["batch_stats"]

    gradients, batch_stats = jax.jit(jax.grad(chosen, has_aux=True))(state.proxy["params"])
    transformation = optimizer(selecting, 0, "proxy")
    updates, _ = transformation.update(gradients, state.proxy["opt_state"], state.proxy["params"])
    after, _ = made.step(selecting)(state, images, labels)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    jax.tree.map(
        lambda old, update, new: close(old + update, new), state.proxy["params"], updates, after.proxy["params"]
    )
    jax.tree.map(close, batch_stats, after.proxy["batch_stats"])


def test_the_proxy_trains_in_every_second_step():
    data, selecting = made.split(), recipe()
    state, moved = made.init(selecting), []
    for _ in range(4):
        after, _ = made.step(selecting)(state, data.images[:8], data.labels[:8])
        moved.append(
            bool(np.any(after.proxy["params"]["Dense_0"]["kernel"] != state.proxy["params"]["Dense_0"]["kernel"]))
        )
        state = after
    assert moved == [True, False, True, False]


def test_the_proxy_starts_from_the_same_whitening():
    model = {"name": "speedrun94", "widths": (4,)}
    selecting = made.recipe({**SELECTION, "average.decay": 0.9}, model=model, proxy={**model, "widths": (2,)})
    images = made.split().images
    state = jit(lambda: training.prepare(selecting, training.init(selecting), images))()
    expected = speedrun.whitening_filters(model_inputs(selecting, images / np.float32(255)))
    for statistics in (state.batch_stats, state.proxy["batch_stats"], state.average["batch_stats"]):
        np.testing.assert_allclose(statistics["whitening"], expected, rtol=2e-2, atol=1e-2)


def test_the_proxy_has_groups_of_its_own():
    """Another network may have other parameters; frozen ones stay, and the model's groups do not reach it."""
    own = {"selection.groups": (("(Dense|head).*", 1.0, 1.0), ("Convolution.*", 0.0, 1.0))}
    selecting = recipe({**own, "groups": (("head/.*", 0.0, 1.0), ("(?!head/).*", 1.0, 1.0))})
    check(selecting)
    data, state = made.split(), made.init(selecting)
    after, _ = made.step(selecting)(state, data.images[:8], data.labels[:8])
    moved = lambda old, new: sorted(name for name in old if np.any(old[name]["kernel"] != new[name]["kernel"]))
    assert moved(state.proxy["params"], after.proxy["params"]) == ["Dense_0", "head"]
    assert moved(state.params, after.params) == ["Convolution_0", "Convolution_1", "Dense_0"]


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({"selection.groups": (("Conv.*", 1.0, 1.0),)}, "selection.groups: parameter 'Dense_0/bias' matches 0 of"),
        ({"proxy.dropout": 1.5}, "recipe field 'proxy.dropout' is 1.5; it must be between 0 and 1"),
        ({"selection.share": 0.01}, "batch_size=8 times selection.share=0.01 does not divide into"),
        ({"selection.share": 1.5}, "recipe field 'selection.share' is 1.5; it must be between 0 and 1"),
        ({"selection.every": 0}, "recipe field 'selection.every' is 0; it must be at least 1"),
        ({"proxy.wdith": 3}, "recipe field 'proxy.wdith' is unknown to proxy 'cnn'; did you mean 'width'?"),
    ],
)
def test_what_cannot_be_is_told(changes, answer):
    with pytest.raises(InputError) as error:
        check(recipe(changes))
    assert answer in str(error.value)


@pytest.mark.parametrize("section", ["model", "proxy"])
def test_speedrun96_has_the_rates_of_the_peer(section):
    """airbench96_faster's numbers for a loss summed over 512 images: 9 and 0.012 over 1024 (1 + 1 / 0.15)."""
    peer = load_recipe("configs/speedrun96.py", {"dtype": "float32"})
    facts = {"data.num_classes": 10, "data.image_shape": (8, 8, 3), "data.train_count": 50_000}
    recipe = made.recipe(peer, **facts)
    small = {"model": {"name": "speedrun96", "widths": (4,)}, "proxy": {"name": "speedrun96", "widths": (2,)}}
    recipe = override(recipe, small)
    assert training.steps_per_epoch(recipe) * recipe.epochs == 2160
    state = training.init(recipe)
    params = state.params if section == "model" else state.proxy["params"]
    gradients = jax.tree.map(lambda w: np.full(w.shape, 1e-3, np.float32), params)
    scale = 1024 * (1 + 1 / 0.15)
    for step, factor in ((0, 0.2), (108, 0.6), (216, 1.0), (1188, 0.5)):
        transformation = optimizer(recipe, step, section)
        updates, _ = transformation.update(gradients, transformation.init(params), params)
        assert np.any(updates["whitening_bias"]) == (section == "model")
        for name, peak in (("kernel", 9 / scale), ("bias", 64 * 9 / scale)):
            layer = "Convolution_0" if name == "kernel" else "BatchNorm_0"
            weight, update = (np.float64(tree["group1"][layer][name]) for tree in (params, updates))
            gradient = 512 * 1e-3 + 0.012 * 1024 / scale / peak * weight
            np.testing.assert_allclose(update, -factor * peak * 1.85 * gradient, rtol=1e-4, atol=1e-9)
