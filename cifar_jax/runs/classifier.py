"""A trained model for everything that uses one: recipe, weights, classes. No optimiser state."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from cifar_jax.errors import InputError
from cifar_jax.runs import programs
from cifar_jax.runs.calibration import Threshold


@dataclass(frozen=True)
class Predictions:
    """What a classifier says about N images."""

    indices: np.ndarray  # int64 [N], the most probable class of each
    names: list[str]  # its name
    probabilities: np.ndarray  # float32 [N, classes]


@dataclass(frozen=True)
class Classifier:
    """A trained model. Images are uint8 [N, H, W, C] of the size that it was trained on."""

    recipe: Any  # FrozenConfigDict, resolved
    weights: dict[str, Any]  # {"params", "batch_stats"}, those that are evaluated
    classes: tuple[str, ...]
    temperature: float = 1.0  # see `calibrate`; logits are divided by it before they become probabilities
    thresholds: tuple[Threshold, ...] = ()  # of the highest probability, by the accuracy above them; see `calibrate`

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

    def predict(self, images: np.ndarray, views: str | None = None) -> Predictions:
        """The most probable class of each image, and the probabilities of all."""
        probabilities = self.probabilities(images, views)
        indices = probabilities.argmax(-1)
        return Predictions(indices, [self.classes[index] for index in indices], probabilities)

    def __repr__(self) -> str:
        name = self.recipe.model.name
        shape = "x".join(map(str, self.recipe.data.image_shape))
        return f"Classifier({name}, images {shape}, {len(self.classes)} classes: {', '.join(self.classes[:10])})"

    @functools.cached_property
    def _shared(self) -> Any:
        return programs.shared(self.recipe)

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
