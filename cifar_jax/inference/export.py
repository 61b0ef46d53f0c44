"""A trained model in files that other programs read: archive, StableHLO, ONNX, torchvision's names, a model card."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cifar_jax.errors import InputError, nearest
from cifar_jax.inference import model_card, onnx_convert, stablehlo, torchvision_names
from cifar_jax.inference.program import dtype_on
from cifar_jax.recipe import freeze, override
from cifar_jax.runs import archive
from cifar_jax.runs.classifier import Classifier
from cifar_jax.runs.files import write_bytes
from cifar_jax.runs.fingerprint import fingerprint
from cifar_jax.runs.workdir import EVALUATIONS, Run, read_evaluation, read_record
from cifar_jax.training.metrics import Evaluation

FILES = {
    archive.WEIGHTS: "the weights, by the names of the Flax modules",
    archive.DESCRIPTION: "architecture, recipe, classes, normalisation, temperature, thresholds, metrics, digests",
    stablehlo.FILE: "the whole program for CPU, CUDA and TPU: uint8 images to probabilities and embeddings",
    onnx_convert.FILE: "the same as an ONNX graph, in float32",
    torchvision_names.FILE: "the weights under torchvision's names; images are normalised by the caller",
    model_card.FILE: "this card",
}
WRITERS: Mapping[str, tuple[str, Callable[[Path, Classifier], None]]] = {  # format -> its file, and what writes it
    "stablehlo": (stablehlo.FILE, stablehlo.write_stablehlo),
    "onnx": (onnx_convert.FILE, onnx_convert.write_onnx),
    "torchvision": (torchvision_names.FILE, torchvision_names.write_torchvision),
}
CHECKED = 4  # random images on which the programs are compared with the classifier
TOLERANCE = {"cpu": 1e-4}  # greatest difference of probabilities, and of embeddings relative to the largest entry
LOOSE = 2e-2  # the same on accelerators, whose float32 products may be rounded to fewer bits


@dataclass(frozen=True)
class Exported:
    """What was written. `differences` are the greatest between a program and the classifier on random images, and
    `left_out` says why a format was not written."""

    folder: Path
    sizes: dict[str, int]  # bytes of each file
    differences: dict[str, float]
    left_out: dict[str, str]
    stablehlo_until: date | None  # the last day for which JAX promises to read the program

    def __str__(self) -> str:
        lines = []
        for name, size in self.sizes.items():
            compared = f", within {self.differences[name]:.1g} of the classifier" if name in self.differences else ""
            lines.append(f"{name:24} {size / 2**20:8.2f} MiB{compared}")
        lines += [f"{name:24} left out: {reason}" for name, reason in self.left_out.items()]
        if self.stablehlo_until:
            lines.append(
                f"{stablehlo.FILE} can be read by later versions of JAX until {self.stablehlo_until}, at least"
            )
        return "\n".join([*lines, f"wrote {self.folder}"])


def export(run: Run, out: str | Path, *, formats: Sequence[str] | None = None, force: bool = False) -> Exported:
    """Writes the run's model to the new folder `out`: the archive, the model card, and the `formats` among "stablehlo",
    "onnx" and "torchvision"; by default those that the model has.

    `force` replaces a folder that an export wrote. The folder appears when all its files are there and the programs
    agree with the classifier. Raises InputError where the folder exists, where a format that was asked for does not
    suit the model, and where a library is missing.
    """
    out = Path(out)
    check(out, formats, force)
    with _appearing(out, force) as folder:
        classifier = replace(run.classifier, weights=jax.device_get(dict(run.classifier.weights)))
        evaluations = _evaluations(run)
        metrics = {seen.split: seen.to_json() for seen in evaluations}
        archive.write_archive(folder, classifier, metrics=metrics, data=run.digests, functions=_functions(run))
        differences, left_out = {}, {}
        for name in formats if formats is not None else WRITERS:
            file, write = WRITERS[name]
            try:
                write(folder / file, classifier)
            except InputError as error:
                if formats is not None:
                    raise
                left_out[file] = str(error).removeprefix(f"{file} cannot be written: ")
                continue
            if file in RUNNERS:
                differences[file] = compare(folder / file, classifier)
        until = stablehlo.readable_until(date.today()) if (folder / stablehlo.FILE).exists() else None
        notes = [f"JAX reads `{stablehlo.FILE}` until {until}, at least."] if until else []
        present = {file: what for file, what in FILES.items() if (folder / file).exists() or file == model_card.FILE}
        card = model_card.model_card(run, evaluations, present, notes)
        write_bytes(folder / model_card.FILE, card.encode())
        sizes = {file: (folder / file).stat().st_size for file in present}
    return Exported(out, sizes, differences, left_out, until)


def _evaluations(run: Run) -> list[Evaluation]:
    """Those that the run stores, or the one that it holds."""
    if run.workdir is None:
        return [run.evaluation] if run.evaluation else []
    stored = [read_evaluation(run.workdir, split) for split in EVALUATIONS]
    return [seen for seen in stored if seen is not None]


def _functions(run: Run) -> dict[str, Any]:
    """The fingerprints of the caller's functions in the recipe."""
    if run.workdir and (record := read_record(run.workdir)):
        return record["functions"]
    names = {section: run.recipe[section].name for section in ("model", "optimizer", "schedule", "loss", "objective")}
    return {section: fingerprint(function) for section, function in names.items() if not isinstance(function, str)}


def check(out: str | Path, formats: Sequence[str] | None, force: bool) -> None:
    """Raises InputError where `export` would, as far as can be told without the run."""
    for name in formats or ():
        if name not in WRITERS:
            raise InputError(f"format '{name}' is unknown{nearest(name, WRITERS)}")
    _check_folder(Path(out), force)
    archive.safetensors_numpy(Path(archive.WEIGHTS))
    if formats is None or "onnx" in formats:
        onnx_convert.libraries()


def _check_folder(out: Path, force: bool) -> None:
    """Raises InputError where the folder exists and may not be replaced."""
    if not (out.exists() or out.is_symlink()):
        return
    if not force:
        raise InputError(f"'{out}' exists; name another folder, or replace an export with --force")
    ours = archive.is_archive(out) and not out.is_symlink()
    foreign = sorted({path.name for path in out.iterdir()} - FILES.keys()) if ours else []
    if foreign or not ours:
        what = f"holds '{foreign[0]}', which no export wrote" if foreign else "is no export"
        raise InputError(f"'{out}' {what}, so --force does not replace it; name another folder")


@contextmanager
def _appearing(out: Path, force: bool) -> Iterator[Path]:
    """A new folder beside `out` that takes its name once the block has ended well, and vanishes otherwise."""
    new, old = (out.with_name(f".{out.name}.{os.getpid()}.{kind}") for kind in ("new", "old"))
    try:
        new.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"folder '{out}' cannot be written ({error.strerror}); name another") from error
    try:
        yield new
        _check_folder(out, force)  # once more: exporting takes a while
        if out.exists():
            os.replace(out, old)
        os.replace(new, out)
    finally:
        if old.exists() and not out.exists():
            os.replace(old, out)
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)


def compare(path: Path, classifier: Classifier) -> float:
    """The greatest difference between a program's outputs and the classifier's on random images.

    Raises InputError where it is more than TOLERANCE.
    """
    platform, run = RUNNERS[path.name]
    platform = platform or jax.default_backend()
    shape = (CHECKED, *classifier.recipe.data.image_shape)
    images = np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8)
    recipe = freeze(override(classifier.recipe, {"dtype": dtype_on(platform, classifier.recipe)}))
    with jax.default_device(jax.devices(platform)[0]):
        reference = replace(classifier, recipe=recipe)
        outputs = run(path, images)
        expected = {"probabilities": reference.probabilities(images)}
        if "embedding" in outputs:
            expected["embedding"] = reference.embeddings(images)
    gaps = [
        np.abs(np.asarray(outputs[name]) - values).max() / max(1.0, np.abs(values).max())
        for name, values in expected.items()
    ]
    limit = TOLERANCE.get(platform, LOOSE)
    if not all(gap <= limit for gap in gaps):  # NaN is no agreement
        raise InputError(
            f"{path.name} differs from the model by {max(gaps):.1g} on random images, more than {limit:g}, so nothing"
            " was exported"
        )
    return float(max(gaps))


# What runs a program, and on which platform; None is JAX's own.
RUNNERS: Mapping[str, tuple[str | None, Callable[[Path, Any], Mapping[str, Any]]]] = {
    stablehlo.FILE: (None, stablehlo.run_stablehlo),
    onnx_convert.FILE: ("cpu", onnx_convert.run_onnx),
}
