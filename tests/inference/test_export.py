"""Exports: what is written agrees with the classifier, here and in clean processes; a folder is whole or absent."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path

import jax
import numpy as np
import pytest

import cifar_jax as cj
from cifar_jax import cli
from cifar_jax.runs.classifier import Classifier
from cifar_jax.runs.workdir import Run
from cifar_jax.training import evaluated_weights
from tests import made

pytest.importorskip("safetensors")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from cifar_jax.inference import export as exporting
from cifar_jax.inference import onnx_convert, stablehlo
from cifar_jax.inference.model_card import accuracy_interval

ROOT = Path(__file__).parents[2]
DATA = {name: made.split(64, seed=seed) for seed, name in enumerate(("train", "validation", "test"))}
IMAGES = np.random.RandomState(0).randint(0, 256, (5, 8, 8, 3)).astype(np.uint8)
SCRIPTS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of a small ResNet with a temperature, which all formats suit."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    model = {"name": "resnet18", "stages": (1, 1), "width": 4}
    run = cj.fit(made.recipe(model=model, epochs=2), folder, data=DATA, progress=False)
    cj.calibrate(run, data=DATA, progress=False)
    return folder


@pytest.fixture(scope="module")
def exported(workdir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports") / "small"
    return cj.export(cj.load_run(workdir), folder)


def run_of(recipe, **facts):
    """A run that was never trained and lies nowhere."""
    state = made.init(recipe)
    return Run(recipe, state, made.split().classes, [], None, None, {}, **facts)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_everything_is_written_and_agrees(workdir, exported):
    assert exported.sizes.keys() == exporting.FILES.keys() == {path.name for path in exported.folder.iterdir()}
    assert exported.left_out == {}
    assert exported.differences.keys() == {"model.stablehlo", "model.onnx"}
    assert max(exported.differences.values()) < 1e-4
    classifier = cj.load_classifier(workdir)
    made.assert_same(cj.load_classifier(exported.folder).weights, jax.device_get(classifier.weights))
    for images in (IMAGES, IMAGES[:1]):
        archive = cj.load_classifier(exported.folder)
        np.testing.assert_array_equal(archive.probabilities(images), classifier.probabilities(images))
        for run in (stablehlo.run_stablehlo, onnx_convert.run_onnx):
            file = {stablehlo.run_stablehlo: "model.stablehlo", onnx_convert.run_onnx: "model.onnx"}[run]
            outputs = run(exported.folder / file, images)
            np.testing.assert_allclose(outputs["probabilities"], classifier.probabilities(images), atol=1e-5)
            np.testing.assert_allclose(outputs["embedding"], classifier.embeddings(images), atol=1e-5, rtol=1e-5)


def test_the_description_says_what_the_run_is(workdir, exported):
    description, run = json.loads((exported.folder / "model.json").read_text()), cj.load_run(workdir)
    assert description["architecture"] == "resnet18"
    assert description["temperature"] == run.temperature != 1
    assert description["metrics"]["test"] == json.loads(json.dumps(run.evaluation.to_json()))
    assert description["digests"]["data"] == run.digests
    assert description["normalisation"] == {"mean": list(run.recipe.data.mean), "std": list(run.recipe.data.std)}


def test_the_program_is_for_three_platforms_and_any_batch(exported):
    program = stablehlo.read_stablehlo(exported.folder / "model.stablehlo")
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert str(program.in_avals[0].shape[0]) == "batch"


def test_half_precision_is_computed_on_accelerators_only(tmp_path):
    model = {"name": "cnn", "width": 4, "kernel_size": 3, "hidden": 8}
    run = run_of(made.recipe(model=model, dtype="bfloat16"))
    stablehlo.write_stablehlo(tmp_path / "model.stablehlo", run.classifier)
    text = stablehlo.read_stablehlo(tmp_path / "model.stablehlo").mlir_module()
    assert "bf16" in text
    exact = Classifier(made.recipe(model=model), evaluated_weights(run.state), run.classes)
    outputs = stablehlo.run_stablehlo(tmp_path / "model.stablehlo", IMAGES)
    np.testing.assert_allclose(outputs["probabilities"], exact.probabilities(IMAGES), atol=1e-6)


@pytest.mark.parametrize(
    ("day", "until"),
    [
        (date(2026, 1, 5), date(2026, 7, 5)),
        (date(2026, 8, 31), date(2027, 2, 28)),
        (date(2027, 8, 31), date(2028, 2, 29)),
        (date(2026, 6, 30), date(2026, 12, 30)),
        (date(2026, 7, 1), date(2027, 1, 1)),
    ],
)
def test_six_months(day, until):
    assert stablehlo.readable_until(day) == until


def test_a_model_without_embedding_has_probabilities(tmp_path):
    import flax.linen as nn

    class Headless(nn.Module):
        @nn.compact
        def __call__(self, images, *, train):
            return nn.Dense(4, name="last")(images.reshape(images.shape[0], -1))

    recipe = made.resolved(cj.override(made.recipe(), {"model.name": Headless()}))
    done = cj.export(run_of(recipe), tmp_path / "out")
    assert set(onnx_convert.run_onnx(tmp_path / "out" / "model.onnx", IMAGES)) == {"probabilities"}
    assert "the model is a Headless" in done.left_out["torchvision.safetensors"]
    again = cj.load_classifier(tmp_path / "out", model=Headless())
    outputs = stablehlo.run_stablehlo(tmp_path / "out" / "model.stablehlo", IMAGES)
    np.testing.assert_allclose(outputs["probabilities"], again.probabilities(IMAGES), atol=1e-6)
    with pytest.raises(cj.InputError, match="pass the function itself"):
        cj.load_classifier(tmp_path / "out")


def metadata(card):
    block = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    assert block
    return pytest.importorskip("yaml").safe_load(block[1])


def test_the_card_has_the_figures_of_the_run(workdir, exported):
    card, seen = (exported.folder / "README.md").read_text(), cj.load_run(workdir).evaluation
    block = metadata(card)
    assert block["pipeline_tag"] == "image-classification"
    (result, *_) = block["model-index"][0]["results"]
    assert result["dataset"]["split"] == "test"
    assert {each["type"]: each["value"] for each in result["metrics"]} == {"accuracy": seen.accuracy, "loss": seen.loss}
    low, high = accuracy_interval(round(seen.accuracy * 64), 64)
    assert f"| accuracy | {seen.accuracy:.2%} | {low:.2%} to {high:.2%} |" in card
    assert all(f"`{name}`" in card for name in exporting.FILES)
    assert str(stablehlo.readable_until(date.today())) in card
    assert "no temperature was fitted" not in card


def test_the_interval_is_wilsons():
    """Wilson 1927 by hand, for 81 of 263 (Newcombe 1998, table I, method 3: 0.2553 to 0.3662)."""
    assert accuracy_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_a_run_without_evaluation_claims_nothing(tmp_path):
    cj.export(run_of(made.recipe()), tmp_path / "out", formats=[])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "The run stores no evaluation." in card
    assert "model-index" not in metadata(card)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.safetensors", "model.json", "README.md"}


def refused(*arguments, **options):
    with pytest.raises(cj.InputError) as error:
        cj.export(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_that_exists_is_refused_and_stays(tmp_path):
    run, out = run_of(made.recipe()), tmp_path / "out"
    cj.export(run, out, formats=[])
    before = files(out)
    assert "exists; name another folder, or replace an export with --force" in refused(run, out, formats=[])
    assert files(out) == before
    cj.export(replace(run, temperature=2.0), out, formats=[], force=True)
    assert cj.load_classifier(out).temperature == 2.0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_force_replaces_nothing_that_no_export_wrote(tmp_path, workdir):
    run, out = run_of(made.recipe()), tmp_path / "out"
    assert "is no export" in refused(run, workdir, formats=[], force=True)
    cj.export(run, out, formats=[])
    (out / "notes.txt").write_text("mine")
    before = files(out)
    assert "holds 'notes.txt', which no export wrote" in refused(run, out, formats=[], force=True)
    assert files(out) == before
    (tmp_path / "file").write_text("")
    assert "is no export" in refused(run, tmp_path / "file", formats=[], force=True)


def test_an_export_that_fails_leaves_nothing_and_keeps_the_old_one(tmp_path, monkeypatch):
    run, out = run_of(made.recipe()), tmp_path / "out"
    cj.export(run, out, formats=[])
    before = files(out)
    spoiled = lambda path, images: {"probabilities": np.full((len(images), 4), 0.25), "embedding": np.nan}
    monkeypatch.setattr(exporting, "RUNNERS", {**exporting.RUNNERS, "model.onnx": ("cpu", spoiled)})
    assert "model.onnx differs from the model by" in refused(run, out, formats=["onnx"], force=True)
    assert files(out) == before
    assert "model.onnx differs from the model by" in refused(run, tmp_path / "new", formats=["onnx"])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_was_asked_for_and_cannot_be_written_is_an_error(tmp_path):
    line = refused(run_of(made.recipe()), tmp_path / "out", formats=["torchvision"])
    assert line.startswith(
        "torchvision.safetensors cannot be written: torchvision's names are known for ResNet and VGG"
    )
    assert "format 'onxx' is unknown; did you mean 'onnx'?" in refused(
        run_of(made.recipe()), tmp_path / "out", formats=["onxx"]
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("library", ["safetensors", "onnx", "onnxruntime"])
def test_a_missing_library_is_named_before_anything_is_written(library, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    line = refused(run_of(made.recipe()), tmp_path / "out")
    assert f"the library {library}" in line
    assert "pip install -c constraints.txt -e '.[export]'" in line
    assert not list(tmp_path.iterdir())


def test_the_command(workdir, tmp_path, capsys):
    arguments = ["export", f"--workdir={workdir}", f"--out={tmp_path / 'out'}", "--formats=onnx"]
    assert cli.main(arguments) == 0
    assert "model.onnx" in (printed := capsys.readouterr().out)
    assert "model.stablehlo" not in printed
    assert cli.main(arguments) == 2
    assert "exists; name another folder" in capsys.readouterr().err
    assert cli.main(["export", f"--workdir={tmp_path / 'none'}", f"--out={tmp_path / 'other'}"]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def in_a_clean_process(python, script, folder, **environment):
    """Runs a script of docs/export.md where cifar_jax cannot be imported; the probabilities that it computes."""
    (folder / "script.py").write_text(
        f"import sys\nsys.modules['cifar_jax'] = None\n{script}\nnp.save('probabilities.npy', probabilities)\n"
    )
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-I", "script.py"], cwd=folder, env=kept | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return np.load(folder / "probabilities.npy"), done.stdout


@pytest.mark.parametrize("library", ["jax", "onnxruntime"])
def test_the_scripts_of_the_page_run_without_cifar_jax(library, exported, workdir, tmp_path):
    (script,) = [script for script in SCRIPTS if re.search(rf"^(import|from) {library}\b", script, re.MULTILINE)]
    assert len([line for line in script.splitlines() if line]) <= 12
    (tmp_path / "exported").symlink_to(exported.folder)
    np.save(tmp_path / "images.npy", IMAGES)
    found, printed = in_a_clean_process(sys.executable, script, tmp_path, JAX_PLATFORMS="cpu")
    classifier = cj.load_classifier(workdir)
    np.testing.assert_allclose(found, classifier.probabilities(IMAGES), atol=1e-5)
    assert printed.strip() == str(classifier.predict(IMAGES).names)
