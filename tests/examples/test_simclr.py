"""The example trains a contrastive objective through the public API alone."""

import importlib.util
import re
from pathlib import Path

import pytest

from tests import made

EXAMPLE = Path(__file__).parents[2] / "examples" / "simclr.py"


@pytest.fixture(scope="module")
def simclr():
    spec = importlib.util.spec_from_file_location("simclr", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_views_learn_to_find_each_other_and_the_probe_reads_the_classes(simclr, monkeypatch, capsys):
    """64 images of 8x8: far above chance, which is 1 in 31 for the views and 25% for the classes."""
    monkeypatch.setattr(simclr, "load", lambda name, split: made.split(64, seed=len(split)))
    run, accuracy = simclr.main(["--epochs=20", "--width=4", "--batch_size=16"])
    first, last = run.history[0], run.history[-1]
    assert last["train_loss"] < first["train_loss"]
    assert last["train_found"] > 3 / 31
    assert accuracy > 0.4
    assert last["train_accuracy"] is None
    assert re.search(r"linear probe: test accuracy \d", capsys.readouterr().out)
