"""What `fit` promises: validation-only runs, callbacks, parts of epochs, shared programs, seeds, identity of a run."""

import json
import shutil
import threading

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.utils.class_weight import compute_class_weight

import cifar_jax as cj
from cifar_jax import training
from cifar_jax.recipe import flatten
from cifar_jax.runs import devices, loop, programs, stopping
from cifar_jax.runs import fit as fitting
from cifar_jax.runs.checkpoint import Checkpoints
from cifar_jax.runs.workdir import load_classifier
from tests import made

DATA = {"train": made.split(96, seed=0), "test": made.split(40, seed=1)}
FIELDS = {"epochs": 3, "batch_size": 16, "data.validation": 32, "model.dropout": 0.3, "augment.flip": 0.5}


def fit(workdir=None, changes=None, data=DATA, **options):
    return cj.fit(made.recipe({**FIELDS, **(changes or {})}), workdir, data=data, progress=False, **options)


def same(one, other):
    made.assert_same(one.state, other.state)


# --- evaluate ---


def test_a_validation_run_never_touches_the_test_split(tmp_path, monkeypatch):
    loaded = []
    load = lambda name, split, *rest: loaded.append(split) or DATA[split]
    monkeypatch.setattr(fitting.arrays, "load", load)
    run = cj.fit(made.recipe(FIELDS), tmp_path, evaluate="validation", progress=False)
    assert loaded == ["train"]
    assert (run.evaluation.split, run.evaluation.count, run.reason) == ("validation", 32, "finished")
    assert run.evaluation.accuracy == run.history[-1]["validation_accuracy"]
    assert not (tmp_path / "evaluation.json").exists()
    assert json.loads((tmp_path / "run.json").read_text())["complete"]
    assert cj.fit(made.recipe(FIELDS), tmp_path, evaluate="validation", progress=False).evaluation.count == 32
    assert loaded == ["train"]  # a complete run needs no data


def test_a_complete_run_is_evaluated_on_test_later_without_training_again(tmp_path, monkeypatch):
    first = fit(tmp_path, evaluate="validation")
    monkeypatch.setattr(loop, "launch", lambda *arguments: pytest.fail("trained again"))
    later = fit(tmp_path)
    same(first, later)
    assert (later.evaluation.split, later.evaluation.count) == ("test", 40)
    assert cj.load_run(tmp_path).evaluation.split == "test"


def test_without_evaluation_the_run_is_complete(tmp_path):
    run = fit(tmp_path, evaluate=None)
    assert (run.evaluation, run.reason) == (None, "finished")
    assert cj.load_run(tmp_path).reason == "finished"


def test_data_may_hold_its_own_validation_split():
    data = {**DATA, "validation": made.split(24, seed=3)}
    run = fit(None, {"data.validation": 8}, data, evaluate="validation")
    assert run.recipe.data.train_count == 96
    assert run.recipe.data.validation == 0
    assert run.evaluation.count == 24
    assert run.history[-1]["validation_accuracy"] == run.evaluation.accuracy
    assert cj.evaluate(run, "validation", data=data).count == 24


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ({"evaluate": "tset"}, "evaluate is 'tset'; it is one of 'test', 'validation', None"),
        (
            {"evaluate": "validation", "changes": {"data.validation": 0}},
            "evaluate='validation' needs a validation split",
        ),
        ({"changes": {"data.validation": 0, "early_stopping.patience": 2}}, "patience needs a validation split"),
        ({"data": {"train": DATA["train"]}}, "data has no split 'test' to evaluate; it has 'train'"),
        ({"data": {"test": DATA["test"]}}, "data needs the split 'train'"),
        ({"data": {**DATA, "extra": DATA["test"]}}, "unknown split 'extra'"),
    ],
)
def test_what_cannot_be_evaluated_is_told_before_anything_is_written(options, answer, tmp_path):
    with pytest.raises(cj.InputError) as error:
        fit(tmp_path / "run", **options)
    assert answer in str(error.value)
    assert not (tmp_path / "run").exists()


# --- data of the caller's own ---


def test_plain_arrays_train_and_the_recipe_names_them():
    data = {name: (split.images, split.labels) for name, split in DATA.items()}
    run = fit(None, data=data)
    assert run.classes == ("0", "1", "2", "3")
    assert run.recipe.data.name == "arrays"
    named = cj.dataset(DATA["train"].images, DATA["train"].labels, name="blobs")
    assert fit(None, data={"train": named, "test": data["test"]}).recipe.data.name == "blobs"


@pytest.mark.parametrize(
    ("images", "labels", "answer"),
    [
        (
            DATA["train"].images / 255,
            DATA["train"].labels,
            "images have dtype float64 and shape",
        ),
        (DATA["train"].images[..., 0], DATA["train"].labels, "images[..., None]"),
        (DATA["train"].images, DATA["train"].labels[:50], "labels have shape (50,)"),
        (DATA["train"].images, DATA["train"].labels.astype(float), "of dtype float64"),
        (DATA["train"].images, np.where(np.arange(96) == 7, -1, DATA["train"].labels), "labels[7] is -1"),
    ],
)
def test_arrays_that_would_train_wrongly_are_refused(images, labels, answer):
    with pytest.raises(cj.InputError) as error:
        fit(None, data={"train": (images, labels), "test": DATA["test"]})
    assert answer in str(error.value)


def test_labels_beyond_the_classes_are_refused():
    """They used to vanish from the metrics: accuracy 1.0 on 13 of 20 images."""
    with pytest.raises(cj.InputError, match=r"labels\[.*\] is 3"):
        cj.dataset(DATA["train"].images, DATA["train"].labels, classes=("a", "b", "c"))


# --- callbacks ---


def test_callbacks_see_every_line_once_and_the_earlier_ones_of_a_resumed_run(tmp_path):
    events = []
    fit(tmp_path, callbacks=[events.append])
    assert [event.step for event in events] == [0, 4, 8, 12]
    assert [[line["epoch"] for line in event.lines] for event in events] == [[], [1], [2], [3]]
    assert all(event.total_steps == 12 and event.workdir == tmp_path for event in events)
    with pytest.raises(cj.InputError, match="stoppable=True"):
        events[-1].classifier()


def test_a_callback_stops_the_run_and_resume_continues_it(tmp_path):
    whole, seen = fit(None), []
    stop = lambda event: event.step >= 4
    stopped = fit(tmp_path, callbacks=[stop], stoppable=True)
    assert (stopped.reason, int(stopped.state.step), len(stopped.history)) == ("stopped", 4, 1)
    assert stopped.evaluation.split == "test"
    assert fit(tmp_path).reason == "stopped"  # complete: the same call returns it
    resumed = fit(tmp_path, resume=True, callbacks=[seen.append])
    same(resumed, whole)
    assert resumed.reason == "finished"
    assert [line["epoch"] for line in seen[0].lines] == [1]


def test_without_stoppable_the_chunk_that_runs_already_is_finished_logged_and_saved(tmp_path):
    stopped = fit(tmp_path, callbacks=[lambda event: event.step == 4])
    assert (stopped.reason, int(stopped.state.step), len(stopped.history)) == ("stopped", 8, 2)
    same(cj.load_run(tmp_path), stopped)


def test_an_average_that_outlasts_the_run_is_told():
    with pytest.warns(UserWarning, match=r"0.99, and the run has 12 steps: in the end 89% .* take at most 0.68"):
        fit(changes={"average.decay": 0.99}, evaluate=None)


def test_an_exception_in_a_callback_ends_the_run_after_saving(tmp_path):
    def fail(event):
        if event.step == 4:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, {"checkpoint.every_epochs": 100}, callbacks=[fail], stoppable=True)
    for load in (cj.load_run, cj.load_classifier):
        with pytest.warns(UserWarning, match=r"is not finished; its checkpoint is used \(step 4 of 12\)"):
            load(tmp_path)
    assert int(cj.load_run(tmp_path).state.step) == 4
    assert cj.load_run(tmp_path).reason is None
    same(fit(tmp_path, {"checkpoint.every_epochs": 100}), fit(None))


def test_a_stoppable_event_gives_the_classifier_of_its_step():
    accuracies = []

    def measure(event):
        predicted = event.classifier().predict(DATA["test"].images).indices
        accuracies.append(float((predicted == DATA["test"].labels).mean()))

    run = fit(None, callbacks=[measure], stoppable=True)
    assert len(accuracies) == 4
    assert accuracies[-1] == run.evaluation.accuracy


# --- parts of epochs ---


@pytest.mark.parametrize("average", [{}, {"average.start_epoch": 2}, {"average.decay": 0.9}], ids=str)
def test_parts_of_an_epoch_are_the_whole_epoch_bit_for_bit(average):
    whole = fit(None, average)
    for steps in (1, 3):  # four steps an epoch: 1 + 1 + 1 + 1, and 3 + 1
        parts = fit(None, {**average, "part_steps": steps})
        same(parts, whole)
        for one, other in zip(parts.history, whole.history, strict=True):
            for name in one.keys() - {"seconds", "images_per_second"}:
                assert one[name] == other[name], name


@pytest.mark.parametrize("later", [1, 100])
def test_a_run_resumes_inside_an_epoch(later, tmp_path):
    """Saved after each part; stopped in the second epoch, whose line needs the sums of the parts before. The later
    parts may be longer."""
    changes = {"part_steps": 1, "checkpoint.every_minutes": 0.0}
    stopped = fit(tmp_path, changes, callbacks=[lambda event: event.step == 6], stoppable=True, evaluate=None)
    assert (int(stopped.state.step), len(stopped.history)) == (6, 1)
    resumed, whole = fit(tmp_path, {**changes, "part_steps": later}, resume=True), fit(None, changes)
    same(resumed, whole)
    assert [line["train_loss"] for line in resumed.history] == [line["train_loss"] for line in whole.history]
    assert [line["train_accuracy"] for line in resumed.history] == [line["train_accuracy"] for line in whole.history]


@pytest.mark.parametrize(
    ("every_epochs", "seconds", "expected"),
    [(0, 1e9, [12]), (0, 0.0, [4, 8, 12]), (1, 1e9, [4, 8, 12]), (2, 0.0, [8, 12])],
)
def test_epochs_are_saved_by_time_or_by_their_number(every_epochs, seconds, expected, monkeypatch, tmp_path):
    """A save costs more than a short epoch: by default there are seconds between two, and one at the end."""
    saved, save = [], Checkpoints.save
    recorded = lambda self, step, *rest, **more: saved.append(step) or save(self, step, *rest, **more)
    monkeypatch.setattr(Checkpoints, "save", recorded)
    monkeypatch.setattr(stopping, "SAVE_SECONDS", seconds)
    run = fit(tmp_path, {"checkpoint.every_epochs": every_epochs}, evaluate=None)
    assert saved == expected
    same(cj.load_run(tmp_path), run)


def test_long_epochs_are_split_evenly_by_their_cost(monkeypatch):
    recipe = made.recipe(FIELDS)
    assert programs.part_steps(recipe, 12) == 12
    cost = 12 * 16 * programs.counts(programs.training.model(recipe), (8, 8, 3))[1]
    monkeypatch.setattr(programs, "PART_COST", {"cpu": cost / 5})
    assert programs.part_steps(recipe, 12) == 2  # six parts, because five are not even
    assert programs.part_steps(made.recipe(FIELDS, part_steps=7), 12) == 7
    assert programs.part_steps(made.recipe(FIELDS, chunk_epochs=2), 12) == 12


# --- programs ---


def compilations(call):
    """How many programs XLA compiled, or took from its cache on disk, during a call."""
    found = []

    def count(event, seconds, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        call()
    finally:
        jax.monitoring.clear_event_listeners()
    return len(found)


def test_runs_that_differ_in_traced_fields_share_their_programs():
    """A second fit compiles nothing; another width does, so the count counts."""
    smooth = {"loss.label_smoothing": 0.1}
    fit(None, smooth)
    values = {
        "seeds.weights": 5,
        "seeds.order": 6,
        "seeds.augmentation": 7,
        "optimizer.learning_rate": 0.05,
        "optimizer.weight_decay": 0.01,
        "optimizer.momentum": 0.5,
        "loss.label_smoothing": 0.2,
    }
    assert set(values) == set(programs.TRACED_FIELDS)
    base = fit(None, {**smooth, "optimizer.weight_decay": 0.0})
    for field, value in values.items():
        runs = []
        changes = {**smooth, "optimizer.weight_decay": 0.0, field: value}
        assert compilations(lambda changes=changes, runs=runs: runs.append(fit(None, changes))) == 0, field
        leaves = zip(jax.tree.leaves(runs[0].state.params), jax.tree.leaves(base.state.params), strict=True)
        assert any(np.any(one != other) for one, other in leaves), field  # and is not ignored
    assert compilations(lambda: fit(None, {**smooth, "model.width": 5})) > 0


def test_the_programs_of_a_recipe_take_what_the_recipe_has():
    assert set(programs.numbers(made.recipe(FIELDS))) == set(programs.TRACED_FIELDS) - {"optimizer.weight_decay"}
    own = made.recipe(FIELDS, **{"optimizer.name": lambda learning_rate: optax.sgd(learning_rate)})
    assert "optimizer.learning_rate" not in programs.numbers(own)


# --- seeds ---


def test_each_seed_changes_its_own_randomness_only():
    still = {"data.validation": 0, "model.dropout": 0.0, "augment.flip": 0.0, "epochs": 1}
    whole = {**still, "batch_size": 96, "gradient_accumulation": 1}
    base = fit(None, {**whole, "seed": 3})
    same(fit(None, {**whole, "seed": 3, "seeds.weights": 3, "seeds.order": 3, "seeds.augmentation": 3}), base)
    same(fit(None, {**whole, "seed": 9, "seeds.weights": 3, "seeds.order": 3}), base)  # nothing is augmented
    moved = fit(None, {**whole, "seed": 3, "seeds.weights": 4})
    assert np.any(moved.state.params["head"]["kernel"] != base.state.params["head"]["kernel"])
    parts = {**still, "seed": 3}
    ordered, other = fit(None, parts), fit(None, {**parts, "seeds.order": 4})
    assert np.any(ordered.state.params["head"]["kernel"] != other.state.params["head"]["kernel"])
    augmented = {**parts, "augment.flip": 0.5}
    one, two = fit(None, augmented), fit(None, {**augmented, "seeds.augmentation": 4})
    assert np.any(one.state.params["head"]["kernel"] != two.state.params["head"]["kernel"])


# --- identity ---


class Scaled(nn.Module):
    num_classes: int = 4
    scale: float = 1.0

    @nn.compact
    def __call__(self, images, *, train):
        x = images.reshape(len(images), -1)
        return self.scale * nn.Dense(self.num_classes, name="head")(x)


OTHERS = {
    "a field of a module": ({"model": Scaled(scale=1.0)}, {"model": Scaled(scale=2.0)}, "1.0 -> 2.0"),
    "a lambda": (
        {"schedule": lambda epoch, epochs: 1.0 + 0 * epoch},
        {"schedule": lambda epoch, epochs: 0.5 + 0 * epoch},
        "holds a run of another schedule",
    ),
    "an augmentation": (
        {"augment": lambda key, images, targets: (images, targets)},
        {"augment": lambda key, images, targets: (1 - images, targets)},
        "another augment",
    ),
    "a function that was not given": ({"model": Scaled()}, {}, "holds a run of another recipe"),
}


@pytest.mark.parametrize(("first", "second", "answer"), OTHERS.values(), ids=OTHERS)
def test_another_function_in_the_same_workdir_is_refused_and_named(first, second, answer, tmp_path):
    fit(tmp_path, {"epochs": 1}, **first)
    with pytest.raises(cj.InputError) as error:
        fit(tmp_path, {"epochs": 1}, **second)
    assert answer in str(error.value)
    fit(tmp_path, {"epochs": 1}, **first)  # the same one is the same run


def test_a_function_that_cannot_be_compared_trains_but_is_not_resumed(tmp_path):
    class Opaque:
        def __init__(self):
            self.lock = threading.Lock()

        def __call__(self, epoch, epochs):
            return jnp.ones_like(epoch)

    fit(tmp_path, {"epochs": 1}, schedule=Opaque())
    with pytest.raises(cj.InputError, match=r"cannot be resumed: schedule '.*Opaque' cannot be compared"):
        fit(tmp_path, {"epochs": 1}, schedule=Opaque())


@pytest.mark.parametrize("split", ["train", "test"])
def test_another_split_is_refused_and_named(split, tmp_path):
    fit(tmp_path)
    with pytest.raises(cj.InputError, match=f"split '{split}' has digest"):
        fit(tmp_path, data={**DATA, split: made.split(len(DATA[split].labels), seed=9)})


def test_a_deleted_recipe_json_does_not_turn_the_run_into_another_one(tmp_path):
    """It used to answer "complete; nothing to do" and to store the new recipe beside the old weights."""
    run = fit(tmp_path)
    (tmp_path / "recipe.json").unlink()
    with pytest.raises(cj.InputError, match=r"its recipe\.json is missing or damaged"):
        fit(tmp_path, {"seed": 5})
    with pytest.warns(UserWarning, match=r"recipe\.json is missing; it is written again"):
        same(fit(tmp_path), run)
    assert (tmp_path / "recipe.json").exists()
    for name in ("recipe.json", "run.json", "environment.json"):
        (tmp_path / name).unlink()
    with pytest.raises(cj.InputError, match=r"checkpoint 12 in .* was saved by a run with another recipe"):
        fit(tmp_path, {"seed": 5})


def flip_a_digit(path):
    text = path.read_text()
    position = max(index for index, character in enumerate(text) if character in "12345")
    path.write_text(text[:position] + chr(ord(text[position]) + 1) + text[position + 1 :])


def test_a_flipped_bit_in_any_file_is_reported(tmp_path):
    fit(tmp_path / "whole")
    for name in ("environment.json", "evaluation.json", "metrics.jsonl"):
        shutil.copytree(tmp_path / "whole", tmp_path / name)
        flip_a_digit(tmp_path / name / name)
        with pytest.warns(UserWarning, match=f"{name} is damaged, or was changed"):
            cj.load_run(tmp_path / name)
    for name, answer in (("recipe.json", "is damaged, or was changed"), ("run.json", "is damaged; restore it")):
        shutil.copytree(tmp_path / "whole", tmp_path / name)
        flip_a_digit(tmp_path / name / name)
        with pytest.raises(cj.InputError, match=answer):
            cj.load_run(tmp_path / name)


def test_a_workdir_of_an_older_version_is_refused_by_its_format(tmp_path):
    fit(tmp_path)
    (tmp_path / "run.json").unlink()
    with pytest.raises(cj.InputError, match="holds a run of format 0, and this version reads format 1"):
        fit(tmp_path)


def test_fields_that_cannot_change_results_may_differ_on_resume(tmp_path):
    run = fit(tmp_path)
    other = {"checkpoint.every_epochs": 2, "evaluation.batch_size": 7, "part_steps": 2, "checkpoint.every_minutes": 0.0}
    same(fit(tmp_path, other), run)
    with pytest.raises(cj.InputError, match=r"seed: 0 -> 1"):
        fit(tmp_path, {"seed": 1})


def test_dtype_auto_keeps_the_dtype_that_a_run_began_with(tmp_path):
    fit(tmp_path, {"dtype": "bfloat16", "epochs": 1})
    assert fit(tmp_path, {"dtype": "auto", "epochs": 1}).recipe.dtype == "bfloat16"


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(cj.InputError, match=r"fit runs in one process, and jax\.distributed has started 2"):
        fit(None)


def test_an_instance_of_an_optimiser_is_refused():
    with pytest.raises(cj.InputError, match=r"pass the function that makes it, such as optax\.adam"):
        fit(None, optimizer=optax.adam(1e-3))


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (
            lambda self, images: nn.Dense(7)(images.reshape(len(images), -1)),
            r"returns float32 \[16, 7\] for 16 images",
        ),
        (lambda self, images: (nn.Dense(4)(images.mean((1, 2))), 0), "returns a tuple for 16 images"),
    ],
)
def test_a_model_with_other_outputs_is_told_what_it_must_return(call, answer):
    class Wrong(nn.Module):
        @nn.compact
        def __call__(self, images, *, train):
            return call(self, images)

    with pytest.raises(cj.InputError, match=answer):
        fit(None, model=Wrong())


# --- what a run gives ---


def test_a_classifier_is_loaded_without_the_optimiser(tmp_path):
    for name, changes in {"plain": {}, "average": {"average.decay": 0.9}}.items():
        run = fit(tmp_path / name, changes)
        classifier = load_classifier(tmp_path / name)
        images = DATA["test"].images
        np.testing.assert_array_equal(classifier.logits(images), run.logits(images))
        probabilities = classifier.probabilities(images)
        np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-6)
        predictions = classifier.predict(images)
        assert predictions.names == [run.classes[index] for index in classifier.logits(images).argmax(-1)]
        assert classifier.embeddings(images).shape == (40, 8)
        head = classifier.weights["params"]["head"]
        logits = classifier.embeddings(images) @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
        np.testing.assert_allclose(logits, classifier.logits(images), rtol=1e-4, atol=1e-5)
        assert classifier.embeddings(images[:0]).shape == (0, 8)
        assert set(classifier.weights) == {"params", "batch_stats"}


def test_embeddings_of_a_model_without_a_head_are_refused_with_an_explanation():
    class Headless(nn.Module):
        @nn.compact
        def __call__(self, images, *, train):
            return nn.Dense(4)(images.reshape(len(images), -1))

    run = fit(None, {"epochs": 1}, model=Headless())
    with pytest.raises(cj.InputError, match="model 'Headless' has no module named 'head'"):
        run.classifier.embeddings(DATA["test"].images)


def test_the_repr_of_a_run_is_three_lines():
    lines = repr(fit(None)).splitlines()
    assert len(lines) == 3
    assert "finished after epoch 3 of 3" in lines[1]
    assert "test accuracy" in lines[2]


def test_images_are_enlarged_on_the_device(tmp_path):
    run = fit(tmp_path, {"data.input_size": 12, "model": {"name": "convnet", "widths": (4,), "convolutions": (1,)}})
    images = DATA["test"].images
    enlarged = jax.image.resize(images.astype(np.float32) / 255, (40, 12, 12, 3), "linear")
    inputs = (enlarged - jnp.asarray(run.recipe.data.mean)) / jnp.asarray(run.recipe.data.std)
    expected = programs.training.model(run.recipe).apply(run.classifier.weights, inputs, train=False)
    np.testing.assert_allclose(run.logits(images), expected, rtol=1e-4, atol=1e-5)
    assert cj.load_run(tmp_path).logits(images).shape == (40, 4)


def test_the_facts_of_a_data_set_are_no_fields():
    assert not {"data.num_classes", "data.train_count"} & flatten(cj.load_recipe("configs/cnn.py")).keys()
    with pytest.raises(cj.InputError, match=r"'data\.num_classes' is unknown"):
        cj.load_recipe("configs/cnn.py", {"data.num_classes": 3})


def test_an_old_recipe_loads_if_its_removed_fields_change_nothing(tmp_path):
    fit(tmp_path, {"epochs": 1})
    values = json.loads((tmp_path / "recipe.json").read_text())
    (tmp_path / "old.json").write_text(json.dumps({**values, "progressive_resizing": []}))
    assert cj.load_recipe(tmp_path / "old.json").epochs == 1
    (tmp_path / "old.json").write_text(json.dumps({**values, "progressive_resizing": [[0.5, 2]]}))
    with pytest.raises(cj.InputError, match=r"'progressive_resizing' is .*; it was removed"):
        cj.load_recipe(tmp_path / "old.json")


# --- predictions ---


def test_predictions_are_the_arrays_of_a_split(tmp_path):
    """Any metric is one line then: accuracy and AUC from scikit-learn equal ours."""
    from sklearn.metrics import accuracy_score, roc_auc_score

    run = fit(tmp_path)
    found = cj.predictions(run, "test", data=DATA, progress=False)
    assert found.probabilities.shape == (40, made.CLASSES)
    assert found.embeddings.shape[0] == 40
    np.testing.assert_array_equal(found.labels, DATA["test"].labels)
    np.testing.assert_array_equal(found.indices, np.arange(40))
    assert accuracy_score(found.labels, found.probabilities.argmax(-1)) == run.evaluation.accuracy
    assert 0 <= roc_auc_score(found.labels, found.probabilities, multi_class="ovr") <= 1
    np.testing.assert_allclose(found.embeddings, run.classifier.embeddings(DATA["test"].images), rtol=1e-6)
    held_out = cj.predictions(run, "validation", data=DATA, progress=False)
    np.testing.assert_array_equal(DATA["train"].labels[held_out.indices], held_out.labels)
    trained_on = cj.predictions(run, "train", data=DATA, progress=False)
    assert not set(held_out.indices) & set(trained_on.indices)
    assert len(held_out.indices) + len(trained_on.indices) == 96


def test_predictions_have_the_temperature_of_the_run(tmp_path):
    run = fit(tmp_path)
    _, after = cj.calibrate(run, data=DATA, progress=False)
    scaled = cj.predictions(cj.load_run(tmp_path), "validation", data=DATA, progress=False)
    loss = -np.log(scaled.probabilities[np.arange(32), scaled.labels]).mean()
    assert loss == pytest.approx(after.loss, rel=1e-4)
    with pytest.raises(cj.InputError, match="this run held out no images"):
        cj.calibrate(fit(tmp_path / "other", {"data.validation": 0}), data=DATA, progress=False)


def test_a_model_without_a_head_has_predictions_without_embeddings():
    class Headless(nn.Module):
        @nn.compact
        def __call__(self, images, *, train):
            return nn.Dense(made.CLASSES)(images.mean((1, 2)))

    run = cj.fit(made.recipe(FIELDS, model={"name": "cnn"}), data=DATA, model=Headless(), progress=False)
    assert cj.predictions(run, "test", data=DATA, progress=False).embeddings is None


# --- unbalanced data, and data that are too large ---


def unbalanced():
    split = made.split(96)
    kept = np.concatenate([np.flatnonzero(split.labels != 1), np.flatnonzero(split.labels == 1)[:6]])
    return cj.dataset(split.images[kept], split.labels[kept], split.classes)


def test_balanced_class_weights_are_those_of_the_images_that_are_trained_on(tmp_path):
    """They are resolved once, a complete run is found again, and the weights are those that a user could write."""
    data, fields = {"train": unbalanced()}, {"loss.class_weights": "balanced", "data.validation": 20}
    run = fit(tmp_path, fields, data=data, evaluate="validation")
    kept = np.setdiff1d(np.arange(78), cj.predictions(run, "validation", data=data, progress=False).indices)
    expected = compute_class_weight("balanced", classes=np.arange(4), y=data["train"].labels[kept])
    np.testing.assert_allclose(run.recipe.loss.class_weights, expected, rtol=1e-6)
    assert fit(tmp_path, fields, data=data, evaluate="validation").history == run.history
    written = {**fields, "loss.class_weights": run.recipe.loss.class_weights}
    same(fit(None, written, data=data, evaluate="validation"), run)
    without = fit(None, {"data.validation": 20}, data=data, evaluate="validation")
    assert without.history[-1]["train_loss"] != run.history[-1]["train_loss"]
    two_classes = cj.dataset(made.split(32).images, made.split(32).labels % 2, made.split().classes)
    with pytest.raises(cj.InputError, match=r"class 2 has no training image, so loss\.class_weights cannot be"):
        fit(None, fields, data={"train": two_classes}, evaluate=None)


def test_the_memory_of_a_device_is_known():
    assert devices.device_memory(jax.devices()[0]) > 1 << 28


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("views", ["one", "mirror"])
def test_a_model_in_16_bits_answers_as_in_32(dtype, views):
    """With jaxlib 0.12.0.1 and YNNPACK these logits were NaN: what a GPU had trained was useless on a CPU."""
    fields = {"model": {"name": "convnet"}, "data.image_shape": (32, 32, 3)}
    images = np.random.RandomState(0).randint(0, 256, (16, 32, 32, 3)).astype(np.uint8)
    wide, narrow = (made.recipe({**fields, "dtype": name}) for name in ("float32", dtype))
    weights, classes = training.evaluated_weights(made.init(wide)), made.split().classes
    expected = cj.Classifier(wide, weights, classes).logits(images, views)
    np.testing.assert_allclose(cj.Classifier(narrow, weights, classes).logits(images, views), expected, atol=0.05)
