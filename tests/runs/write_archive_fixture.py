"""Writes tests/runs/archive, the archive that every later version must read; run it once per format number only.

python -m tests.runs.write_archive_fixture
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from cifar_jax.runs.archive import write_archive
from cifar_jax.runs.classifier import Classifier
from cifar_jax.runs.files import write_json
from cifar_jax.training import evaluated_weights
from tests import made

FOLDER = Path(__file__).parent / "archive"


def main() -> None:
    recipe = made.recipe({"model": {"name": "convnet", "widths": (4,), "convolutions": (1,)}})
    images = np.arange(4 * 8 * 8 * 3).reshape(4, 8, 8, 3).astype(np.uint8)  # 0, 1, ... 255, 0, ...
    classifier = Classifier(recipe, evaluated_weights(made.init(recipe)), made.split().classes, 1.25)
    classifier = replace(classifier, thresholds={"class 1": 0.75})
    write_archive(FOLDER, classifier, metrics={}, data={"train": "a digest"}, functions={})
    expected = {
        "logits": classifier.logits(images).tolist(),
        "embeddings": classifier.embeddings(images).tolist(),
        "probabilities": classifier.probabilities(images).tolist(),
        "thresholds": dict(classifier.thresholds),
    }
    write_json(FOLDER / "expected.json", expected)


if __name__ == "__main__":
    main()
