"""Thresholds of a class: what they reach, their intervals by simulation, decisions, and their life in a run."""

import shutil

import numpy as np
import pytest

import cifar_jax as cj
from cifar_jax import cli
from cifar_jax.runs import robustness
from cifar_jax.runs.evaluate import at_thresholds, by_thresholds, evaluate_and_predict
from cifar_jax.runs.thresholds import Rate, choose_value, decide, rates
from tests import made

CLASSES = ("good", "dented", "scratched")


def drawn(seed, positives=100, negatives=900):
    random = np.random.RandomState(seed)
    scores = np.concatenate([random.beta(4, 2, positives), random.beta(1, 8, negatives)])
    labels = np.concatenate([np.full(positives, 1), np.arange(negatives) % 2 * 2])
    return np.stack([1 - scores, scores, np.zeros_like(scores)], -1), labels


@pytest.mark.parametrize("recall", [0.5, 0.9, 0.95, 1.0])
def test_the_threshold_for_a_recall_is_the_highest_that_reaches_it(recall):
    probabilities, labels = drawn(0)
    found = choose_value(probabilities, labels, CLASSES, "dented", recall=recall)
    assert found.recall.value >= recall
    assert rates(probabilities[:, 1], labels == 1, np.nextafter(found.value, 1))[0].value < recall
    assert found.interval[0] <= found.value <= found.interval[1]


@pytest.mark.parametrize("precision", [0.5, 0.9, 0.99])
def test_the_threshold_for_a_precision_has_the_highest_recall(precision):
    probabilities, labels = drawn(0)
    found = choose_value(probabilities, labels, CLASSES, "dented", precision=precision)
    assert found.precision.value >= precision
    reached = [rates(probabilities[:, 1], labels == 1, value) for value in probabilities[:, 1]]
    assert found.recall.value == max(recall.value for recall, own in reached if own.value >= precision)
    scores = probabilities[:, CLASSES.index("dented")].astype(np.float64)
    above, below = scores[scores >= found.value].min(), scores[scores < found.value].max()
    assert found.value == (above + below) / 2


def test_a_threshold_for_a_precision_that_takes_every_image_is_the_lowest_score():
    probabilities = np.stack([np.linspace(0.5, 0.1, 6), np.linspace(0.5, 0.9, 6)], -1)
    found = choose_value(probabilities, np.ones(6, int), ("good", "dented"), "dented", precision=0.9)
    assert (found.value, found.recall.part, found.precision.whole) == (0.5, 6, 6)


def test_the_intervals_hold_the_truth_as_often_as_they_say():
    """The threshold that gives 90% recall among all images, and the recall of a fixed threshold."""
    many, labels = drawn(1, 200_000, 2)
    truth = choose_value(many, labels, CLASSES, "dented", recall=0.9).value
    fixed = rates(many[:, 1], labels == 1, 0.5)[0].value
    held, recalls = [], []
    for seed in range(400):
        probabilities, labels = drawn(100 + seed)
        low, high = choose_value(probabilities, labels, CLASSES, "dented", recall=0.9).interval
        held.append(low <= truth <= high)
        low, high = rates(probabilities[:, 1], labels == 1, 0.5)[0].interval
        recalls.append(low <= fixed <= high)
    assert 0.92 <= np.mean(held) <= 0.99
    assert 0.93 <= np.mean(recalls) <= 0.99


def test_a_rate_of_nothing_and_of_everything():
    assert (Rate(0, 0).value, Rate(0, 0).interval) == (0.0, (0.0, 1.0))
    assert Rate(20, 20).interval == (pytest.approx(0.025 ** (1 / 20)), 1.0)


@pytest.mark.parametrize(
    ("thresholds", "row", "expected"),
    [
        ({}, (0.6, 0.3, 0.1), "good"),
        ({"dented": 0.25}, (0.6, 0.3, 0.1), "dented"),  # reached, although another is more probable
        ({"dented": 0.7}, (0.2, 0.6, 0.2), "good"),  # most probable, and not reached
        ({"dented": 0.2, "scratched": 0.05}, (0.5, 0.3, 0.2), "scratched"),  # exceeded most
        ({"good": 0.9, "dented": 0.9, "scratched": 0.9}, (0.5, 0.3, 0.2), "good"),  # none reached: the most probable
    ],
)
def test_decisions(thresholds, row, expected):
    assert CLASSES[decide(np.array([row]), CLASSES, thresholds)[0]] == expected


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ({"class_name": "bent", "recall": 0.9}, "class 'bent' is unknown; the run knows good, dented, scratched"),
        ({"class_name": "dented"}, "give one of the two"),
        ({"class_name": "dented", "recall": 0.9, "precision": 0.9}, "give one of the two"),
        ({"class_name": "dented", "recall": 1.5}, r"recall is 1\.5; it must be above 0 and at most 1"),
        ({"class_name": "dented", "recall": 0.9, "count": 4}, "at least 5 images of 'dented'; validation has 4"),
        ({"class_name": "scratched", "precision": 1.0}, r"no threshold of 'scratched' has a precision of 100\.00%"),
    ],
)
def test_what_is_refused(options, answer):
    probabilities, labels = drawn(0, options.pop("count", 100))
    with pytest.raises(cj.InputError, match=answer):
        choose_value(probabilities, labels, CLASSES, **options)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    split, held_out = made.split(), made.split(64, seed=1)
    data = {"train": split, "validation": held_out}
    cj.fit(made.recipe(epochs=2), folder, data=data, evaluate="validation", progress=False)
    return folder


def test_a_threshold_is_stored_and_used_by_the_classifier(run_folder):
    run = cj.load_run(run_folder)
    images = made.split(64, seed=1).images
    threshold = cj.choose_threshold(run, "class 2", recall=1.0)
    assert threshold.recall == Rate(16, 16)
    loaded = cj.load_classifier(run_folder)
    assert loaded.thresholds == {"class 2": threshold.value}
    for classifier in (loaded, run.classifier, cj.load_run(run_folder).classifier):
        found = classifier.predict(images)
        own = np.flatnonzero(made.split(64, seed=1).labels == 2)
        assert {found.names[index] for index in own} == {"class 2"}
    with pytest.warns(UserWarning, match="thresholds of class 2 were chosen at another temperature"):
        cj.calibrate(run)
    assert not cj.load_run(run_folder).thresholds
    cj.calibrate(run)  # the same temperature again: nothing to tell


def test_what_was_chosen_at_an_earlier_step_is_dropped_when_the_training_goes_on(tmp_path):
    data = {"train": made.split(), "validation": made.split(64, seed=1)}
    options = {"data": data, "evaluate": "validation", "progress": False}
    recipe = made.recipe(epochs=3, batch_size=16)
    cj.fit(recipe, tmp_path, callbacks=[lambda event: event.step > 0], stoppable=True, **options)
    cj.calibrate(cj.load_run(tmp_path))
    cj.choose_threshold(cj.load_run(tmp_path), "class 2", recall=1.0)
    assert cj.load_run(tmp_path).temperature != 1
    assert cj.load_run(tmp_path).thresholds
    before = cj.load_run(tmp_path)
    fail = lambda event: 1 / (event.step != 2 * int(before.state.step))
    with pytest.raises(ZeroDivisionError):
        cj.fit(recipe, tmp_path, resume=True, callbacks=[fail], stoppable=True, **options)
    with pytest.warns(UserWarning, match="is not finished"):
        half = cj.load_run(tmp_path)
    assert int(half.state.step) > int(before.state.step)
    assert before.evaluation
    assert half.evaluation is None
    cj.fit(recipe, tmp_path, resume=True, **options)
    assert (cj.load_run(tmp_path).temperature, cj.load_run(tmp_path).thresholds) == (1.0, {})


def test_the_command_chooses_stores_and_tells(run_folder, tmp_path, capsys, monkeypatch):
    shutil.copytree(run_folder, tmp_path / "run")
    before = cj.load_run(tmp_path / "run").temperature
    where = f"--workdir={tmp_path / 'run'}"
    for wrong in (
        ["--class_name=other", "--recall=1"],
        ["--class_name=class 2"],
        ["--class_name=class 2", "--precision=2"],
    ):
        assert cli.main(["calibrate", where, *wrong]) == 2
        assert capsys.readouterr().out == ""
        assert cj.load_run(tmp_path / "run").temperature == before
    assert cli.main(["calibrate", where, "--class_name=class 2", "--recall=1"]) == 0
    assert "'class 2' from a probability of" in capsys.readouterr().out
    page = cj.report(tmp_path / "run", data={"train": made.split(), "validation": made.split(64, seed=1)}).read_text()
    assert "Thresholds, chosen on the validation split, and what they give on the validation split" in page
    assert "The predicted class is that of the thresholds." in page
    assert "Each class on the validation split, by the thresholds: accuracy" in page
    assert "recall of 100%" in page


def test_what_thresholds_give_is_what_predict_names(run_folder, tmp_path):
    """With two thresholds an image may reach both, and is named once."""
    shutil.copytree(run_folder, tmp_path / "run")
    held_out = made.split(64, seed=1)
    for name in ("class 1", "class 2"):
        cj.choose_threshold(cj.load_run(tmp_path / "run"), name, recall=0.9)
    run = cj.load_run(tmp_path / "run")
    data = {"train": made.split(), "validation": held_out}
    evaluation, found = evaluate_and_predict(run, "validation", data=data, progress=False)
    decided, named = by_thresholds(run, found, evaluation), run.classifier.predict(held_out.images).indices
    assert decided.accuracy == np.mean(named == held_out.labels) != evaluation.accuracy
    for threshold in at_thresholds(run, found):
        label = run.classes.index(threshold.class_name)
        assert threshold.recall.part == threshold.precision.part == decided.confusion_matrix[label, label]
        assert threshold.precision.whole == decided.confusion_matrix[:, label].sum()


def test_robustness_of_a_run_and_of_an_ensemble(run_folder, monkeypatch):
    monkeypatch.setattr(robustness, "SEVERITIES", (1, 5))  # each is a compilation
    run, held_out = cj.load_run(run_folder), made.split(64, seed=1)
    data = {"train": made.split(), "validation": held_out}
    options = {"data": data, "progress": False}
    found = cj.robustness(run, "validation", out_of_distribution=["noise", "digits"], **options)
    assert found.clean.accuracy == cj.evaluate(run, "validation", **options).accuracy
    assert len(found.corruptions) == 26
    assert [(row.name, row.score) for row in found.out_of_distribution] == [
        (name, score) for name in ("noise", "digits") for score in ("probability", "energy")
    ]
    assert all(0 <= value <= 1 for row in found.out_of_distribution for value in (row.auroc, row.aupr))
    assert "mean of corruptions" in str(found)
    assert found.to_json()["mean_under_corruption"]["accuracy"] == pytest.approx(
        np.mean([row.accuracy for row in found.corruptions])
    )
    twice = cj.robustness([run, run], "validation", corruptions=False, **options)
    assert (twice.models, twice.clean) == (2, found.clean)


def test_telling_images_apart_has_the_known_figures_where_they_are_known(run_folder):
    """The same images on both sides: half of the pairs in order, and as many accepted as of the own ones."""
    scores = np.random.RandomState(0).uniform(size=4000)
    same = robustness._out_of_distribution("same", {"probability": scores}, {"probability": scores})[0]
    assert same.auroc == pytest.approx(0.5)
    assert same.false_positive_rate == pytest.approx(0.95, abs=1e-3)
    apart = robustness._out_of_distribution("apart", {"probability": scores + 2}, {"probability": scores})[0]
    assert (apart.auroc, apart.aupr, apart.false_positive_rate) == (1.0, pytest.approx(1.0), 0.0)


def test_another_data_set_by_name(run_folder, tmp_path):
    from PIL import Image

    held_out = made.split(64, seed=1)
    for number, (image, label) in enumerate(zip(held_out.images, held_out.labels, strict=True)):
        place = tmp_path / "photos" / held_out.classes[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number}.png")
    run = cj.load_run(run_folder)
    found = cj.evaluate(run, data=str(tmp_path / "photos"), progress=False)
    assert (
        found.accuracy == cj.evaluate(run, "validation", data={"train": made.split(), "validation": held_out}).accuracy
    )
    assert found.split == f"{tmp_path / 'photos'} test"
