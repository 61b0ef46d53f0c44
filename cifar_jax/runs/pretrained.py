"""Starting weights: those of another run, or of a `.safetensors` file in the layouts of torchvision and timm.

Every tensor of a file is used, or is a step counter of batch normalisation, or belongs to a head that starts afresh;
every parameter and statistic of the model is filled, or is that head's. Anything else is refused. The head starts
afresh, and a warning says so, where the number of classes differs or the file has none.

    ours                                   torchvision (0.28)          timm (1.0)
    ResNet  conv1, conv1_norm              conv1, bn1                  the same
            conv2_1/Convolution_0          layer1.0.conv1              the same
            conv2_1/BatchNorm_0            layer1.0.bn1                the same
            conv3_1/shortcut               layer2.0.downsample.0       the same
            conv3_1/shortcut_norm          layer2.0.downsample.1       the same
            head                           fc                          the same
    VGG     Convolution_n, BatchNorm_n     features.m                  the same
            hidden1, hidden2               classifier.0, .3            pre_logits.fc1, .fc2 (convolutions)
            head                           classifier.6                head.fc
            head, without hidden layers    classifier                  -
    arrays  kernel [h, w, in, out]         weight [out, in, h, w]
            kernel [in, out]               weight [out, in]
            scale, bias                    weight, bias
            mean, var (batch_stats)        running_mean, running_var
"""

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from cifar_jax import training
from cifar_jax.errors import InputError
from cifar_jax.models.resnet import STEMS, ResNet
from cifar_jax.models.vgg import VGG
from cifar_jax.runs.workdir import load_run
from cifar_jax.training.state import keeps_average
from cifar_jax.training.update import optimizer

Tensors = dict[str, np.ndarray]
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
FLOATS = ("float32", "float16", "bfloat16", "float64")
FIELDS = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
HEAD = "head"  # the layer that gives the logits


def first_state(recipe: Any, functions: Mapping[str, Any], state: training.TrainState) -> training.TrainState:
    """The new state with the weights and batch statistics that `init_from` names, float32; a head of other classes
    stays as drawn. `functions` are those that `fit` was given, and `state` may hold shapes in place of arrays.

    Raises InputError where they do not fit.
    """
    if not recipe.init_from:
        return state
    fresh = {"params": state.params, "batch_stats": state.batch_stats}
    path = Path(recipe.init_from)
    if path.suffix in PICKLES and not path.is_dir():
        _refuse(
            path,
            "is a pickle by its name, whose reading may run any program; where you trust it, convert it in PyTorch:"
            " safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'weights.safetensors')",
        )
    if path.suffix == ".safetensors" and not path.is_dir():
        chosen = _of_file(path, recipe, fresh)
    elif path.is_file():
        _refuse(path, "is neither the workdir of a run nor a .safetensors file")
    else:
        chosen = _of_run(recipe, functions, fresh)
    average = chosen if keeps_average(recipe) else {}
    opt_state = optimizer(recipe, 0).init(chosen["params"])  # some optimisers keep the weights they start from
    return state.replace(
        params=chosen["params"], batch_stats=chosen["batch_stats"], opt_state=opt_state, average=average
    )


def _refuse(path: Any, what: str) -> NoReturn:
    raise InputError(f"init_from '{path}' {what}")


def _of_run(recipe: Any, functions: Mapping[str, Any], fresh: Any) -> Any:
    """The weights of the run; where the classes differ, the head's stay as drawn."""
    source = load_run(recipe.init_from, **functions)
    classes, replaced = recipe.data.num_classes, source.recipe.data.num_classes != recipe.data.num_classes
    given = {"params": source.state.params, "batch_stats": source.state.batch_stats}
    if str(jax.tree.structure(given)) != str(jax.tree.structure(fresh)):
        theirs, ours = dict(source.recipe.model), dict(recipe.model)
        fields = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
        differ = ", ".join(f"model.{name}: {theirs.get(name)} there, {ours.get(name)} here" for name in fields)
        _refuse(recipe.init_from, f"is a run of another model ({differ}); its weights do not fit")

    def choose(path, new, old):
        if new.shape == old.shape:
            return old
        if replaced and new.shape[-1] == classes and new.shape[:-1] == old.shape[:-1]:
            return new
        _refuse(recipe.init_from, f"does not fit: {jax.tree_util.keystr(path)} is {old.shape}, not {new.shape}")

    chosen = jax.tree_util.tree_map_with_path(choose, fresh, given)
    if replaced:
        _warn_of_head(
            recipe.init_from,
            fresh,
            f"the run's is of {source.recipe.data.num_classes} classes, the data's of {classes}",
        )
    return chosen


def _of_file(path: Path, recipe: Any, fresh: Any) -> Any:
    """The weights of the file, every tensor accounted for; a head that does not serve the classes stays as drawn."""
    model, classes, name = training.model(recipe), recipe.data.num_classes, _model_name(recipe)
    if type(model) not in LAYOUTS:
        _refuse(path, f"is of no use to model '{name}'; weights of files are known for ResNet and VGG")
    tensors = _read(path)
    modules, head = LAYOUTS[type(model)](model, tensors)
    misfit = lambda what: _refuse(path, f"does not fit model '{name}': {what}")
    heads = {f"{module}.{field}" for module in head for field in ("weight", "bias")} & tensors.keys()
    last = tensors.get(f"{head[-1]}.weight")
    if heads and (last is None or last.ndim != 2):
        misfit(f"it has '{min(heads)}', but no matrix '{head[-1]}.weight' [classes, features]")
    told = 0 if last is None else len(last)
    anew = told != classes
    if HEAD not in modules and heads and not anew:
        misfit(f"its head of {classes} classes has hidden layers ('{min(heads)}'); set model.classifier=hidden")
    accounted = set() if HEAD in modules else heads

    def choose(key: Any, leaf: Any) -> Any:
        *module, field = [part.key for part in key]
        ours = "/".join(module)
        if ours == HEAD and (not heads or HEAD not in modules):
            return leaf
        theirs = f"{modules[ours]}.{FIELDS[field]}"
        shape = (*leaf.shape[:-1], told) if ours == HEAD else leaf.shape
        window = shape[:2] if len(shape) == 4 else WINDOWS.get(ours, (1, 1))
        expected = _file_shape(shape, window, modules[ours])
        if theirs not in tensors:
            misfit(f"it lacks '{theirs}' {list(expected)}")
        tensor = tensors[theirs]
        if tensor.shape != expected:
            misfit(f"'{theirs}' is {list(tensor.shape)}, not {list(expected)}{_hint(theirs, tensor.shape, expected)}")
        if tensor.dtype.name not in FLOATS:
            misfit(f"'{theirs}' is {tensor.dtype}; weights are one of {', '.join(FLOATS)}")
        accounted.add(theirs)
        if ours == HEAD and anew:
            return leaf
        if len(shape) > 1:
            tensor = tensor.reshape(shape[-1], -1, *window).transpose(2, 3, 1, 0)
        return np.ascontiguousarray(tensor.reshape(shape), leaf.dtype)

    chosen = {name: jax.tree_util.tree_map_with_path(choose, fresh[name]) for name in ("params", "batch_stats")}
    accounted |= {re.sub(r"\.running_mean$", ".num_batches_tracked", theirs) for theirs in accounted}
    for theirs in sorted(tensors.keys() - accounted, key=lambda theirs: (theirs.endswith("_tracked"), theirs)):
        misfit(f"it has '{theirs}' {list(tensors[theirs].shape)}, for which the model has no place")
    if anew:
        why = f"the file's is of {told} classes, the data's of {classes}" if heads else "the file has none"
        hint = "; model.classifier=hidden keeps its hidden layers" if heads and HEAD not in modules else ""
        _warn_of_head(path, fresh, f"{why}{hint}")
    return chosen


def _warn_of_head(path: Any, fresh: Any, why: str) -> None:
    if not isinstance(jax.tree.leaves(fresh)[0], jax.ShapeDtypeStruct):  # told once, not in fit's trial too
        warnings.warn(f"init_from '{path}': the head starts afresh, {why}", stacklevel=2)


def _model_name(recipe: Any) -> str:
    """The name of the recipe's model, or the class of the caller's module."""
    return recipe.model.name if isinstance(recipe.model.name, str) else type(training.model(recipe)).__name__


def _file_shape(shape: tuple[int, ...], window: tuple[int, ...], module: str) -> tuple[int, ...]:
    """The shape in the file of an array that is `shape` in the model."""
    if len(shape) == 1:
        return shape
    inner = int(np.prod(shape[:-1]))
    if len(shape) == 4 or module.startswith("pre_logits."):
        return (shape[-1], inner // (window[0] * window[1]), *window)
    return (shape[-1], inner)


def _hint(theirs: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """Names the stem that has the window of the file's conv1, where the model has another."""
    stems = [stem for stem, settings in STEMS.items() if settings["kernel_size"] == shape[2:]]
    return f"; set model.stem={stems[0]}" if theirs == "conv1.weight" and stems and shape[2:] != expected[2:] else ""


def _read(path: Path) -> Tensors:
    """The tensors of a .safetensors file by name. Raises InputError where it cannot be read."""
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError as error:
        raise InputError(
            f"init_from '{path}' needs the library safetensors; install it with pip install -c constraints.txt"
            " -e '.[pretrained]'"
        ) from error
    if not path.is_file():
        _refuse(path, "is not a file; name a .safetensors file or the workdir of a run")
    try:
        return load_file(path)
    except (SafetensorError, OSError, KeyError, TypeError) as error:  # the latter two on a dtype that NumPy lacks
        raise InputError(f"init_from '{path}' cannot be read as safetensors: {error}") from error


def _resnet(model: ResNet, tensors: Tensors) -> tuple[dict[str, str], tuple[str, ...]]:
    """Our modules' names in the file, and those of the file's head, the last of which gives the logits."""
    modules = {"conv1": "conv1", "conv1_norm": "bn1", HEAD: "fc"}
    for stage, blocks in enumerate(model.stages, start=1):
        for number in range(blocks):
            ours, theirs = f"conv{stage + 1}_{number + 1}", f"layer{stage}.{number}"
            for layer in range(3):
                modules[f"{ours}/Convolution_{layer}"] = f"{theirs}.conv{layer + 1}"
                modules[f"{ours}/BatchNorm_{layer}"] = f"{theirs}.bn{layer + 1}"
            modules[f"{ours}/shortcut"] = f"{theirs}.downsample.0"
            modules[f"{ours}/shortcut_norm"] = f"{theirs}.downsample.1"
    return modules, ("fc",)


def _vgg(model: VGG, tensors: Tensors) -> tuple[dict[str, str], tuple[str, ...]]:
    """As `_resnet`. The features are numbered with their activations and poolings."""
    modules, layer, position = {}, 0, 0
    for convolutions in model.stages:
        for _ in range(convolutions):
            modules[f"Convolution_{layer}"] = f"features.{position}"
            modules[f"BatchNorm_{layer}"] = f"features.{position + 1}"
            layer, position = layer + 1, position + (3 if model.batch_norm else 2)
        position += 1
    timm = any(name.startswith(("pre_logits.", "head.")) for name in tensors)
    head = ("pre_logits.fc1", "pre_logits.fc2", "head.fc") if timm else ("classifier.0", "classifier.3", "classifier.6")
    if model.classifier == "average":  # torchvision has no such head: a single layer takes the place of its classifier
        alone = not tensors or "classifier.weight" in tensors
        return (modules | {HEAD: "classifier"}, ("classifier",)) if alone else (modules, head)
    return modules | dict(zip(("hidden1", "hidden2", HEAD), head, strict=True)), head[-1:]


LAYOUTS: dict[type, Callable[..., tuple[dict[str, str], tuple[str, ...]]]] = {ResNet: _resnet, VGG: _vgg}
WINDOWS = {"hidden1": (7, 7)}  # pixels that a dense layer sees: files order them by channel, we by pixel
