"""The archive of a trained model: two files that hold all that a `Classifier` is, and that later versions read.

model.safetensors  the evaluated weights, "params/conv1/kernel" and "batch_stats/conv1_norm/mean"
model.json         format number, architecture, recipe, classes, normalisation, temperature, thresholds, metrics,
                   digests

model.json carries its own digest and that of the weights. `architecture`, `image_shape` and `normalisation` repeat what
the recipe says, for readers without cifar_jax.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import cifar_jax
from cifar_jax import training
from cifar_jax.errors import InputError
from cifar_jax.recipe import from_json, to_json
from cifar_jax.runs.classifier import Classifier
from cifar_jax.runs.files import digest_of_file, digest_of_json, read_json, unsealed, write_bytes, write_sealed
from cifar_jax.runs.functions import with_known_functions

FORMAT = 1
WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"


def is_archive(folder: Path) -> bool:
    return (folder / DESCRIPTION).is_file() and not (folder / "run.json").exists()


def write_archive(
    folder: Path,
    classifier: Classifier,
    *,
    metrics: Mapping[str, Any],
    data: Mapping[str, str],
    functions: Mapping[str, Any],
) -> None:
    """Writes both files. `metrics` are evaluations as JSON by split, `data` the digests of the splits, `functions` the
    fingerprints of functions of the caller's.

    Raises InputError where safetensors is missing.
    """
    tensors = flat_weights(classifier.weights)
    write_bytes(folder / WEIGHTS, safetensors_numpy(folder / WEIGHTS).save(tensors, {"format": "flax"}))
    recipe, section = to_json(classifier.recipe), classifier.recipe.data
    description = {
        "format": FORMAT,
        "cifar_jax": cifar_jax.__version__,
        "architecture": recipe["model"]["name"],
        "recipe": recipe,
        "classes": list(classifier.classes),
        "image_shape": list(section.image_shape),
        "normalisation": {"mean": list(section.mean), "std": list(section.std)},
        "temperature": classifier.temperature,
        "thresholds": dict(classifier.thresholds),
        "metrics": dict(metrics),
        "functions": dict(functions),
        "digests": {
            WEIGHTS: digest_of_file(folder / WEIGHTS),
            "recipe": digest_of_json(recipe),
            "data": dict(data),
        },
    }
    write_sealed(folder / DESCRIPTION, description)


def read_archive(folder: Path, which: str | None = None, functions: Mapping[str, Any] | None = None) -> Classifier:
    """The classifier that was written there; `functions` as for `load_classifier`.

    Raises InputError where a file is missing, damaged or of another format, where the weights are not those of the
    recipe's model, and where safetensors is missing.
    """
    if which is not None:
        raise InputError(f"which is '{which}', and the archive '{folder}' holds one set of weights; leave it out")
    description = read_description(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        raise InputError(f"the archive '{folder}' has no {WEIGHTS}; export the model again")
    if digest_of_file(path) != description["digests"][WEIGHTS]:
        raise InputError(f"{path} is damaged, or belongs to another archive; export the model again")
    recipe = with_known_functions(
        from_json(description["recipe"]), description["functions"], functions or {}, f"the model in '{folder}'"
    )
    tensors = safetensors_numpy(path).load_file(path)
    return Classifier(
        recipe,
        _weights_of(folder, recipe, tensors),
        tuple(description["classes"]),
        description["temperature"],
        description["thresholds"],
    )


def read_description(folder: Path) -> dict[str, Any]:
    """model.json. Raises InputError where it is damaged or of another format."""
    stored = read_json(folder / DESCRIPTION)
    if isinstance(stored, dict) and stored.get("format", FORMAT) != FORMAT:
        raise InputError(
            f"'{folder}' holds an archive of format {stored['format']}, and this version reads format {FORMAT}; read it"
            " with the version of cifar_jax that wrote it"
        )
    description = unsealed(stored)
    if description is None:
        raise InputError(f"{folder / DESCRIPTION} is damaged; export the model again")
    return description


def flat_weights(weights: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """{"params/conv1/kernel": array, ...}, contiguous, on the host."""
    leaves = jax.tree.leaves_with_path(dict(weights))
    return {"/".join(part.key for part in path): np.ascontiguousarray(jax.device_get(leaf)) for path, leaf in leaves}


def _weights_of(folder: Path, recipe: Any, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The tensors as the weights of the recipe's model, none left over."""
    state = jax.eval_shape(lambda: training.init(recipe))
    expected = {"params": state.params, "batch_stats": state.batch_stats}
    shapes = {"/".join(part.key for part in path): leaf.shape for path, leaf in jax.tree.leaves_with_path(expected)}
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if changed := sorted(set(shapes.items()) ^ set(found.items())):
        raise InputError(
            f"the weights in '{folder}' do not fit model '{to_json(recipe)['model']['name']}': '{changed[0][0]}' is"
            f" {found.get(changed[0][0], 'missing')}, not {shapes.get(changed[0][0], 'part of the model')}"
        )
    paths, structure = jax.tree.flatten_with_path(expected)
    return jax.tree.unflatten(structure, [tensors["/".join(part.key for part in path)] for path, _ in paths])


def safetensors_numpy(path: Path) -> Any:
    """The library. Raises InputError where it is missing."""
    try:
        from safetensors import numpy
    except ImportError as error:
        remedy = "install it with pip install -c constraints.txt -e '.[export]'"
        raise InputError(f"{path} needs the library safetensors; {remedy}") from error
    return numpy
