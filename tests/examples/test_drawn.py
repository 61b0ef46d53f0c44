"""The drawn data sets: the same images each time, and a run from folder to report."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import cifar_jax as cj
from cifar_jax.data.load import load_splits

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_two_percent_of_the_parts_have_a_defect_and_the_splits_do_not_depend_on_the_share(tmp_path):
    parts = example("draw_parts")
    assert (parts.kinds(5000).count("scratched"), parts.kinds(5000).count("dented")) == (50, 50)
    parts.main([str(tmp_path / "all"), "--scale=0.04"])
    parts.main([str(tmp_path / "half"), "--scale=0.04", "--share=0.5"])
    contents = lambda folder: {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.png")}
    whole, half = contents(tmp_path / "all"), contents(tmp_path / "half")
    assert len(whole) == 500
    assert len(half) == 400
    assert half.items() <= whole.items()


def test_a_defect_changes_the_part_that_it_is_on():
    """The same random numbers draw the metal first: what differs is the defect."""
    parts = example("draw_parts")
    good, scratched, dented = (parts.draw(kind, np.random.RandomState(3)).astype(int) for kind in parts.CLASSES)
    assert good.shape == (64, 64, 3)
    assert np.abs(scratched - good).max() > 3 * np.abs(good - np.median(good)).mean()
    assert np.abs(dented - scratched).mean() > 1


def test_cells_are_trained_on_and_reported(tmp_path):
    """Three commands, from a folder to a report; 45 cells teach nothing that could be relied on."""
    example("draw_cells").main([str(tmp_path / "cells"), "--count=15"])
    fields = {"data.path": str(tmp_path / "cells"), "data.image_size": 16, "model.widths": (4, 4), "epochs": 1}
    recipe = cj.load_recipe("configs/cells.py", {**fields, "batch_size": 8})
    assert load_splits(recipe.data, test=True, progress=False)["train"].classes == example("draw_cells").CLASSES
    cj.fit(recipe, tmp_path / "run", progress=False)
    assert "neutrophil" in cj.report(tmp_path / "run", progress=False).read_text()
