"""A tiny trained model, and a folder of its images in many forms."""

import numpy as np
import pytest
from PIL import Image

import cifar_jax as cj
from tests import made

DATA = {"train": made.split(160, seed=0), "test": made.split(40, seed=1)}


@pytest.fixture(scope="session")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("inference") / "run"
    cj.fit(made.recipe({"epochs": 6}), path, data=DATA, progress=False)
    return path


@pytest.fixture(scope="session")
def other_workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("inference") / "other"
    cj.fit(made.recipe({"epochs": 1, "seed": 1}), path, data=DATA, progress=False)
    return path


@pytest.fixture(scope="session")
def classifier(workdir):
    return cj.load_classifier(workdir)


@pytest.fixture
def library(tmp_path):
    """photos/CLASS/0.png ..., the test images, and one broken file."""
    split = DATA["test"]
    for number, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
        folder = tmp_path / "photos" / split.classes[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    (tmp_path / "photos" / "class 0" / "broken.png").write_bytes(b"nothing")
    return tmp_path / "photos"


@pytest.fixture
def images():
    return np.asarray(DATA["test"].images)
