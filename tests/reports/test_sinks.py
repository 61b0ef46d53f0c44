"""What TensorBoard and Weights & Biases get, read back from their files."""

import struct
import sys

import pytest

import cifar_jax as cj
from cifar_jax.reports import sinks
from tests import made

DATA = {"train": made.split(96, seed=0), "test": made.split(40, seed=1)}
RECIPE = made.recipe({"epochs": 3, "batch_size": 16, "data.validation": 32})


def scalars(folder):
    """(name, step) -> value of all event files, which are TFRecords: length, its checksum, record, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in sorted(folder.glob("events.*")):
        content, place = path.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack_from("<Q", content, place)
            event = Event.FromString(content[place + 12 : place + 12 + length])
            place += 16 + length
            for value in event.summary.value:
                assert (value.tag, event.step) not in found, "written twice"
                found[value.tag, event.step] = value.simple_value
    return found


def test_tensorboard_has_the_figures_of_every_epoch_once(tmp_path):
    """Also where the run was stopped in between and resumed."""
    stop = lambda event: event.step == 4
    options = {"data": DATA, "progress": False}
    cj.fit(RECIPE, tmp_path, callbacks=[sinks.TensorBoard(), stop], stoppable=True, evaluate=None, **options)
    run = cj.fit(RECIPE, tmp_path, callbacks=[sinks.TensorBoard()], resume=True, **options)
    found = scalars(tmp_path / "tensorboard")
    for line in run.history:
        assert found["loss/train", line["step"]] == pytest.approx(line["train_loss"])
        assert found["accuracy/validation", line["step"]] == pytest.approx(line["validation_accuracy"])
        assert found["learning_rate", line["step"]] == pytest.approx(line["learning_rate"])
    assert {step for _, step in found} == {4, 8, 12}


def test_weights_and_biases_works_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs the extra wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    cj.fit(RECIPE, tmp_path, data=DATA, callbacks=[sinks.WeightsAndBiases()], progress=False)
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_what_a_log_lacks_is_told(tmp_path, monkeypatch):
    with pytest.raises(cj.InputError, match="the log 'tensorboard' needs a workdir"):
        cj.fit(RECIPE, data=DATA, callbacks=[sinks.TensorBoard()], progress=False)
    monkeypatch.setitem(sys.modules, "tensorboardX.event_file_writer", None)
    with pytest.raises(
        cj.InputError, match=r"needs tensorboardX.*pip install -c constraints.txt -e '.\[tensorboard\]'"
    ):
        sinks.TensorBoard()


def test_what_was_not_measured_is_left_out():
    line = {"epoch": 1, "step": 4, "train_loss": 0.5, "validation_loss": None, "seconds": 2.0}
    assert sinks.figures(line) == {"loss/train": 0.5, "seconds": 2.0}
