"""Every architecture in evaluation against its paper's figure, written in NumPy in float64; where its weights start."""

from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax.runs.devices import jit
from tests.models.test_models import TINY, build, images, program, variables


def convolve(x, params, stride=1, pad=None):
    """x [B, H, W, C] by kernel [k, k, C, O], or [k, k, 1, C] for each channel on its own; zeros around."""
    kernel, size = np.float64(params["kernel"]), len(params["kernel"])
    pad = size // 2 if pad is None else pad
    x = np.pad(x, [(0, 0), (pad, pad), (pad, pad), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))[:, ::stride, ::stride]
    own = kernel.shape[2] == 1 and x.shape[-1] > 1
    sums = np.einsum("bhwcij,ijc->bhwc" if own else "bhwcij,ijco->bhwo", windows, kernel[:, :, 0] if own else kernel)
    return sums + params.get("bias", 0)


def dense(x, params):
    return x @ np.float64(params["kernel"]) + params.get("bias", 0)


def relu(x):
    return np.maximum(x, 0)


def gelu(x):
    return x * np.vectorize(NormalDist().cdf)(x)


def norm(x, params, statistics, epsilon=1e-5):
    deviation = np.sqrt(np.float64(statistics["var"]) + epsilon)
    return (x - statistics["mean"]) / deviation * params["scale"] + params["bias"]


def layer_norm(x, params):
    deviation = np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return (x - x.mean(-1, keepdims=True)) / deviation * params["scale"] + params["bias"]


def norms(params, statistics):
    return lambda name, x: norm(x, params[name], statistics[name])


def head(x, params):
    return dense(x.mean((1, 2)), params["head"])


def pool(x, reduce, beyond=-np.inf):
    """2x2; at a border of odd size the window is cut: `beyond` lies there."""
    x = np.pad(x, [(0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)], constant_values=beyond)
    return reduce(reduce(x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1), axis=4), axis=2)


def mlp(p, s, x):
    x = x.reshape(len(x), -1)
    for number in range(2):
        x = relu(dense(x, p[f"Dense_{number}"]))
    return dense(x, p["head"])


def cnn(p, s, x):
    """LeNet's order: convolution, ReLU, max-pooling; twice, and two dense layers on all pixels."""
    for number in range(2):
        x = pool(relu(convolve(x, p[f"Convolution_{number}"])), np.max)
    return dense(relu(dense(x.reshape(len(x), -1), p["Dense_0"])), p["head"])


def group_norm(x, params):
    """Wu & He 2018: an image's channels in as many equal groups as the greatest common divisor with 32."""
    groups = x.reshape(*x.shape[:3], int(np.gcd(32, x.shape[-1])), -1)
    deviation = np.sqrt(groups.var((1, 2, 4), keepdims=True) + 1e-6)
    x = ((groups - groups.mean((1, 2, 4), keepdims=True)) / deviation).reshape(x.shape)
    return x * params["scale"] + params["bias"]


def convnet(p, s, x, pooling="max", normalisation="batch", pixels="average"):
    """(Convolution, norm, ReLU) twice and pooling, two stages; a hidden layer."""
    normed = {
        "none": lambda number, x: x,
        "batch": lambda number, x: norms(p, s)(f"BatchNorm_{number}", x),
        "layer": lambda number, x: layer_norm(x, p[f"LayerNorm_{number}"]),
        "group": lambda number, x: group_norm(x, p[f"GroupNorm_{number}"]),
    }[normalisation]
    pooled = {
        "max": lambda x: pool(x, np.max),
        "average": lambda x: pool(x, np.mean, beyond=0),
        "strided": lambda x: x,
    }[pooling]
    for number in range(4):
        stride = 2 if pooling == "strided" and number % 2 else 1
        x = relu(normed(number, convolve(x, p[f"Convolution_{number}"], stride)))
        x = pooled(x) if number % 2 else x
    x = x.mean((1, 2)) if pixels == "average" else x.reshape(len(x), -1)
    return dense(relu(dense(x, p["Dense_0"])), p["head"])


def vgg(p, s, x):
    """Simonyan & Zisserman: convolution, (norm,) ReLU; max-pooling."""
    for number in range(2):
        x = convolve(x, p[f"Convolution_{number}"])
        x = norms(p, s)(f"BatchNorm_{number}", x) if s else x
        x = pool(relu(x), np.max)
    return head(x, p)


def residual(p, s, x, stride):
    """He et al. 2015, figure 2 and 5: ReLU after the sum; option B, or A: zeros for the new channels."""
    n, y = norms(p, s), x
    last = max(int(name[-1]) for name in p if name.startswith("Convolution"))
    for number in range(last + 1):
        strides = stride if number == last - 1 else 1  # of two the first, of three the middle one
        y = n(f"BatchNorm_{number}", convolve(y, p[f"Convolution_{number}"], strides))
        y = relu(y) if number < last else y
    if "shortcut" in p:
        x = n("shortcut_norm", convolve(x, p["shortcut"], stride))
    elif x.shape != y.shape:
        x = np.pad(x[:, ::stride, ::stride], [(0, 0), (0, 0), (0, 0), (0, y.shape[-1] - x.shape[-1])])
    return relu(x + y)


def resnet(p, s, x):
    x = relu(norms(p, s)("conv1_norm", convolve(x, p["conv1"])))
    for name, stride in (("conv2_1", 1), ("conv3_1", 2)):
        x = residual(p[name], s[name], x, stride)
    return head(x, p)


def preactivated(p, s, x, stride, shared):
    """He et al. 2016, figure 1b; `shared`: both paths start from the activated input."""
    n = norms(p, s)
    y = relu(n("BatchNorm_0", x))
    x = y if shared else x
    x = convolve(x, p["shortcut"], stride) if "shortcut" in p else x
    y = relu(n("BatchNorm_1", convolve(y, p["Convolution_0"], stride)))
    return x + convolve(y, p["Convolution_1"])


def preactivation(p, s, x):
    """Appendix: the first activation is adopted right after conv1, before the two paths part, and not again."""
    x = convolve(x, p["conv1"])
    x = preactivated(p["conv2_1"], s["conv2_1"], x, 1, shared=True)
    x = preactivated(p["conv3_1"], s["conv3_1"], x, 2, shared=True)
    return head(relu(norms(p, s)("last_norm", x)), p)


def wide_resnet(p, s, x):
    x = convolve(x, p["conv1"])
    for group in (2, 3, 4):
        name = f"conv{group}_1"
        x = preactivated(p[name], s[name], x, 1 + (group > 2), shared="shortcut" in p[name])
    return head(relu(norms(p, s)("last_norm", x)), p)


def densenet(p, s, x):
    n, x = norms(p, s), convolve(x, p["conv"])
    for block in (1, 2, 3):
        own, statistics = p[f"block{block}_1"], norms(p[f"block{block}_1"], s[f"block{block}_1"])
        y = convolve(relu(statistics("BatchNorm_0", x)), own["Convolution_0"])
        y = convolve(relu(statistics("BatchNorm_1", y)), own["Convolution_1"])
        x = np.concatenate([x, y], -1)
        if block < 3:
            x = convolve(relu(n(f"transition{block}_norm", x)), p[f"transition{block}"])
            x = pool(x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2], np.mean)
    return head(relu(n("last_norm", x)), p)


def mobilenet(p, s, x):
    """Sandler et al., figure 4d: no activation after the last convolution of a block; a shortcut where stride is 1."""
    relu6, n = lambda x: np.clip(x, 0, 6), norms(p, s)
    x = relu6(n("first_norm", convolve(x, p["first"])))
    for name, stride in (("bottleneck1_1", 2), ("bottleneck2_1", 2), ("bottleneck2_2", 1)):
        own, statistics = p[name], norms(p[name], s[name])
        y = relu6(statistics("BatchNorm_0", convolve(x, own["Convolution_0"])))
        y = relu6(statistics("BatchNorm_1", convolve(y, own["DepthwiseConvolution_0"], stride)))
        y = statistics("BatchNorm_2", convolve(y, own["Convolution_1"]))
        if stride == 1:
            y += statistics("shortcut_norm", convolve(x, own["shortcut"])) if "shortcut" in own else x
        x = y
    return head(relu6(n("last_norm", convolve(x, p["last"]))), p)


def convmixer(p, s, x):
    own, n = p["block1"], norms(p["block1"], s["block1"])
    x = norms(p, s)("patches_norm", gelu(convolve(x, p["patches"], 2, 0)))
    x = x + n("BatchNorm_0", gelu(convolve(x, own["DepthwiseConvolution_0"])))
    return head(n("BatchNorm_1", gelu(convolve(x, own["Convolution_0"]))), p)


def vit(p, s, x):
    """Dosovitskiy et al., equations 1 to 4, with the class token."""
    own = p["block1"]
    tokens = convolve(x, p["patches"], 4, 0).reshape(len(x), -1, 16)
    tokens = np.concatenate([np.tile(p["token"], (len(x), 1, 1)), tokens], 1) + p["positions"]
    seen = layer_norm(tokens, own["LayerNorm_0"])
    split = lambda name: dense(seen, own["Attention_0"][name]).reshape(len(x), -1, 2, 8)
    scores = np.einsum("bqhd,bkhd->bhqk", split("queries"), split("keys")) / np.sqrt(8)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    mixed = np.einsum("bhqk,bkhd->bqhd", weights, split("values")).reshape(len(x), -1, 16)
    tokens = tokens + dense(mixed, own["Attention_0"]["out"])
    hidden = gelu(dense(layer_norm(tokens, own["LayerNorm_1"]), own["Dense_0"]))
    tokens = tokens + dense(hidden, own["Dense_1"])
    return dense(layer_norm(tokens, p["last_norm"])[:, 0], p["head"])


def speedrun(p, s, x):
    """Jordan's network as its authors compute it: every row of every convolution, pooled without the odd ones."""
    activate = lambda name, own, x: gelu(norm(x, {"scale": 1, **p[name][own]}, s[name][own], 1e-12))
    x = gelu(convolve(x, {"kernel": s["whitening"], "bias": p["whitening_bias"]}, pad=0))
    for name in [name for name in p if name.startswith("group")]:
        y = convolve(x, p[name]["Convolution_0"])
        y = pool(y[:, : y.shape[1] // 2 * 2, : y.shape[2] // 2 * 2], np.max)
        x = first = activate(name, "BatchNorm_0", y)
        x = convolve(x, p[name]["Convolution_1"])
        if "Convolution_2" not in p[name]:
            x = activate(name, "BatchNorm_1", x)
            continue
        x = convolve(activate(name, "BatchNorm_1", x), p[name]["Convolution_2"])
        x = gelu(norm(x, {"scale": 1, **p[name]["BatchNorm_2"]}, s[name]["BatchNorm_2"], 1e-12) + first)
    return x.max((1, 2)) @ p["head"]["kernel"]


PAPERS = {  # and the size of the images
    "mlp": (mlp, 8),
    "cnn": (cnn, 8),
    "convnet": (convnet, 9),
    "vgg11": (vgg, 9),
    "vgg11_bn": (vgg, 9),
    "resnet18": (resnet, 9),  # of odd size: even ones are padded at one side only
    "resnet50": (resnet, 9),
    "resnet20": (resnet, 9),
    "preactivation_resnet18": (preactivation, 8),
    "wide_resnet16_4": (wide_resnet, 8),
    "densenet_bc100_12": (densenet, 8),
    "mobilenet_v2": (mobilenet, 8),
    "convmixer256_8": (convmixer, 8),
    "vit": (vit, 8),
    "speedrun94": (lambda *given: speedrun(*given) / 8, 16),  # 15 rows after the whitening, 7 and 3 after the pools
    "speedrun96": (lambda *given: speedrun(*given) / 9, 18),  # 17, 8, 4
}


@pytest.mark.parametrize("name", PAPERS)
def test_evaluation_is_the_papers_figure(name):
    reference, size = PAPERS[name]
    start, batch = variables(name), images(3, size, size)
    logits, _ = program(name, train=False)(start, batch, jax.random.key(0))
    as_float64 = jax.tree.map(np.float64, start)
    expected = reference(as_float64["params"], as_float64.get("batch_stats", {}), np.float64(batch))
    np.testing.assert_allclose(logits, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("pooling", "normalisation", "pixels"),
    [("average", "none", "average"), ("strided", "layer", "flatten"), ("max", "group", "flatten")],
)
def test_a_convnets_fields_are_numpys(pooling, normalisation, pixels):
    """Each choice once; test_evaluation_is_the_papers_figure has the others."""
    model = build("convnet", pooling=pooling, normalisation=normalisation, reduction=pixels)
    batch = images(3, 9, 9)
    start = jit(lambda x: model.init(jax.random.key(0), x, train=False))(batch)
    random = np.random.RandomState(1)
    start = jax.tree.map(lambda leaf: leaf + 0.1 * random.uniform(0.5, 1, leaf.shape).astype(np.float32), start)
    logits = jit(lambda v, x: model.apply(v, x, train=False))(start, batch)
    params = jax.tree.map(np.float64, start)["params"]
    expected = convnet(params, {}, np.float64(batch), pooling, normalisation, pixels)
    np.testing.assert_allclose(logits, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", [name for name in TINY if name not in ("mlp", "cnn", "vgg11", "vit")])
def test_running_statistics_keep_the_share_that_the_model_says(name):
    """Two forward passes over one batch end as far apart as they began, times that share."""
    start, share = variables(name), {"speedrun94": 0.6}.get(name, 0.9)
    train = lambda v: program(name, train=True)(v, images(), jax.random.key(0))[1]["batch_stats"]
    fixed = {"whitening": start["batch_stats"].get("whitening")}
    moved = jax.tree.map(lambda leaf: leaf + 1, start["batch_stats"])
    away = {**start, "batch_stats": {name: fixed.get(name, leaves) for name, leaves in moved.items()}}
    apart = jax.tree.map(lambda one, other: other - one, train(start), train(away))
    apart.pop("whitening", None)
    for path, leaf in jax.tree.leaves_with_path(apart):
        np.testing.assert_allclose(leaf, share, rtol=1e-3, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(
    ("name", "path", "fields", "variance"),
    [
        ("vgg11", "Convolution_0", {"width": 64}, 2 / 27),
        ("resnet18", "conv1", {"width": 64}, 2 / (9 * 64)),
        ("wide_resnet16_4", "conv1", {"width": 64}, 2 / (9 * 64)),
        ("densenet_bc100_12", "conv", {"growth": 32}, 2 / (9 * 64)),
        ("mobilenet_v2", "first", {"multiplier": 2.0}, 2 / (9 * 64)),
        ("convmixer256_8", "patches", {"width": 64}, 2 / 12),
        ("convmixer256_8", "block1/DepthwiseConvolution_0", {"width": 64}, 2 / 9),
        ("vit", "patches", {"width": 64}, 1 / 48),
        ("vit", "block1/Dense_0", {"width": 64}, 2 / (64 + 128)),
    ],
)
def test_weights_start_with_the_variance_of_their_fans(name, path, fields, variance):
    """Fan out where a norm follows a convolution, which takes any size; fan in where an activation comes first, and
    for a transformer's tokens, which nothing rescales before they meet their positions."""
    model = build(name, **fields)
    leaf = jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)["params"])()
    for part in path.split("/"):
        leaf = leaf[part]
    assert np.var(leaf["kernel"]) == pytest.approx(variance, rel=0.15)
