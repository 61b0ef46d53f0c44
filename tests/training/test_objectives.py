"""Objectives: classification is the default, distillation follows its formula, and a caller's own trains too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cifar_jax as cj
from cifar_jax import training
from cifar_jax.training.gradients import accumulated
from cifar_jax.training.objectives import Objective, objective_of, prepare_classification
from tests import made

DATA = {"train": made.split(64, seed=0), "test": made.split(16, seed=1)}


def fit(changes=None, workdir=None, **options):
    recipe = made.recipe({"epochs": 2, "batch_size": 16, **(changes or {})})
    return cj.fit(recipe, workdir, data=DATA, progress=False, **options)


def test_distillation_is_the_papers_formula(tmp_path):
    teacher = fit({"model.width": 6}, tmp_path / "teacher")
    fields = {"name": "distillation", "teacher": str(tmp_path / "teacher"), "temperature": 3.0, "weight": 0.7}
    student = fit({"objective": fields, "epochs": 1}, tmp_path / "student")
    assert {"train_teacher_agreement", "train_accuracy"} <= student.history[0].keys()
    recipe, state = student.recipe, student.state
    images, labels = DATA["test"].images, DATA["test"].labels
    inputs = {
        "inputs": training.model_inputs(recipe, images / np.float32(255)),
        "targets": jax.nn.one_hot(labels, 4),
        "labels": labels,
    }
    logits = student.logits(images)
    apply = lambda inputs, batch_stats, key: (jnp.asarray(logits), batch_stats)
    objective = objective_of(recipe)
    found = objective.losses(recipe, apply, {}, inputs, teacher.classifier.weights, jax.random.key(0))[0]
    soften = lambda scores: np.exp(scores / 3) / np.exp(scores / 3).sum(-1, keepdims=True)
    taught, own = soften(teacher.logits(images).astype(np.float64)), soften(logits.astype(np.float64))
    hard = -np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))[np.arange(16), labels]
    expected = 0.3 * hard + 0.7 * 9 * (taught * np.log(taught / own)).sum(-1)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert state.step == 4


def test_a_student_resumes_and_another_teacher_is_refused(tmp_path):
    for name, seed in (("one", 0), ("two", 1)):
        fit({"seed": seed}, tmp_path / name)
    section = lambda name: {"objective": {"name": "distillation", "teacher": str(tmp_path / name)}}
    stopped = fit(section("one"), tmp_path / "run", callbacks=[lambda event: event.step == 4], stoppable=True)
    assert stopped.reason == "stopped"
    resumed = fit(section("one"), tmp_path / "run", resume=True)
    made.assert_same(resumed.state, fit(section("one")).state)
    with pytest.raises(cj.InputError, match=r"objective\.teacher"):
        fit(section("two"), tmp_path / "run")
    assert cj.load_classifier(tmp_path / "run").logits(DATA["test"].images).shape == (16, 4)


def test_a_teacher_of_other_classes_is_refused(tmp_path):
    other = {name: made.split(64, classes=5, seed=seed) for seed, name in enumerate(DATA)}
    cj.fit(made.recipe(epochs=1, batch_size=16), tmp_path, data=other, progress=False)
    with pytest.raises(cj.InputError, match=r"knows classes .*'class 4'"):
        fit({"objective": {"name": "distillation", "teacher": str(tmp_path)}})


def regression_losses(recipe, apply, batch_stats, inputs, context, key):
    """The distance of the outputs from the context: nothing to do with classes."""
    outputs, batch_stats = apply(inputs["inputs"], batch_stats, key)
    errors = jnp.square(outputs - context["goal"]).sum(-1)
    return errors, batch_stats, {"distance": jnp.sqrt(errors)}


REGRESSION = Objective(prepare_classification, regression_losses, predicts=False)


def test_an_objective_of_the_callers_trains_and_reports_its_own_metrics(tmp_path):
    context = {"goal": jnp.ones(4)}
    changes, options = {"epochs": 8, "optimizer.learning_rate": 0.05}, {"objective": REGRESSION, "evaluate": None}
    run = fit(changes, tmp_path, context=context, **options)
    distances = [line["train_distance"] for line in run.history]
    assert distances[-1] < 0.6 * distances[0]
    assert all(line["train_accuracy"] is None and line["validation_accuracy"] is None for line in run.history)
    with pytest.raises(cj.InputError, match="another context"):
        fit(changes, tmp_path, context={"goal": jnp.zeros(4)}, **options)


@pytest.mark.parametrize(
    ("changes", "options", "answer"),
    [
        ({}, {}, "makes no class predictions, so split 'test' cannot be evaluated"),
        ({"selection.share": 0.5}, {"evaluate": None}, "does not support selection"),
        ({"gradient_accumulation": 2}, {"evaluate": None}, "does not support gradient_accumulation"),
        (
            {"early_stopping.patience": 2, "data.validation": 8},
            {"evaluate": None},
            "early_stopping needs class predictions",
        ),
    ],
)
def test_what_an_objective_does_not_support_is_refused_by_name(changes, options, answer):
    with pytest.raises(cj.InputError) as error:
        fit(changes, objective=REGRESSION, context={"goal": jnp.ones(4)}, **options)
    assert answer in str(error.value)


def test_metrics_are_summed_over_the_parts_of_a_batch():
    losses = lambda params, batch_stats, part, key: (part["x"] * params, batch_stats, {"x": part["x"]})
    batch = {"x": jnp.arange(8.0)}
    for parts in (1, 2, 4):
        recipe = made.recipe(gradient_accumulation=parts)
        result = accumulated(recipe, losses, jnp.float32(2), {}, batch, jax.random.key(0))
        assert (float(result.metrics["x"]), float(result.loss), float(result.gradients)) == (28.0, 7.0, 3.5)
