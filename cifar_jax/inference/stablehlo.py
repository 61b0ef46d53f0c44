"""The model as one StableHLO program, by `jax.export`, for CPU, CUDA and TPU and batches of any size.

The weights are constants of the program. The compiler options of this package are settings of a process and are not
part of it, so it is traced with plain `jax.jit`. JAX promises to read the file for six months
(https://docs.jax.dev/en/latest/export/export.html#compatibility-guarantees-for-custom-calls-and-serialization).
"""

import functools
from datetime import date
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import export as jax_export

from cifar_jax.errors import InputError
from cifar_jax.inference.program import Outputs, dtype_on, inference, symbolic_images
from cifar_jax.runs.classifier import Classifier
from cifar_jax.runs.files import write_bytes

FILE = "model.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")
LIFETIME = 6  # months


def write_stablehlo(path: Path, classifier: Classifier) -> None:
    """Writes the program: images uint8 [batch, H, W, C] -> {"probabilities", "embedding"}.

    Its dtype is that of `dtype_on` its platform. Raises InputError where the model cannot be traced for a batch of
    unknown size.
    """
    weights = jax.tree.map(jnp.asarray, classifier.weights)
    of_platform = {name: inference(classifier, dtype_on(name, classifier.recipe)) for name in PLATFORMS}
    half = dtype_on("cuda", classifier.recipe) != "float32"

    def program(images: jax.Array) -> Outputs:
        if not half:
            return of_platform["cpu"](weights, images)
        chosen = {name: functools.partial(function, weights) for name, function in of_platform.items()}
        return jax.lax.platform_dependent(images, **chosen)

    try:
        exported = jax_export.export(jax.jit(program), platforms=PLATFORMS)(symbolic_images(classifier))
    except (jax.errors.ConcretizationTypeError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(f"{FILE} cannot be written: the model does not take batches of any size ({reason})") from error
    write_bytes(path, bytes(exported.serialize()))


def read_stablehlo(path: Path) -> jax_export.Exported:
    """The program; `.call(images)` runs it."""
    return jax_export.deserialize(bytearray(path.read_bytes()))


def run_stablehlo(path: Path, images: jax.Array) -> Outputs:
    return read_stablehlo(path).call(images)


def readable_until(day: date) -> date:
    """The last day for which JAX promises to read a program that was exported on `day`."""
    months = day.month - 1 + LIFETIME
    year, month = day.year + months // 12, months % 12 + 1
    last = (date(year + month // 12, month % 12 + 1, 1) - date(year, month, 1)).days
    return date(year, month, min(day.day, last))
