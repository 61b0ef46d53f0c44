"""One table visits every architecture."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from cifar_jax.errors import InputError
from cifar_jax.models import MODELS, convnet
from cifar_jax.models.counts import counts
from cifar_jax.recipe import parameters
from cifar_jax.runs.devices import jit
from cifar_jax.training import step as train
from cifar_jax.training.losses import cross_entropy
from tests import made

TINY = {  # a member of each kind that compiles on its own, and the parameters that make it small
    "mlp": {"widths": (8, 8)},
    "cnn": {"width": 4, "kernel_size": 3, "hidden": 8},
    "convnet": {"widths": (4, 6), "hidden": 8, "dropout": 0.0},
    "vgg11": {"width": 8, "stages": (1, 1)},
    "vgg11_bn": {"width": 4, "stages": (1, 1)},
    "resnet18": {"width": 4, "stages": (1, 1)},
    "resnet50": {"width": 4, "stages": (1, 1)},
    "resnet20": {"width": 4, "stages": (1, 1)},
    "preactivation_resnet18": {"width": 4, "stages": (1, 1)},
    "wide_resnet16_4": {"width": 2, "widen": 2, "depth": 10},
    "densenet_bc100_12": {"growth": 4, "depth": 10},
    "mobilenet_v2": {"stages": ((1, 8, 1, 2), (2, 8, 2, 2)), "multiplier": 0.5},
    "convmixer256_8": {"width": 8, "depth": 1, "kernel_size": 3},
    "vit": {"width": 16, "depth": 1, "heads": 2},
    "speedrun94": {"widths": (4, 8), "head_scale": 1 / 8},  # over the features, as 1 / 256 is
    "speedrun96": {"widths": (4, 8)},
}
# Parameters, all of them, and multiply-adds in millions with the defaults, for 32x32x3 and 10 classes.
KNOWN = {
    "mlp": ((3072 + 1) * 512 + (512 + 1) * 512 + (512 + 1) * 10, (3072 * 512 + 512 * 512 + 512 * 10) / 1e6),
    "cnn": (
        (5 * 5 * 3 + 1) * 32 + (5 * 5 * 32 + 1) * 64 + (8 * 8 * 64 + 1) * 128 + (128 + 1) * 10,
        (32 * 32 * 75 * 32 + 16 * 16 * 800 * 64 + 4096 * 128 + 1280) / 1e6,
    ),
    "convnet": (
        9 * (3 * 64 + 64 * 64 + 64 * 128 + 128 * 128 + 128 * 256 + 256 * 256) + 2 * 2 * (64 + 128 + 256) + 257 * 10,
        9 * (32**2 * (3 + 64) * 64 + 16**2 * (64 + 128) * 128 + 8**2 * (128 + 256) * 256) / 1e6 + 0.00256,
    ),
    # Simonyan & Zisserman's table 1 with one dense layer; vgg16 has 313.2 M (313.7 with the norms: Lin et al. 2020).
    "vgg11": (9_225_610, 152.8),
    "vgg13": (9_410_122, 228.3),
    "vgg16": (14_719_818, 313.2),
    "vgg19": (20_029_514, 398.1),
    "vgg11_bn": (9_225_610 + 2 * 2752, 152.8),
    "vgg13_bn": (9_410_122 + 2 * 2944, 228.3),
    "vgg16_bn": (14_728_266, 313.2),
    "vgg19_bn": (20_029_514 + 2 * 5504, 398.1),
    # kuangliu/pytorch-cifar; 0.56, 1.16 and 1.30 G.
    "resnet18": (11_173_962, 555.4),
    "resnet34": (21_282_122, 1159.4),
    "resnet50": (23_520_842, 1297.8),
    # He et al. table 6: 0.27, 0.46, 0.66, 0.85 and 1.7 M; 40.6, 125.5 and 252.9 M multiply-adds (Lin et al. 2020).
    "resnet20": (269_722, 40.55),
    "resnet32": (464_154, 68.86),
    "resnet44": (658_586, 97.17),
    "resnet56": (853_018, 125.49),
    "resnet110": (1_727_962, 252.89),
    # kuangliu/pytorch-cifar has 11,171,146, without the norm after the last block.
    "preactivation_resnet18": (11_171_146 + 2 * 512, 555.4),
    # Zagoruyko & Komodakis: 2.7, 11.0 and 36.5 M; 5.2 G multiply-adds.
    "wide_resnet16_4": (2_748_890, 392.6),
    "wide_resnet16_8": (10_961_370, 1548.1),
    "wide_resnet28_10": (36_479_194, 5243.3),
    "densenet_bc100_12": (769_162, 287.9),  # Huang et al. table 2: 0.8 M
    "mobilenet_v2": (2_296_922, 91.15),  # kuangliu/pytorch-cifar
    "convmixer256_8": (  # 0.6 M
        (12 + 1) * 256 + 2 * 256 + 8 * ((25 + 1) * 256 + (256 + 1) * 256 + 4 * 256) + 257 * 10,
        16 * 16 * (12 * 256 + 8 * (25 * 256 + 256 * 256)) / 1e6 + 0.00256,
    ),
    # Lee et al. 2021, table 2: 2.8 M and 189.8 M, with 200 classes and patches of 8x8, whose layers add 0.06 and 1.8 M.
    "vit": (
        (49 + 65 + 1 + 2) * 192 + 9 * (4 * 192 + 3 * 192**2 + 193 * 192 + 193 * 384 + 385 * 192) + 193 * 10,
        (64 * 48 * 192 + 9 * (65 * 8 * 192**2 + 2 * 65**2 * 192) + 1920) / 1e6,
    ),
    "speedrun94": (
        1_971_352,
        0.28 + 12.4 + 8.3 + 28.9 + 28.9 + 21.2 + 5.3,
    ),  # 1.97 M at airbench, with the 288 frozen ones
    "speedrun96": (9_915_416, 414.4),  # 9.9 M
}
OTHER = {  # another value of each field that a recipe may set
    "width": 6,
    "widths": (6, 6),
    "kernel_size": 5,
    "kernel_sizes": (5,),
    "hidden": 12,
    "stages": (1, 2),
    "activation": "tanh",
    "dropout": 0.5,
    "drop_path": 0.5,
    "convolutions": (1,),
    "pooling": "average",
    "normalisation": "group",
    "reduction": "flatten",
    "stem": "imagenet",
    "shortcut": "A",
    "block": "bottleneck",
    "depth": 16,
    "widen": 3,
    "growth": 5,
    "compression": 0.3,
    "multiplier": 0.7,
    "patch_size": 3,
    "heads": 4,
    "expansion": 3,
    "momentum": 0.3,
    "head_std": 0.3,
    "head_scale": 0.5,
    ("vit", "width"): 20,
    ("speedrun94", "depth"): 3,
    ("speedrun96", "depth"): 2,
    ("mobilenet_v2", "stages"): ((1, 8, 1, 1), (3, 8, 2, 2)),
    ("resnet20", "shortcut"): "B",
    ("resnet50", "block"): "basic",
    ("vgg11", "batch_norm"): True,
    ("vgg11", "classifier"): "hidden",
    ("vgg11_bn", "classifier"): "hidden",
    ("vgg11_bn", "batch_norm"): False,
}
SUBTRACTED = {  # biases that the next batch normalisation subtracts again: their gradient is zero
    "vgg11_bn": r"Convolution_\d'\]\['bias",
    "mobilenet_v2": r"bottleneck.*(BatchNorm_2|shortcut_norm)'\]\['bias",  # there is no activation in between
}
every_member = pytest.mark.parametrize("name", MODELS)
every_model = pytest.mark.parametrize("name", TINY)


def other(name, field):
    assert field in OTHER or (name, field) in OTHER, f"give OTHER another value of {field}"
    return OTHER.get((name, field), OTHER.get(field))


def build(name, classes=5, dtype="float32", **fields):
    section = {"name": name, **TINY[name], **fields}
    return train.model(made.recipe({"data.num_classes": classes, "dtype": dtype}, model=section))


def images(batch=4, height=8, width=8, channels=3):
    return np.random.RandomState(0).normal(size=(batch, height, width, channels)).astype(np.float32)


@functools.cache
def initial(name, classes=5):
    """Compiled: key -> the first variables."""
    return jit(lambda key: build(name, classes).init(key, images(), train=False))


@functools.cache
def variables(name, classes=5):
    """With running statistics and biases that are not those of the start."""
    start = initial(name, classes)(jax.random.key(0))
    random = np.random.RandomState(1)
    return jax.tree.map(lambda leaf: leaf + 0.1 * random.uniform(0.5, 1, leaf.shape).astype(np.float32), start)


@functools.cache
def program(name, train, **fields):
    model = build(name, **fields)
    apply = lambda v, x, key: model.apply(v, x, train=train, mutable=["batch_stats"], rngs={"dropout": key})
    return jit(apply, fields.get("dtype", "float32"))


def shapes(name, x, **fields):
    return jax.eval_shape(lambda: build(name, **fields).init_with_output(jax.random.key(0), x, train=False))


@functools.cache
def gradients(name, **fields):
    """Compiled: (variables, images) -> gradient of the loss by every parameter."""
    model, targets = build(name, **fields), jax.nn.one_hot(jnp.arange(4), 5)

    def loss(params, variables, images):
        logits, _ = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        return cross_entropy(logits, targets).mean()

    gradient = lambda variables, images: jax.grad(loss)(variables["params"], variables, images)
    return jit(gradient, fields.get("dtype", "float32"))


@functools.cache
def stated():
    """Model -> (parameters, millions of multiply-adds) as the tables in the docstrings of the models' files say."""
    found = {}
    for file in Path(convnet.__file__).parent.glob("*.py"):
        for name, count, size in re.findall(r"^ *(\w+) +([\d,]{7,}) +([\d,.]+) M$", file.read_text(), re.MULTILINE):
            found[name] = int(count.replace(",", "")), float(size.replace(",", ""))
    return found


@functools.cache
def full_size(name):
    """Parameters and multiply-adds of one 32x32 image, without computing anything."""
    model = train.model(made.recipe({"data.num_classes": 10}, model={"name": name}))
    return counts(model)


def test_every_model_is_in_the_table():
    assert set(KNOWN) == set(MODELS)
    kind = lambda name: getattr(MODELS[name], "func", MODELS[name])
    assert {kind(name) for name in MODELS} == {kind(name) for name in TINY}


@every_member
def test_as_many_parameters_as_the_paper_says(name):
    assert full_size(name)[0] == KNOWN[name][0]


@every_member
def test_as_many_multiply_adds_as_the_paper_says(name):
    assert full_size(name)[1] / 1e6 == pytest.approx(KNOWN[name][1], rel=1e-3)


@every_member
def test_the_docstring_says_as_much(name):
    parameters, multiply_adds = full_size(name)
    assert stated()[name] == (parameters, pytest.approx(multiply_adds / 1e6, abs=0.051))


@every_model
@pytest.mark.parametrize(
    ("size", "channels", "classes"), [((8, 8), 3, 2), ((9, 11), 1, 10), ((15, 8), 3, 10), ((32, 32), 3, 100)]
)
def test_logits_are_float32_one_a_class_for_every_size(name, size, channels, classes):
    logits, _ = shapes(name, np.zeros((3, *size, channels), np.float32), classes=classes)
    assert logits.shape == (3, classes)
    assert logits.dtype == jnp.float32


@every_model
def test_the_smallest_images_reach_the_logits(name):
    """At 8x8 no layer is left without pixels: each image has logits of its own."""
    logits, _ = program(name, train=False)(variables(name), images(), jax.random.key(0))
    assert np.isfinite(logits).all()
    assert len(np.unique(np.asarray(logits), axis=0)) == 4


@every_model
def test_gradients_reach_every_parameter(name):
    for path, leaf in jax.tree.leaves_with_path(gradients(name)(variables(name), images())):
        path = jax.tree_util.keystr(path)
        assert np.isfinite(leaf).all(), path
        subtracted = name in SUBTRACTED and re.search(SUBTRACTED[name], path)
        assert (np.abs(leaf).max() > 1e-6) != bool(subtracted), path


@every_model
def test_evaluation_sees_each_image_alone_and_changes_nothing(name):
    evaluate = program(name, train=False)
    together, changed = evaluate(variables(name), images(), jax.random.key(0))
    made.assert_same(changed.get("batch_stats", {}), variables(name).get("batch_stats", {}))
    others = np.concatenate([images()[:2], 3 * images()[2:] + 1])
    np.testing.assert_array_equal(evaluate(variables(name), others, jax.random.key(0))[0][:2], together[:2])


@every_model
def test_training_differs_from_evaluation_by_batch_statistics_only(name):
    key, statistics = jax.random.key(0), variables(name).get("batch_stats", {})
    evaluated, _ = program(name, train=False)(variables(name), images(), key)
    trained, changed = program(name, train=True)(variables(name), images(), key)
    running = lambda tree: {name: leaves for name, leaves in tree.items() if name != "whitening"}  # it never changes
    if not statistics:
        np.testing.assert_allclose(trained, evaluated, rtol=1e-5, atol=1e-6)
        return
    assert np.abs(trained - evaluated).max() > 1e-3
    for (path, new), old in zip(
        jax.tree.leaves_with_path(running(changed["batch_stats"])), jax.tree.leaves(running(statistics)), strict=True
    ):
        assert np.all(new != old), jax.tree_util.keystr(path)
    moved = {**variables(name), "batch_stats": statistics | jax.tree.map(lambda leaf: 2 * leaf, running(statistics))}
    np.testing.assert_array_equal(program(name, train=True)(moved, images(), key)[0], trained)
    assert np.abs(program(name, train=False)(moved, images(), key)[0] - evaluated).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "field"),
    [(name, field) for name in TINY for field in ("dropout", "drop_path") if field in parameters(MODELS[name])],
)
def test_dropout_is_off_in_evaluation_and_drawn_from_the_key_in_training(name, field):
    keys = jax.random.key(0), jax.random.key(1)
    plain, _ = program(name, train=False)(variables(name), images(), keys[0])
    one, other = (program(name, train=False, **{field: 0.5})(variables(name), images(), key)[0] for key in keys)
    np.testing.assert_array_equal(one, plain)
    np.testing.assert_array_equal(other, plain)
    dropped = program(name, train=True, **{field: 0.5})
    first, again, second = (dropped(variables(name), images(), key)[0] for key in (keys[0], *keys))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != second)


@pytest.mark.parametrize(
    ("name", "block", "beside"),
    [
        ("resnet18", "conv3_1", "shortcut"),
        ("preactivation_resnet18", "conv3_1", "shortcut"),
        ("wide_resnet16_4", "conv4_1", "shortcut"),
        ("vit", "block1", None),
    ],
)
def test_drop_path_drops_the_branch_and_not_the_identity(name, block, beside):
    """In the last block, whose rate is 1 here: what lies before it still learns, and its shortcut; its branch not."""
    model, targets = build(name, drop_path=1.0), jax.nn.one_hot(jnp.arange(4), 5)

    def loss(params):
        given = {**variables(name), "params": params}
        rngs = {"dropout": jax.random.key(0)}
        return cross_entropy(model.apply(given, images(), train=True, mutable=["batch_stats"], rngs=rngs)[0], targets)

    gradients = jit(jax.grad(lambda params: loss(params).mean()))(variables(name)["params"])
    largest = {path: float(np.abs(leaf).max()) for path, leaf in flatten_dict(gradients, sep="/").items()}
    branch = re.compile(rf"{block}/(Convolution_\d|Attention_0|Dense_\d)")
    assert not any(value for path, value in largest.items() if branch.match(path))
    assert sum(bool(branch.match(path)) for path in largest) >= 2
    assert beside is None or largest[f"{block}/{beside}/kernel"] > 1e-6
    assert largest["positions" if name == "vit" else "conv1/kernel"] > 1e-6


@every_model
def test_bfloat16_computes_in_bfloat16_and_keeps_the_rest_in_float32(name):
    logits, start = shapes(name, images(), dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(start)} == {jnp.dtype("float32")}
    assert logits.dtype == jnp.float32
    exact, _ = program(name, train=False)(variables(name), images(), jax.random.key(0))
    rough, _ = program(name, train=False, dtype="bfloat16")(variables(name), images(), jax.random.key(0))
    error = np.abs(rough - exact).max() / np.abs(exact).max()
    assert 1e-5 < error < 0.04
    assert np.any(np.asarray(rough) != rough.astype(jnp.bfloat16)), "logits of 8 bits"
    forward = lambda v, x: build(name, dtype="bfloat16").apply(v, x, train=False)
    lines = str(jax.make_jaxpr(forward)(variables(name), images())).splitlines()
    convolutions = [line for line in lines if "= conv_general_dilated" in line]
    assert convolutions or name == "mlp"
    assert all(":bf16[" in line for line in convolutions)
    products = [line for line in lines if "= dot_general" in line]
    assert len([line for line in products if ":bf16[" not in line]) <= 1 + (
        name == "vit"
    )  # the head, attention's scores


@pytest.mark.parametrize("name", [name for name in TINY if "remat" in parameters(MODELS[name])])
def test_remat_changes_the_program(name):
    traced = [gradients(name, remat=remat).trace(variables(name), images()) for remat in (False, True)]
    marks = [str(program.jaxpr) for program in traced]
    assert ["= checkpoint[" in mark or "= remat2[" in mark for mark in marks] == [False, True]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet_bc100_12", "vit"])
def test_remat_changes_no_number(name):
    once, twice = (gradients(name, remat=remat)(variables(name), images()) for remat in (False, True))
    for (path, expected), actual in zip(jax.tree.leaves_with_path(once), jax.tree.leaves(twice), strict=True):
        tolerance = 1e-4 * np.abs(expected).max() + 1e-7  # rounding alone makes 2e-5 of it in mobilenet_v2
        np.testing.assert_allclose(actual, expected, atol=tolerance, rtol=0, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("convnet", "pooling"),
        ("convnet", "normalisation"),
        ("convnet", "reduction"),
        ("resnet18", "block"),
        ("resnet18", "shortcut"),
        ("resnet18", "stem"),
        ("vgg11", "classifier"),
        ("vit", "pooling"),
        ("mlp", "activation"),
    ],
)
def test_an_unknown_choice_is_answered_with_the_known_ones(name, field):
    with pytest.raises(InputError, match=f"{field} 'strange' is unknown.*Known: "):
        shapes(name, images(), **{field: "strange"})


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("wide_resnet16_4", {"depth": 15}),
        ("densenet_bc100_12", {"depth": 4}),
        ("vit", {"heads": 3}),
        ("convnet", {"convolutions": (1, 2, 2)}),
        ("convnet", {"kernel_sizes": (3, 0)}),
    ],
)
def test_sizes_that_do_not_divide_are_refused(name, changes):
    field = next(iter(changes))
    with pytest.raises(InputError, match=f"model.{field}"):
        shapes(name, images(), **changes)


@pytest.mark.parametrize("pooling", convnet.POOLINGS)
@pytest.mark.parametrize("normalisation", convnet.NORMALISATIONS)
@pytest.mark.parametrize("reduction", convnet.REDUCTIONS)
def test_every_combination_of_a_convnet(pooling, normalisation, reduction):
    """Three stages leave 2x2 of 9x11 pixels; a bias stands wherever batch normalisation does not subtract it."""
    x = np.zeros((2, 9, 11, 3), np.float32)
    fields = {"widths": (4, 4, 4), "pooling": pooling, "normalisation": normalisation, "reduction": reduction}
    logits, start = shapes("convnet", x, **fields)
    assert logits.shape == (2, 5)
    assert start["params"]["Dense_0"]["kernel"].shape[0] == (4 if reduction == "average" else 2 * 2 * 4)
    assert ("bias" in start["params"]["Convolution_0"]) == (normalisation != "batch")


# What no output of one seed tells of: the call gives the first two, rematerialisation changes nothing, and the others,
# of what a speedrun's network starts from, are tested in test_speedrun.
FIXED = ("num_classes", "dtype", "remat", "head_std", "whitening_bias", "whitening_images")


def fields():
    return [(name, field) for name in TINY for field in parameters(MODELS[name]) if field not in FIXED]


@pytest.mark.parametrize(("name", "field"), fields())
def test_every_field_changes_the_model(name, field):
    _, before = shapes(name, images())
    _, after = shapes(name, images(), **{field: other(name, field)})
    if [leaf.shape for leaf in jax.tree.leaves(before)] != [leaf.shape for leaf in jax.tree.leaves(after)]:
        return
    outputs = [
        program(name, train=True, **changes)(variables(name), images(), jax.random.key(0))
        for changes in ({}, {field: other(name, field)})
    ]
    distances = jax.tree.map(lambda one, two: np.abs(one - two).max(), *outputs)
    assert max(jax.tree.leaves(distances)) > 1e-3


@every_model
def test_weights_come_from_the_key(name):
    start = lambda key: initial(name)(key)["params"]
    made.assert_same(start(jax.random.key(0)), start(jax.random.key(0)))
    drawn = [jax.tree.leaves(jax.device_get(start(jax.random.key(seed)))) for seed in (0, 1)]
    kernels = [(one, other) for one, other in zip(*drawn, strict=True) if one.ndim > 1]
    assert kernels
    # Zeros and ones are the speedruns' identities.
    assert all(np.all((one != other) | (one == 0) | (one == 1)) for one, other in kernels)
    assert any(np.any(one != other) for one, other in kernels)
