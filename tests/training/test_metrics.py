"""`summarise` against scikit-learn and plain loops."""

import json

import numpy as np
import pytest
import sklearn.metrics

from cifar_jax.errors import InputError
from cifar_jax.training.metrics import CALIBRATION_BINS, Evaluation, summarise

CLASSES = ("cat", "dog", "ship", "a very long name", "truck", "bird", "frog")
NEVER_PREDICTED, ABSENT, NEITHER = 1, 2, 3


def answers(count=200):
    """Labels and probabilities; one class is never predicted, one has no image, one has neither."""
    random = np.random.RandomState(0)
    labels = random.choice([0, NEVER_PREDICTED, 4, 5, 6], count)
    logits = random.normal(size=(count, len(CLASSES))) + 1.5 * np.eye(len(CLASSES))[labels]
    logits[:, [NEVER_PREDICTED, NEITHER]] -= 6
    logits[::20, ABSENT] += 9
    logits[::17] *= 20  # some that are all but certain
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    return labels, probabilities / probabilities.sum(1, keepdims=True)


def sums_of(labels, probabilities):
    """What evaluation.sums gives, one image at a time."""
    classes = probabilities.shape[1]
    sums = {"loss_sum": 0.0, "top5": 0}
    sums |= {"confusion": np.zeros((classes, classes), np.int32), "calibration": np.zeros((CALIBRATION_BINS, 3))}
    for label, row in zip(labels, probabilities, strict=True):
        sums["loss_sum"] -= np.log(row[label])
        sums["top5"] += label in np.argsort(-row)[:5]
        sums["confusion"][label, row.argmax()] += 1
        index = min(int(row.max() * CALIBRATION_BINS), CALIBRATION_BINS - 1)
        sums["calibration"][index] += 1, row.max(), row.argmax() == label
    return sums


@pytest.fixture(scope="module")
def evaluation():
    return summarise(sums_of(*answers()), CLASSES, "test", len(answers()[0]))


def test_the_example_has_the_hard_cases():
    labels, probabilities = answers()
    predicted = probabilities.argmax(1)
    assert NEVER_PREDICTED in labels
    assert NEVER_PREDICTED not in predicted
    assert ABSENT not in labels
    assert ABSENT in predicted
    assert NEITHER not in {*labels, *predicted}


def test_figures_are_scikit_learns(evaluation):
    labels, probabilities = answers()
    predicted, every = probabilities.argmax(1), range(len(CLASSES))
    confusion = sklearn.metrics.confusion_matrix(labels, predicted, labels=every)
    np.testing.assert_array_equal(evaluation.confusion_matrix, confusion)
    options = {"labels": every, "zero_division": 0}
    precision, recall, f1, _ = sklearn.metrics.precision_recall_fscore_support(labels, predicted, **options)
    np.testing.assert_allclose(evaluation.precision, precision, rtol=1e-12)
    np.testing.assert_allclose(evaluation.recall, recall, rtol=1e-12)
    np.testing.assert_allclose(evaluation.f1, f1, rtol=1e-12)
    macro = sklearn.metrics.precision_recall_fscore_support(labels, predicted, average="macro", **options)
    assert (evaluation.macro_precision, evaluation.macro_recall, evaluation.macro_f1) == pytest.approx(macro[:3])
    assert evaluation.accuracy == pytest.approx(sklearn.metrics.accuracy_score(labels, predicted), rel=1e-12)
    top5 = sklearn.metrics.top_k_accuracy_score(labels, probabilities, k=5, labels=every)
    assert evaluation.top5_accuracy == pytest.approx(top5, rel=1e-12)
    assert evaluation.loss == pytest.approx(-np.log(probabilities[range(200), labels]).mean(), rel=1e-12)
    assert evaluation.count == 200
    assert (evaluation.split, evaluation.classes) == ("test", CLASSES)


def test_calibration_error_is_the_plain_loops(evaluation):
    labels, probabilities = answers()
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    error = 0.0
    for index in range(15):  # Guo et al. 2017, eq. 3
        inside = (confidence > index / 15) & (confidence <= (index + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert error > 0.01
    assert evaluation.expected_calibration_error == pytest.approx(error, rel=1e-9)


def test_calibration_error_of_two_bins_by_hand():
    calibration = np.zeros((15, 3))
    calibration[3] = 10, 2.5, 4  # 10 images, confidence 0.25, 40 % right
    calibration[14] = 30, 29.4, 24  # 30 images, confidence 0.98, 80 % right
    sums = {"loss_sum": 1.0, "top5": 40, "confusion": np.diag([28, 12]), "calibration": calibration}
    error = summarise(sums, ("a", "b"), "test", int(np.sum(sums["confusion"]))).expected_calibration_error
    assert error == pytest.approx((10 * 0.15 + 30 * 0.18) / 40)


def test_a_perfect_model_has_perfect_figures():
    result = summarise(sums_of(np.arange(7), np.eye(7)), CLASSES, "test", 7)
    for name in ("accuracy", "top5_accuracy", "macro_precision", "macro_recall", "macro_f1"):
        assert getattr(result, name) == 1, name
    assert result.expected_calibration_error == result.loss == 0


def test_json_brings_everything_back(evaluation):
    back = Evaluation.from_json(json.loads(json.dumps(evaluation.to_json())))
    assert vars(back).keys() == vars(evaluation).keys()
    for name, value in vars(evaluation).items():
        assert type(getattr(back, name)) is type(value), name
        np.testing.assert_array_equal(getattr(back, name), value, err_msg=name)
    for name in ("confusion_matrix", "precision", "recall", "f1"):
        assert getattr(back, name).dtype == getattr(evaluation, name).dtype, name
    assert str(back) == str(evaluation)


def test_the_table_has_a_row_for_each_class(evaluation):
    lines = str(evaluation).splitlines()
    assert len(lines) == 1 + len(CLASSES) + 2
    for index, name in enumerate(CLASSES):
        figures = (evaluation.precision[index], evaluation.recall[index], evaluation.f1[index])
        row = lines[1 + index].removeprefix(name).split()
        assert lines[1 + index].startswith(name)
        assert row == [*(f"{figure:.2%}" for figure in figures), str(evaluation.confusion_matrix[index].sum())]
    assert len({len(line) for line in lines[:-1]}) == 1  # the columns stand below each other
    assert lines[-2].startswith("macro mean")
    assert f"{evaluation.accuracy:.2%}" in lines[-1]
    assert f"{evaluation.loss:.4f}" in lines[-1]


def test_an_image_that_is_not_counted_is_told():
    with pytest.raises(InputError, match=r"only 7 of 8 images of split 'test' have a label of the 7 classes"):
        summarise(sums_of(np.arange(7), np.eye(7)), CLASSES, "test", 8)
