"""The archive of a trained model: what is written is read, and what is not whole is refused."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import cifar_jax as cj
from cifar_jax.runs.archive import DESCRIPTION, WEIGHTS, read_archive, write_archive
from cifar_jax.runs.classifier import Classifier
from cifar_jax.runs.files import digest_of_file, write_sealed
from cifar_jax.training import evaluated_weights
from tests import made

pytest.importorskip("safetensors")
FIXTURE = Path(__file__).parent / "archive"


@pytest.fixture
def archive(tmp_path):
    shutil.copytree(FIXTURE, tmp_path / "archive")
    return tmp_path / "archive"


def rewritten(archive, **changes):
    description = json.loads((archive / DESCRIPTION).read_text())
    description.pop("digest")
    write_sealed(archive / DESCRIPTION, {**description, **changes})


def test_the_archive_of_format_1_is_read_by_this_version():
    """The files were committed with the first version that wrote them; they are never written again."""
    classifier, expected = cj.load_classifier(FIXTURE), json.loads((FIXTURE / "expected.json").read_text())
    images = np.arange(4 * 8 * 8 * 3).reshape(4, 8, 8, 3).astype(np.uint8)
    for name in ("logits", "embeddings", "probabilities"):
        np.testing.assert_allclose(getattr(classifier, name)(images), expected[name], rtol=1e-4, atol=1e-5)
    assert classifier.thresholds == expected["thresholds"]
    assert classifier.classes == ("class 0", "class 1", "class 2", "class 3")
    assert classifier.temperature == 1.25


@pytest.mark.parametrize("model", ["cnn", "speedrun94", "mlp"])
def test_what_is_written_is_read_bit_for_bit(model, tmp_path):
    recipe = made.recipe(model={"name": model, **({"widths": (4, 8)} if model != "cnn" else {"width": 2})})
    weights = evaluated_weights(made.init(recipe))
    written = Classifier(recipe, weights, made.split().classes, 1.5, {"class 1": 0.5})
    write_archive(tmp_path, written, metrics={}, data={}, functions={})
    read = read_archive(tmp_path)
    made.assert_same(read.weights, written.weights)
    assert replace(read, weights=None) == replace(written, weights=None)


def damaged_weights(archive):
    content = bytearray((archive / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (archive / WEIGHTS).write_bytes(bytes(content))


def other_weights(archive):
    """Those of another model, with a digest that is right."""
    from safetensors.numpy import save_file

    save_file({"params/head/kernel": np.ones((2, 2), np.float32)}, archive / WEIGHTS)
    digests = json.loads((archive / DESCRIPTION).read_text())["digests"]
    rewritten(archive, digests={**digests, WEIGHTS: digest_of_file(archive / WEIGHTS)})


FAULTS = {
    "a flipped bit in the weights": (damaged_weights, "is damaged, or belongs to another archive"),
    "no weights": (lambda archive: (archive / WEIGHTS).unlink(), f"has no {WEIGHTS}"),
    "a changed description": (
        lambda archive: (archive / DESCRIPTION).write_text((archive / DESCRIPTION).read_text().replace("1.25", "1.0")),
        "model.json is damaged",
    ),
    "half a description": (lambda archive: (archive / DESCRIPTION).write_text("{"), "is damaged, it is not JSON"),
    "a later format": (lambda archive: rewritten(archive, format=2), "of format 2, and this version reads format 1"),
    "weights of another model": (other_weights, "do not fit model 'convnet'"),
}


@pytest.mark.parametrize(("spoil", "told"), FAULTS.values(), ids=FAULTS)
def test_what_is_not_whole_is_refused(spoil, told, archive):
    spoil(archive)
    with pytest.raises(cj.InputError) as error:
        cj.load_classifier(archive)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_an_archive_has_one_set_of_weights(archive):
    with pytest.raises(cj.InputError, match=r"which is 'best', and the archive .* holds one set of weights"):
        cj.load_classifier(archive, "best")


def test_the_missing_library_is_named(archive, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(cj.InputError, match=r"pip install -c constraints.txt -e '.\[export\]'"):
        cj.load_classifier(archive)
