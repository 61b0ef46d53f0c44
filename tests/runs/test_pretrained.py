"""Starting weights. Files are written here, name by name, and the logits they should give are computed in NumPy."""

import functools
import re
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import optax
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from safetensors.numpy import save_file

import cifar_jax as cj
from cifar_jax import cli, training
from cifar_jax.runs import pretrained
from cifar_jax.runs.devices import jit
from tests import made

RANDOM = functools.partial(np.random.RandomState, 0)
IMAGES = RANDOM().normal(size=(3, 8, 8, 3)).astype(np.float32)
DATA = {name: made.split(seed=seed) for seed, name in enumerate(("train", "test"))}
FROZEN, SLOW = (
    cli.parse_field(flag.replace('"', ""))[1]
    for flag in re.findall(
        r"^--config\.groups=.*", Path(cli.__file__).parents[1].joinpath("README.md").read_text(), re.M
    )
)


class Written:
    """The tensors of a file, drawn in the order of their names' first use."""

    def __init__(self):
        self.random, self.tensors = RANDOM(), {}

    def layer(self, name, *shape, bias=True):
        scale = (2 / np.prod(shape[1:])) ** 0.5
        self.tensors[f"{name}.weight"] = (scale * self.random.normal(size=shape)).astype(np.float32)
        if bias:
            self.tensors[f"{name}.bias"] = self.random.normal(size=shape[:1]).astype(np.float32) / 10

    def norm(self, name, channels):
        for field, least in (("weight", 0.5), ("bias", -0.5), ("running_mean", -0.5), ("running_var", 0.5)):
            self.tensors[f"{name}.{field}"] = self.random.uniform(least, least + 1, channels).astype(np.float32)
        self.tensors[f"{name}.num_batches_tracked"] = np.array(7)


def resnet(stages=(1, 2), width=4, bottleneck=False, stem=7, classes=4):
    """torchvision.models.resnet.ResNet's state, which timm's is too; `classes` 0 is timm's without a head."""
    file, channels = Written(), width
    file.layer("conv1", width, 3, stem, stem, bias=False)
    file.norm("bn1", width)
    for stage, blocks in enumerate(stages):
        inner = width * 2**stage
        outer = 4 * inner if bottleneck else inner
        kernels = [(inner, 1), (inner, 3), (outer, 1)] if bottleneck else [(inner, 3), (inner, 3)]
        for block in range(blocks):
            name, into = f"layer{stage + 1}.{block}", channels
            for number, (out, size) in enumerate(kernels, start=1):
                file.layer(f"{name}.conv{number}", out, into, size, size, bias=False)
                file.norm(f"{name}.bn{number}", out)
                into = out
            if channels != outer:
                file.layer(f"{name}.downsample.0", outer, channels, 1, 1, bias=False)
                file.norm(f"{name}.downsample.1", outer)
            channels = outer
    if classes:
        file.layer("fc", classes, channels)
    return file.tensors


def vgg(stages=(1, 2), width=2, batch_norm=False, timm=False, classes=4):
    """torchvision.models.vgg.VGG's state, or timm's."""
    file, channels, position = Written(), 3, 0
    for stage, convolutions in enumerate(stages):
        for _ in range(convolutions):
            file.layer(f"features.{position}", width * 2**stage, channels, 3, 3)
            channels = width * 2**stage
            if batch_norm:
                file.norm(f"features.{position + 1}", channels)
            position += 3 if batch_norm else 2
        position += 1
    hidden = 64 * width
    if timm:
        file.layer("pre_logits.fc1", hidden, channels, 7, 7)
        file.layer("pre_logits.fc2", hidden, hidden, 1, 1)
        file.layer("head.fc", classes, hidden)
    else:
        file.layer("classifier.0", hidden, channels * 49)
        file.layer("classifier.3", hidden, hidden)
        file.layer("classifier.6", classes, hidden)
    return file.tensors


def windows(x, size, stride, padding, value=0.0):
    x = np.pad(x, [(0, 0), (0, 0), (padding, padding), (padding, padding)], constant_values=value)
    return sliding_window_view(x, (size, size), (2, 3))[:, :, ::stride, ::stride]


def convolve(tensors, name, x, stride=1):
    weight = tensors[f"{name}.weight"]
    seen = windows(x, weight.shape[-1], stride, weight.shape[-1] // 2)
    bias = tensors.get(f"{name}.bias", np.zeros(len(weight)))
    return np.einsum("bchwij,ocij->bohw", seen, weight) + bias[:, None, None]


def normalise(tensors, name, x):
    weight, bias, mean, var = (
        tensors[f"{name}.{field}"][:, None, None] for field in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / np.sqrt(var + 1e-5) * weight + bias


def linear(tensors, name, x):
    return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]


def relu(x):
    return np.maximum(x, 0)


def resnet_logits(tensors, images):
    """torchvision.models.resnet.ResNet.forward on images [B, H, W, 3]; with a 3x3 stem without stride and pooling."""
    imagenet = tensors["conv1.weight"].shape[-1] == 7
    x = relu(normalise(tensors, "bn1", convolve(tensors, "conv1", images.transpose(0, 3, 1, 2), 2 if imagenet else 1)))
    if imagenet:
        x = windows(x, 3, 2, 1, -np.inf).max((-1, -2))
    for block in sorted({re.match(r"layer\d\.\d", name)[0] for name in tensors if name.startswith("layer")}):
        stride = 2 if block[5] > "1" and block[-1] == "0" else 1
        layers = [number for number in (1, 2, 3) if f"{block}.conv{number}.weight" in tensors]
        y = x
        for number in layers:
            strided = tensors[f"{block}.conv{number}.weight"].shape[-1] == 3 and number == layers[-2]
            y = convolve(tensors, f"{block}.conv{number}", y, stride if strided else 1)
            y = normalise(tensors, f"{block}.bn{number}", y)
            y = y if number == layers[-1] else relu(y)
        if f"{block}.downsample.0.weight" in tensors:
            x = normalise(tensors, f"{block}.downsample.1", convolve(tensors, f"{block}.downsample.0", x, stride))
        x = relu(x + y)
    return linear(tensors, "fc", x.mean((2, 3)))


def seven(x, axis):
    """AdaptiveAvgPool2d's windows along one axis."""
    size = x.shape[axis]
    spans = [range(int(np.floor(i * size / 7)), int(np.ceil((i + 1) * size / 7))) for i in range(7)]
    return np.stack([x.take(span, axis).mean(axis) for span in spans], axis)


def vgg_logits(tensors, images, stages):
    """torchvision.models.vgg.VGG.forward; timm's layers have the same numbers in other shapes."""
    x, position = images.transpose(0, 3, 1, 2), 0
    batch_norm = "features.1.weight" in tensors
    for convolutions in stages:
        for _ in range(convolutions):
            x = convolve(tensors, f"features.{position}", x)
            x = relu(normalise(tensors, f"features.{position + 1}", x) if batch_norm else x)
            position += 3 if batch_norm else 2
        x, position = windows(x, 2, 2, 0).max((-1, -2)), position + 1
    x = seven(seven(x, 2), 3).reshape(len(x), -1)
    timm = "head.fc.weight" in tensors
    names = ("pre_logits.fc1", "pre_logits.fc2", "head.fc") if timm else [f"classifier.{n}" for n in (0, 3, 6)]
    flat = {name: tensor.reshape(len(tensor), -1) if tensor.ndim > 1 else tensor for name, tensor in tensors.items()}
    return linear(flat, names[2], relu(linear(flat, names[1], relu(linear(flat, names[0], x)))))


RESNET = {"name": "resnet18", "stages": (1, 2), "width": 4, "stem": "imagenet"}
MODELS = {  # tensors, our model, the logits that PyTorch gives
    "resnet, ImageNet stem": (resnet(), RESNET, resnet_logits),
    "resnet, CIFAR stem": (resnet(stem=3), {"name": "resnet18", "stages": (1, 2), "width": 4}, resnet_logits),
    "bottlenecks": (
        resnet((1, 1), bottleneck=True, stem=3),
        {"name": "resnet50", "stages": (1, 1), "width": 4},
        resnet_logits,
    ),
    **{
        f"{library}'s vgg{'_bn' * batch_norm}": (
            vgg(batch_norm=batch_norm, timm=library == "timm"),
            {"name": f"vgg11{'_bn' * batch_norm}", "stages": (1, 2), "width": 2, "classifier": "hidden"},
            functools.partial(vgg_logits, stages=(1, 2)),
        )
        for library in ("torchvision", "timm")
        for batch_norm in (False, True)
    },
}  # fmt: skip
VGG = MODELS["torchvision's vgg_bn"][1]


def start(file, model=RESNET, **changes):
    recipe = made.recipe(model=model, init_from=str(file), **changes)
    return recipe, pretrained.first_state(recipe, {}, jax.eval_shape(lambda: training.init(recipe)))


def write(folder, tensors):
    save_file(tensors, folder / "weights.safetensors")
    return folder / "weights.safetensors"


@pytest.mark.parametrize(("tensors", "model", "expected"), MODELS.values(), ids=MODELS)
def test_a_file_gives_the_logits_of_its_layout(tensors, model, expected, tmp_path):
    recipe, state = start(write(tmp_path, tensors), model)
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.batch_stats))} == {np.dtype("float32")}
    assert sum(leaf.size for leaf in jax.tree.leaves((state.params, state.batch_stats))) == sum(
        tensor.size for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")
    )
    apply = jit(lambda variables, images: training.model(recipe).apply(variables, images, train=False))
    logits = apply({"params": state.params, "batch_stats": state.batch_stats}, IMAGES)
    np.testing.assert_allclose(logits, expected(tensors, IMAGES), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_floats_load_as_float32(dtype, tmp_path):
    tensors = {name: tensor.astype(dtype) if tensor.ndim else tensor for name, tensor in resnet().items()}
    _, state = start(write(tmp_path, tensors))
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.batch_stats))} == {np.dtype("float32")}
    expected = tensors["conv1.weight"].astype(np.float32).transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(state.params["conv1"]["kernel"], expected)


HEADS = {  # what the file holds, our model, what the warning says
    "resnet": (resnet(classes=10), RESNET, "the file's is of 10 classes, the data's of 4"),
    "none": (resnet(classes=0), RESNET, "the file has none"),
    "torchvision's vgg": (vgg(batch_norm=True, classes=10), VGG, "the file's is of 10 classes"),
    "timm's vgg": (
        vgg(timm=True, classes=10),
        {**MODELS["timm's vgg"][1], "classifier": "average"},
        "model.classifier=hidden keeps its hidden layers",
    ),
}


@pytest.mark.parametrize(("tensors", "model", "told"), HEADS.values(), ids=HEADS)
def test_a_head_of_other_classes_starts_afresh_and_says_so(tensors, model, told, tmp_path):
    file = write(tmp_path, tensors)
    recipe = made.recipe({"average.decay": 0.9}, model=model, init_from=str(file))
    drawn = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(lambda: training.init(recipe)))
    with pytest.warns(UserWarning, match=f"the head starts afresh, .*{told}"):
        state = pretrained.first_state(recipe, {}, drawn)
    assert all(not np.any(leaf) for leaf in state.params["head"].values())
    assert all(np.any(leaf) for path, leaf in jax.tree.leaves_with_path(state.params) if path[0].key != "head")
    assert state.average == {"params": state.params, "batch_stats": state.batch_stats}


def damaged(tensors, drop=(), **more):
    return {name: tensor for name, tensor in tensors.items() if name not in drop} | more


SHORT = {"layer1.0.bn1.weight": np.ones(5, np.float32)}
FAULTS = {  # tensors, model, what the sentence says
    "missing": (damaged(resnet(), ["layer2.1.conv2.weight"]), RESNET, "it lacks 'layer2.1.conv2.weight' [8, 8, 3, 3]"),
    "missing statistic": (damaged(resnet(), ["bn1.running_var"]), RESNET, "it lacks 'bn1.running_var' [4]"),
    "half a head": (damaged(resnet(), ["fc.bias"]), RESNET, "it lacks 'fc.bias' [4]"),
    "the other half": (damaged(resnet(), ["fc.weight"]), RESNET, "it has 'fc.bias', but no matrix 'fc.weight'"),
    "half a head of other classes": (damaged(resnet(classes=9), ["fc.bias"]), RESNET, "it lacks 'fc.bias' [9]"),
    "additional": (resnet((1, 3)), RESNET, "it has 'layer2.2.bn1.bias' [8], for which the model has no place"),
    "additional counter": (
        damaged(resnet(), **{"x.num_batches_tracked": np.array(1)}),
        RESNET,
        "it has 'x.num_batches_tracked' []",
    ),
    "shape": (damaged(resnet(), **SHORT), RESNET, "'layer1.0.bn1.weight' is [5], not [4]"),
    "head of other features": (resnet(classes=9) | {"fc.weight": np.ones((9, 3), np.float32)}, RESNET, "is [9, 3]"),
    "ImageNet stem": (
        resnet(),
        {**RESNET, "stem": "cifar"},
        "'conv1.weight' is [4, 3, 7, 7], not [4, 3, 3, 3]; set model.stem=imagenet",
    ),
    "CIFAR stem": (resnet(stem=3), RESNET, "'conv1.weight' is [4, 3, 3, 3], not [4, 3, 7, 7]; set model.stem=cifar"),
    "grey images": (
        damaged(resnet(stem=3), **{"conv1.weight": np.ones((4, 1, 3, 3), np.float32)}),
        {**RESNET, "stem": "cifar"},
        "'conv1.weight' is [4, 1, 3, 3], not [4, 3, 3, 3]",
    ),
    "integers": (damaged(resnet(), **{"fc.bias": np.ones(4, np.int32)}), RESNET, "'fc.bias' is int32; weights are"),
    "hidden layers": (
        vgg(batch_norm=True),
        {**VGG, "classifier": "average"},
        "has hidden layers ('classifier.0.bias'); set model.classifier=hidden",
    ),
    "another architecture": (vgg(), RESNET, "it lacks 'conv1.weight' [4, 3, 7, 7]"),
    "a model without a layout": (resnet(), {"name": "cnn", "width": 4}, "is of no use to model 'cnn'"),
}


def refused(file, model=RESNET):
    with pytest.raises(cj.InputError) as error:
        start(file, model)
    assert "\n" not in str(error.value)
    assert f"init_from '{file}'" in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("tensors", "model", "expected"), FAULTS.values(), ids=FAULTS)
def test_every_tensor_is_accounted_for(tensors, model, expected, tmp_path):
    line = refused(write(tmp_path, tensors), model)
    assert expected in line
    assert line.endswith(expected) or "set model." not in line


def test_what_is_no_file_of_tensors_is_refused(tmp_path):
    assert "is not a file" in refused(tmp_path / "absent.safetensors")
    (tmp_path / "strange.safetensors").write_bytes(b"no tensors" * 20)
    assert "cannot be read as safetensors" in refused(tmp_path / "strange.safetensors")
    whole = write(tmp_path, resnet())
    (tmp_path / "cut.safetensors").write_bytes(whole.read_bytes()[:-8])
    assert "cannot be read as safetensors" in refused(tmp_path / "cut.safetensors")
    (tmp_path / "weights.npz").write_bytes(b"")
    assert "neither the workdir of a run nor a .safetensors file" in refused(tmp_path / "weights.npz")


@pytest.mark.parametrize("name", ["resnet18.pth", "resnet18.pt", "pytorch_model.bin"])
def test_pickles_are_refused_unread(name, tmp_path):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch read'\ntR.")
    line = refused(tmp_path / name)
    assert "is a pickle by its name" in line
    assert "safetensors.torch.save_file" in line


def test_the_missing_library_is_named(tmp_path, monkeypatch):
    file = write(tmp_path, resnet())
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert "pip install -c constraints.txt -e '.[pretrained]'" in refused(file)


def test_a_file_that_does_not_fit_writes_nothing(tmp_path):
    recipe = made.recipe(model=RESNET, init_from=str(write(tmp_path, damaged(resnet(), **SHORT))))
    with pytest.raises(cj.InputError, match=r"is \[5\], not \[4\]"):
        cj.fit(recipe, tmp_path / "run", data=DATA, progress=False)
    assert not (tmp_path / "run").exists()


SMALL = {  # tensors of a file, our model
    "resnet": (resnet((1,), stem=3), {"name": "resnet18", "stages": (1,), "width": 4}),
    "vgg": (
        vgg((1,), batch_norm=True),
        {"name": "vgg11_bn", "stages": (1,), "width": 2, "classifier": "hidden"},
    ),
}


@pytest.mark.parametrize(("tensors", "model"), SMALL.values(), ids=SMALL)
def test_a_frozen_body_stays_bit_for_bit(tensors, model, tmp_path):
    """Started from a file, and from the run that was. Batch statistics follow the images."""
    short = {"model": model, "epochs": 1, "batch_size": 16}
    file = write(tmp_path, tensors)
    _, given = start(file, model)
    first = cj.fit(
        made.recipe(init_from=str(file), groups=FROZEN, **short), tmp_path / "run", data=DATA, progress=False
    )
    again = made.recipe(init_from=str(tmp_path / "run"), groups=FROZEN, **short)
    second = cj.fit(again, data=DATA, progress=False)
    for before, after in ((given, first.state), (first.state, second.state)):
        body = given.params.keys() - {"head"}
        made.assert_same(*({name: state.params[name] for name in body} for state in (before, after)))
        for leaves in zip(*(jax.tree.leaves(state.params["head"]) for state in (before, after)), strict=True):
            assert np.any(leaves[0] != leaves[1])
        for leaves in zip(*(jax.tree.leaves(state.batch_stats) for state in (before, after)), strict=True):
            assert np.any(leaves[0] != leaves[1])


def test_an_optimizer_that_keeps_the_weights_it_starts_from_starts_from_the_given_ones(tmp_path):
    def towards_its_start(learning_rate):
        pull = lambda gradients, state, params: (jax.tree.map(lambda a, b: a - b, state, params), state)
        return optax.GradientTransformation(lambda params: params, pull)

    first = cj.fit(made.recipe(epochs=1), tmp_path, data=DATA, progress=False)
    recipe = made.recipe(
        {"init_from": str(tmp_path), "epochs": 1}, optimizer={"name": towards_its_start, "learning_rate": 0}
    )
    made.assert_same(cj.fit(recipe, data=DATA, progress=False).state.params, first.state.params)


@pytest.mark.parametrize(("tensors", "model"), SMALL.values(), ids=SMALL)
def test_a_slow_body_takes_a_tenth_of_the_step(tensors, model, tmp_path):
    file, moves = write(tmp_path, tensors), []
    for groups in ((), SLOW):
        recipe, given = start(file, model, groups=groups)
        state = pretrained.first_state(recipe, {}, made.init(recipe))
        after, _ = made.step(recipe)(state, DATA["train"].images[:8], DATA["train"].labels[:8])
        moves.append(jax.tree.map(np.subtract, after.params, given.params))
    for path, fast in jax.tree.leaves_with_path(moves[0]):
        slow = functools.reduce(lambda tree, part: tree[part.key], path, moves[1])
        factor = 1 if path[0].key == "head" else 0.1
        np.testing.assert_allclose(slow, factor * fast, rtol=2e-2, atol=2e-7, err_msg=jax.tree_util.keystr(path))
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(moves[1])) > 1e-3
