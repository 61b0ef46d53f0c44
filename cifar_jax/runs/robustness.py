"""How a model, or an ensemble of several, does on corrupted images and on images of another kind.

Columns as in google/uncertainty-baselines: accuracy, negative log-likelihood and calibration error, the same under
corruption, and how well the images of another data set are told from the own ones.
"""

import functools
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy import special
from tqdm import tqdm

from cifar_jax.data.external import load_images
from cifar_jax.errors import InputError
from cifar_jax.runs.calibration import Calibration, calibration
from cifar_jax.runs.classifier import Classifier
from cifar_jax.runs.devices import jit
from cifar_jax.runs.evaluate import select
from cifar_jax.runs.workdir import Run
from cifar_jax.training.corruptions import CORRUPTIONS, LEFT_OUT, SEVERITIES, corrupt

JPEG = "jpeg_compression"
JPEG_QUALITY = (80, 65, 58, 50, 40)
BATCH = 1000  # images that are corrupted at a time
ACCEPTED = 0.95  # of the own images, for the false positive rate


@dataclass(frozen=True)
class CorruptionResult:
    """The figures of a split under one corruption; `severity` is 1 to 5."""

    name: str
    severity: int
    accuracy: float
    loss: float  # negative log-likelihood, nats
    expected_calibration_error: float


@dataclass(frozen=True)
class OutOfDistribution:
    """How well a score tells the model's own images, the positive ones, from those of another data set."""

    name: str  # of the other data set
    score: str  # "probability": the highest (Hendrycks & Gimpel 2017); "energy": Liu et al. 2020, eq. 4, at T = 1
    own_images: int
    other_images: int
    auroc: float
    aupr: float
    false_positive_rate: float  # of the other images, where 95% of the own ones are accepted


@dataclass(frozen=True)
class Robustness:
    models: int  # of which the probabilities are the mean
    split: str
    clean: Calibration
    corruptions: tuple[CorruptionResult, ...]
    out_of_distribution: tuple[OutOfDistribution, ...]

    def mean_under_corruption(self) -> dict[str, float]:
        """The means over all corruptions and severities: accuracy, loss, expected_calibration_error."""
        names = ("accuracy", "loss", "expected_calibration_error")
        return {name: float(np.mean([getattr(row, name) for row in self.corruptions])) for name in names}

    def to_json(self) -> dict[str, Any]:
        means = {"mean_under_corruption": self.mean_under_corruption()} if self.corruptions else {}
        return asdict(self) | means

    def __str__(self) -> str:
        lines = [f"{'corruption':20}  severity  accuracy    loss  calibration error", _line("none", "", self.clean)]
        if self.corruptions:
            lines += [_line(row.name, str(row.severity), row) for row in self.corruptions]
            mean = self.mean_under_corruption()
            shown = f"{mean['accuracy']:8.2%}  {mean['loss']:6.3f}  {mean['expected_calibration_error']:17.2%}"
            lines += [f"{'mean of corruptions':20}  {'':8}  {shown}", f"left out: {', '.join(LEFT_OUT)}"]
        if self.out_of_distribution:
            lines += [f"{'out of distribution':20}  {'score':11}   AUROC    AUPR  false positives at 95%"]
        for other in self.out_of_distribution:
            figures = f"{other.auroc:6.2%}  {other.aupr:6.2%}  {other.false_positive_rate:.2%}"
            lines += [f"{other.name:20}  {other.score:11}  {figures}  ({other.other_images} images)"]
        return "\n".join(lines)


def _line(name: str, severity: str, row: Calibration | CorruptionResult) -> str:
    figures = f"{row.accuracy:8.2%}  {row.loss:6.3f}  {row.expected_calibration_error:17.2%}"
    return f"{name:20}  {severity:8}  {figures}"


def robustness(
    runs: Run | Sequence[Run],
    split: str = "test",
    *,
    corruptions: bool = True,
    out_of_distribution: Sequence[str] = (),
    views: str | None = None,
    data_dir: str | Path | None = None,
    data: Mapping[str, Any] | str | None = None,
    progress: bool = True,
) -> Robustness:
    """A run, or the ensemble of several (the mean of their probabilities), on a split of its data.

    `corruptions` are those of `CORRUPTIONS` and JPEG at five severities. `out_of_distribution` names other data sets
    (see cifar_jax/data/external.py). Other arguments as for `evaluate`. Each run's own temperature is used.

    Raises InputError where the runs do not know the same classes and images.
    """
    runs = [runs] if isinstance(runs, Run) else list(runs)
    models = [run.classifier for run in runs]
    for model in models[1:]:
        if model.classes != models[0].classes or model.recipe.data.image_shape != models[0].recipe.data.image_shape:
            raise InputError("the runs of an ensemble must know the same classes, and images of the same size")
    images, labels, _ = select(runs[0], split, data, data_dir, progress)
    probabilities = functools.partial(_probabilities, models, views)
    clean = calibration(probabilities(images), labels)
    names = [*CORRUPTIONS, JPEG] if corruptions else []
    pairs = [(name, severity) for name in names for severity in SEVERITIES]
    rows = []
    for name, severity in tqdm(pairs, "corruptions", disable=not (progress and pairs)):
        found = calibration(probabilities(corrupted(images, name, severity)), labels)
        rows.append(CorruptionResult(name, severity, found.accuracy, found.loss, found.expected_calibration_error))
    options = {
        "resize_mode": runs[0].recipe.data.get("resize_mode", "stretch"),
        "data_dir": data_dir,
        "progress": progress,
    }
    others: list[OutOfDistribution] = []
    for name in out_of_distribution:
        other = load_images(name, "test", tuple(runs[0].recipe.data.image_shape), **options)
        others += _out_of_distribution(name, _scores(models, views, images), _scores(models, views, other))
    return Robustness(len(models), split, clean, tuple(rows), tuple(others))


def corrupted(images: np.ndarray, name: str, severity: int) -> np.ndarray:
    """uint8 [N, H, W, C] of the same shape. The random numbers depend on the place of an image alone."""
    if name == JPEG:
        return np.stack([_jpeg(image, JPEG_QUALITY[severity - 1]) for image in images])
    parts = []
    for start in range(0, len(images), BATCH):
        part = images[start : start + BATCH]
        padded = np.concatenate([part, np.zeros((BATCH - len(part), *part.shape[1:]), np.uint8)])
        key = jax.random.fold_in(jax.random.key(0), start // BATCH)
        parts.append(np.asarray(_program(name, severity)(key, padded))[: len(part)])
    return np.concatenate(parts)


@functools.lru_cache(64)  # all of them
def _program(name: str, severity: int) -> Any:
    return jit(functools.partial(corrupt, name, severity))


def _jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(content, "JPEG", quality=quality)
    return np.asarray(Image.open(content)).reshape(image.shape)


def _probabilities(models: Sequence[Classifier], views: str | None, images: np.ndarray) -> np.ndarray:
    return np.mean([model.probabilities(images, views) for model in models], axis=0)


def _scores(models: Sequence[Classifier], views: str | None, images: np.ndarray) -> dict[str, np.ndarray]:
    """float [N] each, higher for the own kind of images. The energy of an ensemble is the mean over its models."""
    energies = [special.logsumexp(model.logits(images, views), axis=-1) for model in models]
    return {"probability": _probabilities(models, views, images).max(-1), "energy": np.mean(energies, axis=0)}


def _out_of_distribution(
    name: str, own: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]
) -> list[OutOfDistribution]:
    from sklearn.metrics import average_precision_score, roc_auc_score

    results = []
    for score in own:
        values = np.concatenate([own[score], other[score]])
        positive = np.arange(len(values)) < len(own[score])
        threshold = np.quantile(own[score], 1 - ACCEPTED, method="lower")
        results.append(
            OutOfDistribution(
                name,
                score,
                own_images=len(own[score]),
                other_images=len(other[score]),
                auroc=float(roc_auc_score(positive, values)),
                aupr=float(average_precision_score(positive, values)),
                false_positive_rate=float((other[score] >= threshold).mean()),
            )
        )
    return results
