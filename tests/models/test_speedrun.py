"""The speedruns' networks: whitening from data, the identities they start from, and what stays frozen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax import training
from cifar_jax.data.arrays import hold_out
from cifar_jax.errors import InputError
from cifar_jax.models import MODELS, kernels, speedrun
from cifar_jax.recipe import resolve
from cifar_jax.runs.devices import jit
from cifar_jax.runs.fit import fit
from cifar_jax.runs.programs import whole_run
from cifar_jax.runs.recipes import load_recipe
from cifar_jax.training import optimizers as optim
from cifar_jax.training.state import model_inputs
from cifar_jax.training.update import optimizer
from tests import made

TINY = {"name": "speedrun94", "widths": (4, 8)}


def pictures(count=40, channels=3):
    """Neighbouring pixels and channels alike, as in photographs."""
    noise = np.random.RandomState(0).normal(size=(count, 10, 10, channels))
    smooth = noise + np.roll(noise, 1, 1) + np.roll(noise, 1, 2) + 0.8 * noise[..., :1]
    return ((smooth - smooth.mean()) / smooth.std() + 0.1).astype(np.float32)


def numpy_patches(images):
    windows = np.lib.stride_tricks.sliding_window_view(images.astype(np.float64), (2, 2), (1, 2))
    return windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, 4 * images.shape[-1])


@pytest.mark.parametrize("channels", [1, 3])
def test_whitening_is_that_of_numpy_in_float64(channels):
    images = pictures(channels=channels)
    patches = numpy_patches(images)
    filters = np.asarray(jit(speedrun.whitening_filters)(images))
    assert filters.shape == (2, 2, channels, 8 * channels)
    assert filters.dtype == np.float32
    values, vectors = np.linalg.eigh(np.float64(patches.T @ patches / len(patches)))
    expected = (vectors / np.sqrt(values + 5e-4))[:, ::-1]
    half = 4 * channels
    columns = filters.reshape(half, 2 * half)
    np.testing.assert_array_equal(columns[:, half:], -columns[:, :half])
    expected *= np.sign(expected[np.abs(expected).argmax(0), np.arange(half)])
    np.testing.assert_allclose(columns[:, :half], expected, atol=1e-4 * np.abs(expected).max())


def test_whitened_patches_are_uncorrelated_and_of_size_one():
    """About 0, not about their mean."""
    images = pictures()
    filters = np.asarray(speedrun.whitening_filters(images)).reshape(12, 24)[:, :12]
    whitened = numpy_patches(images) @ filters
    np.testing.assert_allclose(whitened.T @ whitened / len(whitened), np.eye(12), atol=0.02)


def test_patches_are_those_that_the_convolution_sees():
    images = pictures(2)
    np.testing.assert_allclose(speedrun.patches(images), numpy_patches(images), rtol=1e-6)


@pytest.mark.parametrize(("channels", "features"), [(3, 5), (4, 4), (5, 3)])
def test_dirac_passes_the_channels_on(channels, features):
    kernel = speedrun.dirac(jax.random.key(0), (3, 3, channels, features))
    images = np.random.RandomState(0).normal(size=(2, 6, 6, channels)).astype(np.float32)
    same = min(channels, features)
    outputs = kernels.convolution(images, kernel)
    np.testing.assert_array_equal(outputs[..., :same], images[..., :same])
    rest, bound = np.asarray(kernel[..., same:]), (9 * channels) ** -0.5
    assert np.abs(rest).max(initial=0) <= bound
    assert rest.size == 0 or rest.std() == pytest.approx(bound / 3**0.5, rel=0.2)


@pytest.mark.parametrize(("name", "deviation"), [("speedrun94", 1.0), ("speedrun96", (3 * 512) ** -0.5)])
def test_the_head_starts_uniform(name, deviation):
    """The smaller network's is divided by its own deviation, whatever was drawn."""
    model = MODELS[name](num_classes=100, widths=MODELS[name](num_classes=1).widths[-1:])
    params = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)["params"]
    kernel = np.asarray(params["head"]["kernel"])
    assert kernel.std(ddof=1) == pytest.approx(deviation, rel=1e-5 if name == "speedrun94" else 0.02)
    assert np.abs(kernel).max() == pytest.approx(3**0.5 * deviation, rel=0.02)
    assert name == "speedrun94" or np.abs(kernel).max() <= 512**-0.5 * (1 + 1e-6)
    assert set(params["head"]) == {"kernel"}
    bias = np.asarray(params["whitening_bias"])
    assert np.abs(bias).max() == 0 if name == "speedrun96" else 0.2 < np.abs(bias).max() <= 12**-0.5
    assert not [path for path, _ in jax.tree.leaves_with_path(params) if "scale" in jax.tree_util.keystr(path)]


def test_a_group_has_two_or_three_convolutions():
    with pytest.raises(InputError, match=r"model\.depth is 4"):
        MODELS["speedrun94"](num_classes=2, depth=4).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)


def test_no_step_moves_the_whitening():
    recipe = made.recipe({"optimizer.weight_decay": 0.1, "average.decay": 0.0}, model=TINY)
    state, data = made.init(recipe), made.split(8)
    after, _ = made.step(recipe)(state, data.images, data.labels)
    made.assert_same(after.batch_stats["whitening"], state.batch_stats["whitening"])
    assert np.any(after.params["whitening_bias"] != state.params["whitening_bias"])
    assert "whitening" not in after.params


def test_given_filters_are_used():
    recipe = made.recipe(model=TINY)
    state, images = made.init(recipe), pictures(4)
    apply = jit(lambda variables: training.model(recipe).apply(variables, images, train=False))
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    filters = {"whitening": speedrun.whitening_filters(images)}
    given = {"params": state.params, "batch_stats": state.batch_stats | filters}
    assert np.abs(apply(variables) - apply(given)).max() > 1e-5


@pytest.mark.parametrize("changes", [{}, {"average.decay": 0.9}], ids=str)
def test_a_run_starts_from_the_whitening_of_its_training_images(changes):
    """Of those that it trains on, before the first step; with an average of the weights, there too."""
    data = {"train": made.split(40), "test": made.split(8, seed=1)}
    model = {**TINY, "whitening_images": 24}
    groups = ((".*", 0.0, 1.0),)  # nothing learns
    recipe = made.recipe({"data.validation": 8, "epochs": 1, "groups": groups, **changes}, model=model)
    run = fit(recipe, data=data, progress=False)
    kept, _ = hold_out(data["train"].labels, 8, 0)
    images = model_inputs(recipe, data["train"].images[kept][:24] / np.float32(255))
    expected = jit(speedrun.whitening_filters)(images)
    for batch_stats in (run.state.batch_stats, run.state.average.get("batch_stats", run.state.batch_stats)):
        np.testing.assert_allclose(batch_stats["whitening"], expected, rtol=1e-3, atol=1e-3)


OFF = dict.fromkeys(load_recipe("configs/base.py").augment.keys(), 0)
PEERS = {  # what airbench94_muon and airbench96_faster say, beside the rates
    "speedrun94": {
        "epochs": 8,
        "batch_size": 2000,
        "augment": {**OFF, "alternating_flip": 1, "crop": 2},
        "selection": {"share": 0.0},
        "lookahead": {"steps": 0},
        "schedule": {"name": "linear"},
    },
    "speedrun96": {
        "epochs": 45,
        "batch_size": 1024,
        "augment": {**OFF, "alternating_flip": 1, "crop": 4, "inner_cutout": 12},
        "selection": {"share": 0.5, "every": 4},
        "lookahead": {"steps": 5, "pull": 1 - 0.95**5, "power": 3.0},
        "schedule": {"name": "linear", "warmup_epochs": 4.5, "start": 0.2},
    },
}
BOTH = {
    "data": {"validation": 0, "mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)},
    "loss": {"name": "cross_entropy", "label_smoothing": 0.2},
    "evaluation": {"views": "mirror_shift"},
    "gradient_accumulation": 1,
    "gradient_clip_norm": 0.0,
    "average": {"decay": 0.0, "start_epoch": 0},
    "sam": {"rho": 0.0},
}
SEEN = {"whitening_images": 5000}
NETWORKS = {
    ("speedrun94", "model"): {"widths": (64, 256, 256), "depth": 2, "momentum": 0.6, "head_scale": 1 / 256},
    ("speedrun96", "model"): {"widths": (128, 384, 512), "depth": 3, "momentum": 0.9, "head_scale": 1 / 9},
    ("speedrun96", "proxy"): {"widths": (32, 64, 64), "depth": 2, "momentum": 0.9, "head_scale": 1 / 9},
}
STARTS = {
    "speedrun94": {"head_std": 1.0, "whitening_bias": 1.0},
    "speedrun96": {"head_std": 0.0, "whitening_bias": 0.0},
}


@pytest.mark.parametrize("name", PEERS)
def test_the_recipe_is_the_peers(name):
    recipe = load_recipe(f"configs/{name}.py")
    for field, expected in {**BOTH, **PEERS[name]}.items():
        found = recipe[field]
        assert found == expected or {each: found[each] for each in expected} == expected, field


@pytest.mark.parametrize(("name", "section"), NETWORKS)
def test_the_network_is_the_peers(name, section):
    recipe = resolve(load_recipe(f"configs/{name}.py", {"dtype": "float32"}), {"data.num_classes": 10})
    network = training.model(recipe, section)
    for field, expected in {**NETWORKS[name, section], **STARTS[name], "activation": "gelu", **SEEN}.items():
        assert getattr(network, field) == expected, field


def test_the_recipe_has_the_rates_of_the_peer():
    """The peer's numbers, for a summed loss, against one step of ours on the mean: 200 steps of 2000 images."""
    recipe = load_recipe("configs/speedrun94.py", {"model.widths": (4, 8), "dtype": "float32"})
    recipe = resolve(recipe, {"data.num_classes": 10, "data.image_shape": (8, 8, 3), "data.train_count": 50_000})
    assert training.steps_per_epoch(recipe) * recipe.epochs == 200
    params = training.init(recipe).params
    gradients = jax.tree.map(lambda w: jnp.full_like(w, 1e-3), params)  # of the mean; of the sum 2000 times as much
    for step, bias_rate, rate in ((0, 0.053, 1.0), (50, 0.053 / 3, 0.75), (75, 0.0, 0.625), (150, 0.0, 0.25)):
        transformation = optimizer(recipe, step)
        updates, _ = transformation.update(gradients, transformation.init(params), params)

        def by_sgd(weight, learning_rate, peak):
            gradient = 2.0 + 0.004 / peak * np.float64(weight)
            return -learning_rate * (gradient + 0.85 * gradient)

        close = lambda found, expected: np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
        close(updates["whitening_bias"], by_sgd(params["whitening_bias"], bias_rate, 0.053))
        norm = lambda tree: tree["group1"]["BatchNorm_0"]["bias"]
        close(norm(updates), by_sgd(norm(params), 0.053 * rate, 0.053))
        close(updates["head"]["kernel"], by_sgd(params["head"]["kernel"], 0.67 * rate, 0.67))
        kernel, update = (tree["group1"]["Convolution_0"]["kernel"] for tree in (params, updates))
        normed = np.float64(kernel) * 2 / np.linalg.norm(kernel)  # the root of 4 filters
        direction = optim.orthogonal(jnp.full_like(kernel, 1.6e-3))
        np.testing.assert_allclose(kernel + update, normed - 0.24 * rate * np.float64(direction), atol=1e-5)


def test_float16_takes_the_gradient_of_the_sum_as_the_peer_does():
    """Of the mean over 256 images and 256 features it would be 3.9% off in the first norm: below 6e-8 lies nothing."""
    inputs = np.random.RandomState(0).normal(size=(256, 8, 8, 3)).astype(np.float32)
    targets = jax.nn.one_hot(jnp.arange(256) % 5, 5)
    gradients = {}
    for dtype in ("float32", "float16"):
        recipe = made.recipe({"data.num_classes": 5, "dtype": dtype}, model=TINY)
        state = made.init(recipe)
        both = jit(functools.partial(made.loss_and_gradients, recipe))
        gradients[dtype] = both(state.params, state.batch_stats, inputs, targets).gradients
    exact, rough = (tree["group1"] for tree in gradients.values())
    distances = jax.tree.map(lambda one, other: np.linalg.norm(one - other) / np.linalg.norm(one), exact, rough)
    assert 1e-4 < max(jax.tree.leaves(distances)) < 0.01


def test_a_whole_run_as_one_program_is_the_run_of_fit():
    data = {"train": made.split(24), "test": made.split(12, seed=1)}
    changes = {"data.validation": 0, "data.train_count": 24, "epochs": 2, "seed": 5}
    recipe = made.recipe(changes, model=TINY)
    sets = [(jnp.asarray(split.images), jnp.asarray(split.labels)) for split in (data["train"], data["test"])]
    state, sums, seen = jit(lambda seed: whole_run(recipe, seed, *sets))(5)
    run = fit(recipe, data=data, progress=False)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.params, run.state.params)
    assert np.trace(seen["confusion"]) == round(run.evaluation.accuracy * 12)
    assert sums["loss_sum"].shape == (2, 3)
    other = jit(lambda seed: whole_run(recipe, seed, *sets))(6)[0]
    assert np.any(other.params["head"]["kernel"] != state.params["head"]["kernel"])
