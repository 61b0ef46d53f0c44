"""Images that do not fit the device: the results are those of images on the device, bit for bit."""

import jax
import numpy as np
import pytest

import cifar_jax as cj
from cifar_jax.runs import devices, programs, stream
from cifar_jax.runs.devices import Placement
from cifar_jax.studies.execution import time_steps
from tests import made

DATA = {"train": made.split(98, seed=0), "test": made.split(168, seed=1)}
FIELDS = {
    "epochs": 2,
    "batch_size": 4,
    "data.validation": 32,
    "model.dropout": 0.3,
    "augment.flip": 0.5,
    "average.decay": 0.9,
    "part_steps": 16,
}
SMALL = 30_000  # bytes: the images take 18,816, a part of two steps 1,536


def fit(workdir=None, changes=None, **options):
    return cj.fit(made.recipe({**FIELDS, **(changes or {})}), workdir, data=DATA, progress=False, **options)


@pytest.fixture(scope="module")
def resident():
    return fit()


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(devices, "device_memory", lambda device: SMALL)


def same(one, other):
    made.assert_same(one.state, other.state)
    times = ("seconds", "images_per_second")
    for ours, theirs in zip(one.history, other.history, strict=True):
        assert {k: v for k, v in ours.items() if k not in times} == {k: v for k, v in theirs.items() if k not in times}


def test_a_streamed_run_is_the_run_on_the_device_bit_for_bit(resident, small, monkeypatch):
    put, largest = Placement.put, []

    def recorded(self, tree):
        largest.append(max((leaf.nbytes for leaf in jax.tree.leaves(tree) if leaf.dtype == np.uint8), default=0))
        return put(self, tree)

    monkeypatch.setattr(Placement, "put", recorded)
    run = fit()
    same(run, resident)
    assert run.recipe.part_steps == 2
    assert run.evaluation.loss == resident.evaluation.loss
    np.testing.assert_array_equal(run.evaluation.confusion_matrix, resident.evaluation.confusion_matrix)
    held_out = DATA["train"].images[:32].nbytes
    assert max(largest) == held_out  # neither the training nor the test images were ever there at once


def test_early_stopping_ends_a_streamed_run_where_it_ends_another(small, monkeypatch):
    changes = {"early_stopping.patience": 1, "epochs": 6, "optimizer.learning_rate": 0.2, "part_steps": 0}
    streamed = fit(None, changes)
    monkeypatch.undo()
    whole = fit(None, changes)
    assert whole.reason == "early stopping"
    same(streamed, whole)


def test_a_streamed_run_resumes_exactly_inside_an_epoch_and_on_a_larger_device(resident, small, tmp_path, monkeypatch):
    stop = lambda event: event.step >= 10
    stopped = fit(tmp_path, callbacks=[stop], stoppable=True)
    assert (int(stopped.state.step), stopped.reason) == (10, "stopped")
    later = fit(tmp_path, callbacks=[lambda event: event.step >= 20], stoppable=True, resume=True)
    monkeypatch.undo()
    stop = lambda event: event.step >= 20
    same(later, fit(None, {"part_steps": 4}, callbacks=[stop], stoppable=True))
    same(fit(tmp_path, resume=True), resident)


def test_each_image_comes_once_an_epoch_with_its_label_and_its_position():
    split = DATA["train"]
    chosen = np.arange(3, 98)
    streamed = stream.Streamed(split.images, split.labels, chosen, 10)
    recipe = made.recipe({**FIELDS, "data.train_count": len(chosen)})
    seen = []
    for start in range(0, 23, 5):
        images, labels, positions = streamed.batches(recipe, 1, start, min(5, 23 - start))
        np.testing.assert_array_equal(images, split.images[chosen[positions.reshape(-1)]])
        np.testing.assert_array_equal(labels, split.labels[chosen[positions.reshape(-1)]])
        seen += positions.reshape(-1).tolist()
    assert len(set(seen)) == 92
    assert max(seen) <= 94


@pytest.mark.parametrize(
    ("memory", "changes", "answer"),
    [
        (
            1 << 10,
            {"data.validation": 0},
            r"the images of a batch take 7\.15e-07 GiB, and may take a sixteenth of the device's 9\.54e-07 GiB; lower",
        ),
        (
            20_000,
            {},
            r"the validation images take 5\.72e-06 GiB, and may take a quarter of the device's 1\.86e-05 GiB; hold out",
        ),
        (SMALL, {"average.start_epoch": 1, "average.decay": 0.0}, r"average\.start_epoch needs them there; use"),
        (SMALL, {"chunk_epochs": 2, "part_steps": 0}, r"chunk_epochs=2 joins epochs; set it to 1"),
    ],
)
def test_what_cannot_be_streamed_is_refused_with_both_sizes(memory, changes, answer, monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "device_memory", lambda device: memory)
    with pytest.raises(cj.InputError, match=answer):
        fit(tmp_path, changes)
    assert not list(tmp_path.iterdir())


def test_a_model_that_looks_at_images_before_training_gets_the_first_of_them_or_is_refused(monkeypatch):
    monkeypatch.setattr(stream, "FIRST", 24)
    monkeypatch.setattr(devices, "device_memory", lambda device: 36_000)  # 2,250 bytes hold 11 images
    assert stream.first_count(DATA, Placement()) == 11
    monkeypatch.setattr(stream, "PART", 1 / 4)
    count, split = stream.first_count(DATA, Placement()), DATA["train"]
    assert count == 24
    first = stream.Streamed(split.images, split.labels, np.arange(98), count).first()
    model = {"name": "speedrun94", "widths": (4,), "whitening_images": 24}
    recipe = made.recipe({"model": model, "data.train_count": 98})
    made.assert_same(programs.first_state(recipe, first), programs.first_state(recipe, split.images))
    more = cj.override(recipe, {"model.whitening_images": 25})
    with pytest.raises(cj.InputError, match="the model asks for 25 images before training, and of images that do not"):
        programs.first_state(more, first)


def test_a_study_trains_on_streamed_images_one_run_after_another(small, monkeypatch, tmp_path):
    recipe = made.recipe({**FIELDS, "epochs": 1})
    options = {"data": DATA, "progress": False, "seeds": 2}
    with pytest.raises(cj.InputError, match="execution='mapped' computes several runs at once, and the images do not"):
        cj.ablate(recipe, folder=tmp_path / "mapped", execution="mapped", **options)
    table = cj.ablate(recipe, folder=tmp_path / "streamed", **options)
    monkeypatch.undo()
    single = cj.fit(cj.override(recipe, {"seed": 1}), data=DATA, evaluate="validation", progress=False)
    made.assert_same(cj.load_run(tmp_path / "streamed/runs/base/seed1").state, single.state)
    assert list(table.rows[0].values.values())[1] == pytest.approx(single.evaluation.accuracy)


def test_a_measurement_needs_the_first_images_only():
    split = DATA["train"]
    first = split.images[:24], split.labels[:24]
    compiling, seconds = time_steps(made.recipe({"data.train_count": 98, "batch_size": 4}), first, None)
    assert compiling >= 0
    assert seconds > 0
