"""A trained model for everything that uses one: recipe, weights, classes. No optimiser state."""

import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from cifar_jax.data.image_files import find_images, read_images
from cifar_jax.data.load import IMAGE_FOLDER
from cifar_jax.errors import InputError
from cifar_jax.recipe import flatten, to_json
from cifar_jax.runs import programs
from cifar_jax.runs.thresholds import decide

BATCH = 64  # images of files that are computed together: more gain nothing on a CPU and delay the first results
DIGESTED = ("model.", "data.mean", "data.std", "data.input_size", "data.image_shape", "dtype")  # fields of a recipe


@dataclass(frozen=True)
class Predictions:
    """What a classifier says about N images.

    A file that could not be read has index -1, an empty name, probabilities NaN and a reason.
    """

    indices: np.ndarray  # int64 [N], the class of each: the most probable, or by the classifier's thresholds
    names: list[str]  # its name
    probabilities: np.ndarray  # float32 [N, classes]
    paths: list[str] | None = None  # of the files; None for arrays
    reasons: list[str | None] | None = None  # why a file could not be read; None where it was, and for arrays


@dataclass(frozen=True)
class FileBatch:
    """Some files, in their order, and what was computed of those that could be read."""

    paths: list[str]
    reasons: list[str | None]  # why a file could not be read; None where it was
    values: np.ndarray  # a row for each file that was read

    def rows(self) -> list[int | None]:
        """The row of each file in `values`; None where it could not be read."""
        numbers = itertools.count()
        return [next(numbers) if reason is None else None for reason in self.reasons]


@dataclass(frozen=True)
class Classifier:
    """A trained model. Images are uint8 [N, H, W, C] of the size that it was trained on."""

    recipe: Any  # FrozenConfigDict, resolved
    weights: dict[str, Any]  # {"params", "batch_stats"}, those that are evaluated
    classes: tuple[str, ...]
    temperature: float = 1.0  # see `calibrate`; logits are divided by it before they become probabilities
    thresholds: Mapping[str, float] = field(default_factory=dict)  # of some classes, see `choose_threshold`

    def logits(self, images: np.ndarray, views: str | None = None) -> np.ndarray:
        """float32 [N, classes]; `views` as in training.augment.VIEWS, the recipe's if None.

        Raises InputError on images of another type or size.
        """
        program = programs.logits_program(self._shared, views or self.recipe.evaluation.views)
        return self._in_batches(program, images, len(self.classes))

    def probabilities(self, images: np.ndarray, views: str | None = None) -> np.ndarray:
        """The softmax of the logits over the temperature, float32 [N, classes]."""
        scores = self.logits(images, views) / np.float32(self.temperature)
        powers = np.exp(scores - scores.max(-1, keepdims=True, initial=-np.inf))
        return powers / powers.sum(-1, keepdims=True)

    def embeddings(self, images: np.ndarray) -> np.ndarray:
        """The input of the model's last module, `head`: float32 [N, D], of the image alone, whatever the views.

        Raises InputError where the model has no module of that name.
        """
        return self._in_batches(programs.embeddings_program(self._shared), images, None)

    def predict(self, images: Any, views: str | None = None) -> Predictions:
        """The class of each image, the most probable or by the thresholds, and the probabilities of all.

        `images` are an array as above; or files: a path, a folder, a pattern such as "photos/*.jpg", or a sequence of
        them (see `data.image_files.find_images`). Files of any size and mode become images of the model's size, see
        `of_files`. Raises InputError where a path does not exist, or no images are found.
        """
        probabilities = functools.partial(self.probabilities, views=views)
        named = _paths(images)
        if named is None:
            return self._predictions(probabilities(images))
        paths = find_images(named)
        found, reasons = np.full((len(paths), len(self.classes)), np.nan, np.float32), list[str | None]()
        for batch in self.of_files(probabilities, paths):
            read = [len(reasons) + place for place, reason in enumerate(batch.reasons) if reason is None]
            found[read] = batch.values
            reasons += batch.reasons
        return self._predictions(found, paths, reasons)

    def _predictions(
        self, found: np.ndarray, paths: list[str] | None = None, reasons: list[str | None] | None = None
    ) -> Predictions:
        chosen = decide(found, self.classes, self.thresholds)
        indices = np.where(np.isnan(found[:, 0]), -1, chosen) if reasons else chosen
        names = [self.classes[index] if index >= 0 else "" for index in indices.tolist()]
        return Predictions(indices, names, found, paths, reasons)

    def of_files(self, compute: Callable[[np.ndarray], np.ndarray], paths: Sequence[str]) -> Iterator[FileBatch]:
        """compute(images) of files, batch by batch, while the next ones are decoded; `compute` is a method of this.

        An image becomes one of the model's size as the images of its training did: by `data.resize_mode` where these
        came from a folder, and otherwise stretched.
        """
        data = self.recipe.data
        mode = data.resize_mode if data.name == IMAGE_FOLDER else "stretch"
        images = read_images(paths, data.image_shape, mode)
        for start in range(0, len(paths), BATCH):
            read = list(itertools.islice(images, BATCH))
            reasons = [image if isinstance(image, str) else None for image in read]
            whole = [image for image in read if not isinstance(image, str)]
            # All batches of several have one size, because each size is a compilation.
            size = BATCH if len(paths) > BATCH else len(whole)
            batch = np.zeros((size, *data.image_shape), np.uint8)
            for row, image in zip(batch, whole, strict=False):
                row[...] = image
            yield FileBatch(list(paths[start : start + BATCH]), reasons, compute(batch)[: len(whole)])

    @functools.cached_property
    def digest(self) -> str:
        """sha256 of what the outputs depend on: weights, architecture, image shape, normalisation, dtype, classes.

        The temperature is no part of it.
        """
        fields = {path: value for path, value in flatten(to_json(self.recipe)).items() if path.startswith(DIGESTED)}
        state = hashlib.sha256(json.dumps([fields, list(self.classes)], sort_keys=True).encode())
        for path, leaf in jax.tree.leaves_with_path(self.weights):
            array = np.asarray(leaf)
            state.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
            state.update(np.ascontiguousarray(array).tobytes())
        return state.hexdigest()

    def __repr__(self) -> str:
        name = self.recipe.model.name
        shape = "x".join(map(str, self.recipe.data.image_shape))
        return f"Classifier({name}, images {shape}, {len(self.classes)} classes: {', '.join(self.classes[:10])})"

    @functools.cached_property
    def _shared(self) -> Any:
        return programs.shared(self.recipe, programs.EVALUATION_FIELDS)

    def _in_batches(self, program: Any, images: np.ndarray, width: int | None) -> np.ndarray:
        """program(weights, batch) over all images; few images are padded to a power of two, because a program for each
        number that a caller may come with is a compilation."""
        images, expected = np.asarray(images), tuple(self.recipe.data.image_shape)
        if images.dtype != np.uint8 or images.shape[1:] != expected:
            shown = f"{images.dtype} {list(images.shape)}"
            raise InputError(f"images are {shown}; this model takes uint8 [N, {', '.join(map(str, expected))}]")
        size = min(self.recipe.evaluation.batch_size, 1 << max(0, len(images) - 1).bit_length())
        results = [np.zeros((0, width), np.float32)] if width else []
        for start in range(0, max(len(images), 1 - len(results)), size):
            batch = images[start : start + size]
            padded = np.concatenate([batch, np.zeros((size - len(batch), *expected), np.uint8)])
            results.append(np.asarray(program(self.weights, padded))[: len(batch)])
        return np.concatenate(results)


def _paths(images: Any) -> list[Any] | None:
    """The paths that a caller names; None where these are arrays."""
    if isinstance(images, str | os.PathLike):
        return [images]
    if isinstance(images, list | tuple) and images and all(isinstance(item, str | os.PathLike) for item in images):
        return list(images)
    return None
