"""The model that a service answers with, and its index: loaded, compiled for every size of a batch, replaced whole."""

import functools
import io
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cifar_jax.data.decoding import decode
from cifar_jax.data.image_files import CHANNELS, shown
from cifar_jax.data.load import IMAGE_FOLDER, load_split
from cifar_jax.errors import InputError
from cifar_jax.inference.batching import Unreadable
from cifar_jax.inference.index_files import NAME, Index, load_index
from cifar_jax.inference.predict import ranked
from cifar_jax.inference.service_images import FORMATS, decode_upload
from cifar_jax.inference.similar import Neighbour, neighbours
from cifar_jax.runs.classifier import Classifier
from cifar_jax.runs.thresholds import decide
from cifar_jax.runs.workdir import load_classifier
from cifar_jax.training.objectives import objective_of

MOST_SIMILAR = 100  # images that an answer can hold
TRIES = 3  # timed runs of a batch
PICTURE = 128  # pixels of a side, at most


@dataclass(frozen=True, eq=False)
class Model:
    """A classifier with its index. Requests keep the one that was there when they came."""

    classifier: Classifier
    index: Index | None
    splits: dict[str, np.ndarray]  # images of those that the index holds, as far as they were found
    seconds: dict[str, dict[int, float]] = field(default_factory=dict)  # of a batch, by kind and size; see `warm`

    @property
    def name(self) -> str:
        """The digest of the model, in short."""
        return self.classifier.digest[:12]

    def decode(self, content: bytes, max_pixels: int, small: bool) -> np.ndarray | Unreadable:
        """As `Classifier.of_files` makes images of files."""
        data = self.classifier.recipe.data
        mode = data.resize_mode if data.name == IMAGE_FOLDER else "stretch"
        return decode_upload(content, tuple(data.image_shape), mode, max_pixels, small)

    def predict(self, images: np.ndarray) -> list[dict[str, Any]]:
        """The class of each image, and all classes with their probabilities, the most probable first."""
        probabilities, classes = self.classifier.probabilities(images), self.classifier.classes
        chosen = decide(probabilities, classes, self.classifier.thresholds).tolist()
        ranks = ranked(probabilities, classes, len(classes))
        return [
            {"class": classes[index], "top": [{"class": name, "probability": value} for name, value in best]}
            for index, best in zip(chosen, ranks, strict=True)
        ]

    def similar(self, images: np.ndarray) -> list[dict[str, Any]]:
        """The most similar images of the index for each image, the nearest first."""
        assert self.index is not None
        found = neighbours(self.index, self.classifier.embeddings(images), MOST_SIMILAR)
        return [{"neighbours": [self._public(each) for each in row]} for row in found]

    def _public(self, neighbour: Neighbour) -> dict[str, Any]:
        """Without the path of the file. The folder of a file is told where it is a class."""
        item, row = neighbour.item, neighbour.row
        label = item.get("label") or os.path.basename(os.path.dirname(item["path"]))
        known = "label" in item or label in self.classifier.classes
        name = item["path"] if "split" in item else shown(os.path.basename(item["path"]))
        return {"id": row, "name": name, "label": label if known else None, "similarity": neighbour.similarity}

    def compute(self, kind: str, images: np.ndarray) -> list[dict[str, Any]]:
        """ "predict" or "similar"."""
        return self.predict(images) if kind == "predict" else self.similar(images)

    def warm(self, batch: int) -> None:
        """Compiles the programs of all sizes, each a power of two (see `Classifier`), and measures them."""
        shape = tuple(self.classifier.recipe.data.image_shape)
        kinds = ["predict"] * self.predicts + ["similar"] * (self.index is not None)
        for kind in kinds:
            self.seconds[kind] = {}
            for power in range((batch - 1).bit_length() + 1):
                images, times = np.zeros((min(1 << power, batch), *shape), np.uint8), []
                for _ in range(1 + TRIES):  # the first compiles
                    start = time.perf_counter()
                    self.compute(kind, images)
                    times.append(time.perf_counter() - start)
                self.seconds[kind][1 << power] = min(times)

    def best_count(self, kind: str, count: int) -> int:
        """How many of `count` images to compute at once, so that most are answered a second.

        A batch is padded to a power of two: 17 images may take as long as 32.
        """
        rates = [(min(size, count) / seconds, min(size, count)) for size, seconds in self.seconds.get(kind, {}).items()]
        return max(rates, default=(0.0, count))[1]

    @functools.cached_property
    def predicts(self) -> bool:
        return bool(objective_of(self.classifier.recipe).predicts)

    def picture(self, row: int) -> bytes | None:
        """A PNG of an image of the index; None where there is none, or no longer."""
        from PIL import Image

        if self.index is None or not 0 <= row < len(self.index.items):
            return None
        item = self.index.items[row]
        if "split" in item:
            pixels = self.splits[item["split"]][item["index"]] if item["split"] in self.splits else None
        else:
            try:
                pixels = decode(Path(item["path"]).read_bytes(), PICTURE, "pad", formats=FORMATS)
            except Exception:  # each decoder of Pillow has its own
                pixels = None
        if pixels is None:
            return None
        stream = io.BytesIO()
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(stream, "PNG")
        return stream.getvalue()


def load_model(workdir: Path, index: Path | None, data_dir: str | Path | None = None) -> Model:
    """Raises InputError where there is no checkpoint, the index is of another model, or images of files do not fit."""
    classifier = load_classifier(workdir)
    channels = classifier.recipe.data.image_shape[-1]
    if channels not in CHANNELS:
        raise InputError(f"this model takes images of {channels} channels, and image files give 1 or 3")
    if index is None:
        if not objective_of(classifier.recipe).predicts:
            raise InputError("the objective of this run makes no class predictions; serve it with an --index=DIR")
        return Model(classifier, None, {})
    found = load_index(index)
    found.check_model(classifier)
    splits = {}
    for name in sorted({item["split"] for item in found.items if "split" in item}):
        try:
            splits[name] = load_split(classifier.recipe.data, name, data_dir, progress=False).images
        except InputError as error:
            warnings.warn(f"the page shows no pictures of split '{name}': {error}", stacklevel=2)
    return Model(classifier, found, splits)


def state_of(workdir: Path, index: Path | None) -> Sequence[Any]:
    """What changes on disk when there is a new checkpoint, a new temperature or a new index."""
    files = [workdir / "run.json", *sorted((workdir / "manifests").glob("*.json"))]
    files += [index / NAME] if index is not None else []
    seen = []
    for path in files:
        try:
            stat = path.stat()
        except OSError:  # being replaced
            continue
        seen.append((str(path), stat.st_mtime_ns, stat.st_size))
    return seen
