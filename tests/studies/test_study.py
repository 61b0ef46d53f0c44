"""Studies on made-up data: what is trained, continued, extended, refused and recorded, and how runs are computed."""

import csv
import json
import shutil
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest

import cifar_jax as cj
from cifar_jax.recipe import without_facts
from cifar_jax.runs import light, loop, programs
from cifar_jax.runs.workdir import read_predictions
from cifar_jax.studies import execution
from cifar_jax.studies import study as studies
from cifar_jax.studies.definition import ablation_arms, grid_arms
from cifar_jax.studies.execution import EXECUTIONS, choose, measure
from cifar_jax.studies.fields import with_defaults
from cifar_jax.studies.recipe_file import write_recipe
from cifar_jax.studies.study import Options, Study
from cifar_jax.studies.study_file import read_study, write_study
from cifar_jax.studies.sweep import arms_of
from tests import made

DATA = {"train": made.split(96, seed=0), "test": made.split(40, seed=1)}
RECIPE = made.recipe({"epochs": 2, "batch_size": 16, "data.validation": 32, "model.dropout": 0.2, "augment.flip": 0.5})
CHANGES = [{"augment.flip": 0}, {"optimizer.learning_rate": 0.05}]


def ablate(folder, changes=CHANGES, seeds=2, recipe=RECIPE, **options):
    options = {"data": DATA, "progress": False, **options}
    return cj.ablate(recipe, changes, seeds=seeds, folder=folder, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study with three arms and two seeds. Tests that change it copy it."""
    folder = tmp_path_factory.mktemp("studies") / "finished"
    table = ablate(folder)
    return folder, table


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "study")


def trained(monkeypatch):
    """The runs that `fit` is called for from now on."""
    calls, fit = [], studies.fit
    monkeypatch.setattr(
        studies, "fit", lambda recipe, workdir, **more: calls.append(workdir) or fit(recipe, workdir, **more)
    )
    return calls


def names(calls):
    return [str(path).partition("/runs/")[2] for path in calls]


# --- what a study is ---


def test_a_run_of_a_study_is_the_single_run_of_its_recipe_bit_for_bit(finished, tmp_path):
    folder, _ = finished
    recipe = cj.override(RECIPE, {"augment.flip": 0, "seed": 1})
    single = cj.fit(recipe, tmp_path / "single", data=DATA, evaluate="validation", progress=False)
    made.assert_same(cj.load_run(folder / "runs/flip=0.0/seed1").state, single.state)
    ours, theirs = (
        read_predictions(path, "validation") for path in (folder / "runs/flip=0.0/seed1", tmp_path / "single")
    )
    np.testing.assert_array_equal(ours.probabilities, theirs.probabilities)


def test_a_study_is_a_folder_with_a_table_of_its_runs(finished):
    folder, table = finished
    study = read_study(folder)
    assert (study["command"], study["seeds"], study["base"], study["final"]) == ("ablate", [0, 1], "runs/base", [])
    assert list(study["runs"])[:3] == ["runs/base/seed0", "runs/flip=0.0/seed0", "runs/learning_rate=0.05/seed0"]
    lines = list(csv.DictReader((folder / "runs.csv").open()))
    assert len(lines) == 6
    for line in lines:
        run = study["runs"][line["folder"]]
        assert float(line["validation_accuracy"]) == run["metrics"]["validation_accuracy"]
        assert line["status"] == "finished"
    assert [(row.is_base, row.summary.count) for row in table.rows] == [(True, 2), (False, 2), (False, 2)]
    assert table.rows[1].values["seed=1"] == study["runs"]["runs/flip=0.0/seed1"]["metrics"]["validation_accuracy"]
    assert "the test split was not used" in str(table)


def test_predictions_are_those_of_the_evaluation(finished):
    folder, table = finished
    for name, run in read_study(folder)["runs"].items():
        predictions = read_predictions(folder / name, "validation")
        assert predictions.probabilities.shape == (32, made.CLASSES)
        assert predictions.correct.mean() == run["metrics"]["validation_accuracy"]
        np.testing.assert_allclose(predictions.probabilities.sum(1), 1, rtol=1e-5)
    assert table.rows[0].spread.images == 32


def test_a_finished_study_trains_nothing(copied, monkeypatch):
    calls = trained(monkeypatch)
    before = (copied / "study.json").read_bytes()
    assert len(ablate(copied).rows) == 3
    assert (calls, (copied / "study.json").read_bytes()) == ([], before)


def test_arms_and_seeds_extend_a_study(copied, monkeypatch):
    calls = trained(monkeypatch)
    table = ablate(copied, [{"model.dropout": 0}, *CHANGES], seeds=3)
    assert sorted(names(calls)) == [
        "base/seed2", "dropout=0.0/seed0", "dropout=0.0/seed1", "dropout=0.0/seed2", "flip=0.0/seed2",
        "learning_rate=0.05/seed2",
    ]  # fmt: skip
    assert [row.summary.count for row in table.rows] == [3, 3, 3, 3]


def test_an_arm_can_be_the_recipe_of_a_file(tmp_path, monkeypatch):
    other = cj.override(
        RECIPE,
        {"optimizer.name": "adamw", "optimizer.learning_rate": 0.002, "schedule.name": "cosine", "model.dropout": 0.0,
         "seed": 7, "data.validation": 40, "checkpoint.every_epochs": 3},
    )  # fmt: skip
    path = tmp_path / "best.py"
    write_recipe(path, without_facts(other), "Another recipe.")
    recipe = cj.override(RECIPE, {"epochs": 1})
    arms = arms_of(recipe, [path, {"augment.flip": 0}])
    assert [arm.name for arm in arms] == ["base", str(path), "flip=0.0"]
    kept = {"seed": 3, "data.validation": 32, "checkpoint.every_epochs": recipe.checkpoint.every_epochs}
    assert with_defaults(arms[1].recipe(recipe, 3)) == with_defaults(cj.override(other, kept))
    table = ablate(tmp_path / "study", [path], recipe=recipe, seeds=1)
    assert [row.name for row in table.rows] == ["base", str(path)]
    again = trained(monkeypatch)
    ablate(tmp_path / "study", [str(path)], recipe=recipe, seeds=1)
    assert not again
    assert arms_of(recipe, [other])[1].changes == arms[1].changes  # as an object; named by its changes
    with pytest.raises(cj.InputError, match=r"best.py' is the recipe itself, so that there is nothing to compare"):
        arms_of(other, [path])
    with pytest.raises(cj.InputError, match=r"recipe 'none.py' is not a file"):
        arms_of(other, ["none.py"])


def test_the_seeds_of_a_recipe_are_a_study_that_changes_extend(tmp_path, monkeypatch):
    recipe = cj.override(RECIPE, {"epochs": 1})
    (row,) = ablate(tmp_path, changes=(), seeds=3, recipe=recipe).rows
    assert (row.name, row.is_base, len(row.folders), row.summary.count) == ("base", True, 3, 3)
    assert row.summary.mean_interval is not None
    assert row.conclusion is None
    calls = trained(monkeypatch)
    assert len(ablate(tmp_path, changes=[{"augment.flip": 0}], seeds=3, recipe=recipe).rows) == 2
    assert names(calls) == [f"flip=0.0/seed{seed}" for seed in range(3)]


def test_a_grid_with_a_further_axis_keeps_the_runs_of_the_old_value(tmp_path, monkeypatch):
    rates, options = [0.02, 0.05], {"folder": tmp_path, "data": DATA, "progress": False, "seeds": 1}
    cj.sweep(RECIPE, {"optimizer.learning_rate": rates}, **options)
    calls = trained(monkeypatch)
    table = cj.sweep(RECIPE, {"optimizer.learning_rate": rates, "model.dropout": [0.2, 0.0]}, **options)
    assert names(calls) == ["learning_rate=0.02,dropout=0.0/seed0", "learning_rate=0.05,dropout=0.0/seed0"]
    assert (table.rows[0].name, table.rows[0].is_base) == ("learning_rate=0.02", True)  # the recipe itself
    assert {row.name for row in table.rows[1:]} == {
        "learning_rate=0.02, dropout=0.0", "learning_rate=0.05", "learning_rate=0.05, dropout=0.0"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        ({"changes": CHANGES[:1]}, "holds another study (it has the arm 'learning_rate=0.05' too; arms can be added"),
        ({"seeds": 1}, "it has the seeds 1 too; seeds can be added, not taken away"),
        ({"recipe": cj.override(RECIPE, {"epochs": 3})}, "holds another study (epochs: 2 -> 3)"),
        ({"data": {"train": made.split(96, seed=5)}}, "its data has digest made-96-4-8-0 in split 'train'"),
        (
            {"loss": lambda logits, targets: logits[:, 0]},
            "holds another study (loss.label_smoothing: 0.0 -> absent; loss.name: cross_entropy -> ",
        ),
        ({"light": True}, "holds a study with light=False"),
    ],
)
def test_another_study_in_the_folder_is_refused(call, answer, copied):
    before = (copied / "study.json").read_bytes()
    with pytest.raises(cj.InputError) as error:
        ablate(copied, **call)
    assert answer in str(error.value)
    assert (copied / "study.json").read_bytes() == before


def test_a_sweep_does_not_go_into_the_folder_of_an_ablation(copied):
    with pytest.raises(cj.InputError, match="holds another study \\(of 'ablate'\\)"):
        cj.sweep(RECIPE, {"augment.flip": [0, 0.5]}, seeds=2, folder=copied, data=DATA, progress=False)


# --- what goes wrong ---


def test_a_run_that_fails_is_recorded_and_the_others_go_on(tmp_path, monkeypatch):
    """The learning rate of the first arm overflows; the second is out of memory."""
    fit = studies.fit

    def scarce(recipe, workdir, **more):
        if "dropout" in str(workdir):
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nwhile allocating")
        return fit(recipe, workdir, **more)

    monkeypatch.setattr(studies, "fit", scarce)
    changes = [{"optimizer.learning_rate": 1e30}, {"model.dropout": 0}, {"augment.flip": 0}]
    table = ablate(tmp_path, changes, seeds=1)
    runs = read_study(tmp_path)["runs"]
    assert [run["status"] for run in runs.values()] == ["finished", "failed", "failed", "finished"]
    assert "not finite" in runs["runs/learning_rate=1e+30/seed0"]["reason"]
    assert runs["runs/dropout=0.0/seed0"]["reason"] == "RuntimeError: RESOURCE_EXHAUSTED: Out of memory"
    assert [row.name for row in table.rows] == ["base", "flip=0.0"]
    assert "arm 'dropout=0.0' has no finished run" in " ".join(str(table).split())
    assert "learning_rate=1e+30, seed 0 failed: " in " ".join(str(table).split())
    calls = trained(monkeypatch)
    ablate(tmp_path, changes, seeds=1)
    assert calls == []
    monkeypatch.setattr(studies, "fit", fit)
    assert len(ablate(tmp_path, changes, seeds=1, retry=True).rows) == 3


@pytest.mark.parametrize("how", ["sequential", "mapped"])
def test_an_interrupted_study_continues_inside_the_run(how, finished, tmp_path, monkeypatch):
    """Interrupted in the third run after its first epoch, or in the second epoch of a group: nothing is trained twice,
    and every run ends as in the study that was not interrupted."""
    launched, real = [], loop.launch_all

    def interrupted(jobs, states, start, how):
        launched.append(start)
        if len(launched) == (6 if how == "single" else 2):
            raise KeyboardInterrupt
        return real(jobs, states, start, how)

    for module in (loop, execution):
        monkeypatch.setattr(module, "launch_all", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ablate(tmp_path, execution=how)
    begun = read_study(tmp_path)["runs"]
    assert len(begun) == (2 if how == "sequential" else 0)
    monkeypatch.undo()
    calls = trained(monkeypatch)
    ablate(tmp_path, execution=how)
    assert len(calls) == 6 - len(begun)
    for name in read_study(finished[0])["runs"]:
        ours, theirs = (cj.load_run(folder / name) for folder in (tmp_path, finished[0]))
        for one, other in zip(jax.tree.leaves(ours.state.params), jax.tree.leaves(theirs.state.params), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4 if how == "mapped" else 0)


def test_no_run_begins_after_max_hours(tmp_path, monkeypatch):
    calls = trained(monkeypatch)
    ablate(tmp_path, seeds=1, max_hours=1e-9)
    assert names(calls) == ["base/seed0"]
    assert len(ablate(tmp_path, seeds=1).rows) == 3


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        ({"changes": [{"augment.flipp": 0}]}, "recipe field 'augment.flipp' is unknown; did you mean 'augment.flip'?"),
        (
            {"changes": [{"model.dropuot": 0}]},
            "'model.dropuot' is unknown to model 'cnn'; did you mean 'model.dropout'",
        ),
        ({"changes": [{"augment.flip": "yes"}]}, "recipe field 'augment.flip' is 'yes', a str; it takes a float"),
        ({"changes": [{"augment.flip": 0.5}]}, "the change 'augment.flip=0.5' changes nothing in this recipe"),
        ({"changes": [{"model.activation": "relu"}]}, "the change 'model.activation='relu'' changes nothing"),
        ({"changes": [{"augment.flip": 0}, {"augment.flip": 0.0}]}, "the arms 'flip=0.0' and 'flip=0.0' are the same"),
        ({"changes": [{"evaluation.batch_size": 5}]}, "'evaluation.batch_size' changes no result"),
        ({"changes": [{"data.validation": 5}]}, "'data.validation' decides which images a run is compared on"),
        ({"changes": [{"seed": 5}]}, "arms cannot change 'seed'"),
        ({"changes": [{"loss.name": made.recipe}]}, "'loss.name' is a function, which no table of a study can name"),
        ({"changes": [{"model": {"name": "cnn", "width": 8}}]}, "the change of 'model' replaces a whole section"),
        ({"changes": [{"seeds": {"weights": 1, "order": 1, "augmentation": 1}}]}, "so its 2 runs would be equal"),
        ({"metric": "validation_acuracy"}, "will be measured by none of the runs; did you mean 'validation_accuracy'"),
        ({"metric": "test_accuracy"}, "metric 'test_accuracy' will be measured by none of the runs; the test split is"),
        ({"detect": -1}, "detect is -1; it must be a positive number"),
        ({"changes": [{"augment.flip": 2}]}, "arm 'flip=2.0': recipe field 'augment.flip' is 2.0; it must be between"),
        ({"seeds": 0}, "the number of seeds is 0; it is a whole number, at least 1"),
        (
            {"seeds": 70},
            "3 arms with 70 seeds are 210 runs, and max_runs is 200; ask for fewer, or set max_runs to",
        ),
        ({"recipe": cj.override(RECIPE, {"data.validation": 0})}, "data.validation is 0; set a number of images, for"),
        ({"execution": "maped"}, "execution is 'maped'; did you mean 'mapped'?"),
        ({"execution": "devices"}, "execution='devices' needs several devices"),
        ({"max_hours": 0}, "max_hours is 0; it must be a number above 0"),
        ({"together": 0}, "together is 0; it is the number of runs at once"),
        ({"folder": None}, "ablate needs the folder of the study"),
    ],
)
def test_what_cannot_be_studied_is_told_before_anything_is_written(call, answer, tmp_path):
    with pytest.raises(cj.InputError) as error:
        ablate(**{"folder": tmp_path / "study", **call})
    assert answer in str(error.value)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("grid", "answer"),
    [
        ({}, "the grid is empty"),
        ({"augment.flip": []}, "the grid has no values for 'augment.flip'"),
        ({"model.activation": "relu"}, "the values of 'model.activation' are 'relu'; give a list"),
        ({"augment.flip": [0, 0.0]}, "the arms 'flip=0.0' and 'flip=0.0' are the same"),
        ({"augmnt.flip": [0]}, "recipe field 'augmnt.flip' is unknown"),
        ({"augment.flip": [0.5]}, "the grid changes nothing in this recipe: augment.flip has that value"),
        ({"optimizer.weight_decay": [1, 1.0]}, "the arms 'weight_decay=1.0' and 'weight_decay=1.0' are the same"),
    ],
)
def test_what_is_no_grid_is_refused(grid, answer, tmp_path):
    with pytest.raises(cj.InputError) as error:
        cj.sweep(RECIPE, grid, folder=tmp_path / "study", data=DATA, progress=False)
    assert answer in str(error.value)


def test_seeds_of_one_kind_are_arms_of_a_grid_and_one_arm_of_the_table(tmp_path):
    grid = {"seeds.order": [3, 4, 5]}
    table = cj.sweep(RECIPE, grid, seeds=1, folder=tmp_path, data=DATA, progress=False)
    assert [row.summary.count for row in table.rows] == [3]


# --- the test split ---


def test_final_evaluates_on_test_and_is_counted(copied):
    study = lambda: Study(
        "ablate", copied, RECIPE, ablation_arms(RECIPE, CHANGES), 2, Options(data=DATA, progress=False)
    )
    study().final("flip=0.0")
    recorded = read_study(copied)
    assert [entry["arms"] for entry in recorded["final"]] == [["flip=0.0"]]
    measured = [name for name, run in recorded["runs"].items() if "test_accuracy" in run["metrics"]]
    assert measured == ["runs/flip=0.0/seed0", "runs/flip=0.0/seed1"]
    assert read_predictions(copied / measured[0], "test").probabilities.shape == (40, made.CLASSES)
    assert (
        cj.load_run(copied / measured[0]).evaluation.accuracy
        == recorded["runs"][measured[0]]["metrics"]["test_accuracy"]
    )
    study().final("flip=0.0")  # nothing is evaluated, so nothing is counted
    study().final()
    assert len(read_study(copied)["final"]) == 2
    table = cj.compare(copied, metric="test_accuracy")
    assert "the test split was evaluated 2 times" in " ".join(str(table).split())
    assert "the test split was evaluated 2 times" in table.to_latex()
    with pytest.raises(cj.InputError, match=r"no arm 'flip'; its arms are base; flip=0.0; learning_rate=0.05"):
        study().final("flip")


def test_final_is_refused_while_runs_are_missing(copied):
    more = Study("ablate", copied, RECIPE, ablation_arms(RECIPE, CHANGES), 3, Options(data=DATA, progress=False))
    with pytest.raises(cj.InputError, match=r"is not finished, 3 of 9 runs are missing; train them without --final"):
        more.final()
    assert read_study(copied)["final"] == []


def test_a_study_does_not_touch_the_test_split(tmp_path, monkeypatch):
    loaded = []
    load = lambda name, split, *rest: loaded.append(split) or DATA[split]
    monkeypatch.setattr(studies.arrays, "load", load)
    ablate(tmp_path, CHANGES[:1], seeds=1, data=None)
    assert loaded == ["train"]


# --- how runs are computed ---


def test_runs_share_their_programs_and_compile_once(tmp_path, monkeypatch):
    """Two arms that differ in traced fields, three seeds: one program; another way of training: one more."""
    made_programs = []
    programs.copy()  # made once in a process, whichever test comes first
    jit = programs.jit
    monkeypatch.setattr(programs, "jit", lambda *given, **more: made_programs.append(given) or jit(*given, **more))
    for program in (programs.epochs_program, programs._evaluation_program, programs._first_program):
        program.cache_clear()
    ablate(tmp_path, CHANGES[1:], seeds=3)
    assert len(made_programs) == 3  # the first state, an epoch, the evaluation
    ablate(tmp_path, [*CHANGES[1:], {"augment.flip": 0, "loss.label_smoothing": 0.1}], seeds=3)
    assert len(made_programs) == 4


@pytest.mark.parametrize("how", ["unrolled", "mapped"])
@pytest.mark.parametrize("part_steps", [0, 3])
def test_runs_in_one_program_are_the_single_runs(how, part_steps, tmp_path):
    """After one step to 1e-5 of the largest weight; a run that ends early does not hold up the others."""
    small = {"model": {"name": "mlp", "widths": (8,)}, "epochs": 1, "batch_size": 64, "part_steps": part_steps}
    recipe = cj.override(RECIPE, small)
    if part_steps:
        recipe = cj.override(recipe, {"batch_size": 16, "optimizer.learning_rate": 1e-4})
    ablate(tmp_path, [{"optimizer.learning_rate": 0.001}], seeds=2, recipe=recipe, execution=how, together=3)
    for arm, changes in (("base", {}), ("learning_rate=0.001", {"optimizer.learning_rate": 0.001})):
        for seed in (0, 1):
            single = cj.fit(cj.override(recipe, {**changes, "seed": seed}), data=DATA, evaluate=None, progress=False)
            ours = cj.load_run(tmp_path / f"runs/{arm}/seed{seed}").state
            for one, other in zip(jax.tree.leaves(ours.params), jax.tree.leaves(single.state.params), strict=True):
                np.testing.assert_allclose(one, other, atol=1e-5)
    assert read_study(tmp_path)["execution"]["how"] == how
    assert {(run["execution"], run["together"]) for run in read_study(tmp_path)["runs"].values()} >= {(how, 3)}


def test_a_run_that_fails_or_was_further_does_not_hold_up_the_others(tmp_path):
    """Mapped: one run overflows, and another is done already."""
    recipe = cj.override(RECIPE, {"epochs": 3})
    cj.fit(
        cj.override(recipe, {"seed": 1}),
        tmp_path / "runs/base/seed1",
        data=DATA,
        evaluate="validation",
        callbacks=[lambda event: event.step == 4],
        stoppable=True,
        progress=False,
    )
    ablate(tmp_path, [{"optimizer.learning_rate": 1e30}], seeds=3, recipe=recipe, execution="mapped", together=6)
    runs = read_study(tmp_path)["runs"]
    assert cj.load_run(tmp_path / "runs/base/seed1").history[-1]["epoch"] == 3  # it was stopped, and goes on
    assert sorted(name for name, run in runs.items() if run["status"] == "failed") == [
        f"runs/learning_rate=1e+30/seed{seed}" for seed in range(3)
    ]


def test_a_measurement_decides_on_an_accelerator(monkeypatch):
    train_set = (jax.numpy.asarray(DATA["train"].images), jax.numpy.asarray(DATA["train"].labels))
    recipe = made.recipe({"batch_size": 16, "data.train_count": 96})
    assert choose(recipe, train_set, None, 4) == ("sequential", {})  # this is a CPU
    seconds = measure(recipe, train_set, None, 2)
    assert set(seconds) == {"sequential", "unrolled", "mapped"} < {*EXECUTIONS}
    assert all(value > 0 for value in seconds.values())
    monkeypatch.setattr(execution.jax, "default_backend", lambda: "gpu")
    for times, how in (((10, 4, 2), "mapped"), ((10, 4, 9), "unrolled"), ((10, 9.5, 11), "sequential")):
        found = dict(zip(("sequential", "unrolled", "mapped"), times, strict=True))
        monkeypatch.setattr(execution, "measure", lambda *arguments, found=found: found)
        assert choose(recipe, train_set, None, 4) == (how, found)


def test_light_runs_keep_all_but_the_optimiser(tmp_path, finished):
    ablate(tmp_path, light=True)
    size = lambda folder: sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    for name in read_study(tmp_path)["runs"]:
        light, whole = cj.load_run(tmp_path / name), cj.load_run(finished[0] / name)
        made.assert_same(light.state.params, whole.state.params)
        assert (light.state.opt_state, light.evaluation.accuracy) == (None, whole.evaluation.accuracy)
        images = DATA["test"].images
        np.testing.assert_array_equal(light.logits(images), cj.load_classifier(tmp_path / name).logits(images))
        assert size(tmp_path / name / "checkpoints") < 0.6 * size(finished[0] / name / "checkpoints")
        assert not (tmp_path / name / "light").exists()


def test_a_study_that_began_before_there_was_a_context_goes_on(copied, finished, monkeypatch):
    stored = read_study(copied)
    del stored["context"]
    write_study(copied, stored)
    runs = trained(monkeypatch)
    assert len(ablate(copied).rows) == len(finished[1].rows)
    assert not runs


@pytest.mark.parametrize("moment", range(1, 4))
def test_a_kill_while_a_run_is_made_light_loses_nothing(moment, tmp_path, finished, monkeypatch):
    """At each of the moves of the first run: the same command finishes them, and trains nothing twice."""
    moved, replace = [], light.os.replace

    def killed(source, target):
        if "light" in str(source):
            moved.append(source)
            if len(moved) == moment:
                raise KeyboardInterrupt
        return replace(source, target)

    monkeypatch.setattr(light.os, "replace", killed)
    options = {"changes": CHANGES[:1], "seeds": 1, "light": True}
    if moment <= 2:  # the checkpoints, and their manifest
        with pytest.raises(KeyboardInterrupt):
            ablate(tmp_path, **options)
    monkeypatch.undo()
    ablate(tmp_path, **options)
    assert {run["status"] for run in read_study(tmp_path)["runs"].values()} == {"finished"}
    for name in read_study(tmp_path)["runs"]:
        made.assert_same(cj.load_run(tmp_path / name).state.params, cj.load_run(finished[0] / name).state.params)
        assert not (tmp_path / name / "light").exists()


class Own(nn.Module):
    """A caller's model."""

    factor: float = 1.0

    @nn.compact
    def __call__(self, images, *, train):
        return self.factor * nn.Dense(made.CLASSES, name="head")(images.mean((1, 2)))


def test_a_study_of_the_callers_model_may_be_light(tmp_path):
    changes = [{"optimizer.learning_rate": 0.05}]
    recipe = cj.override(RECIPE, {"model": {"name": "cnn"}})
    ablate(tmp_path, changes, seeds=1, recipe=recipe, model=Own(), light=True)
    assert {run["status"] for run in read_study(tmp_path)["runs"].values()} == {"finished"}
    with pytest.raises(cj.InputError, match=r"holds another study .*factor"):
        ablate(tmp_path, changes, seeds=2, recipe=recipe, model=Own(2.0), light=True)


def test_a_change_of_what_a_function_replaces_is_refused(tmp_path):
    """All runs would be equal."""
    recipe = cj.override(RECIPE, {"model": {"name": "cnn"}})
    with pytest.raises(
        cj.InputError, match=r"'model.width' changes nothing, because model=... takes the place of that"
    ):
        cj.ablate(
            recipe, [{"model.width": 8}], seeds=1, folder=tmp_path / "study", data=DATA, model=Own(), progress=False
        )
    assert not (tmp_path / "study").exists()


def test_two_functions_of_one_name_are_two_arms(tmp_path):
    for factor in (1.0, 2.0):
        recipe = cj.override(RECIPE, {"epochs": 1})
        workdir = tmp_path / f"factor{factor}"
        cj.fit(recipe, workdir, data=DATA, model=Own(factor), evaluate="validation", progress=False)
    assert len(cj.compare(tmp_path).rows) == 2


def test_a_study_keeps_the_dtype_that_it_began_with(tmp_path, monkeypatch):
    recipe = cj.override(RECIPE, {"dtype": "auto", "epochs": 1})
    ablate(tmp_path, CHANGES[:1], seeds=1, recipe=recipe)
    monkeypatch.setattr("cifar_jax.studies.options.compute_dtype", lambda dtype: "bfloat16")
    table = ablate(tmp_path, CHANGES[:1], seeds=2, recipe=recipe)
    assert [row.summary.count for row in table.rows] == [2, 2]


def test_figures_of_other_views_are_not_taken_from_the_training(tmp_path):
    """metrics.jsonl has those of the image alone; only the evaluation has those of the recipe's views."""
    recipe = cj.override(RECIPE, {"evaluation.views": "mirror", "epochs": 1})
    cj.fit(recipe, tmp_path, data=DATA, progress=False)
    with pytest.raises(cj.InputError, match="metric 'validation_accuracy' is measured by none of the runs"):
        cj.compare(tmp_path)
    cj.fit(recipe, tmp_path, data=DATA, evaluate="validation", progress=False)
    accuracy = json.loads((tmp_path / "evaluation_validation.json").read_text())["accuracy"]
    assert cj.compare(tmp_path).rows[0].summary.mean == accuracy


def test_a_group_that_does_not_fit_the_memory_is_trained_one_by_one(tmp_path, monkeypatch):
    real = execution.launch_all

    def small(jobs, states, start, how):
        if len(jobs) > 1:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes")
        return real(jobs, states, start, how)

    monkeypatch.setattr(execution, "launch_all", small)
    ablate(tmp_path, CHANGES[1:], seeds=2, execution="mapped")
    runs = read_study(tmp_path)["runs"].values()
    assert [(run["status"], run["execution"]) for run in runs] == [("finished", "sequential")] * 4


def test_a_base_that_failed_is_told(tmp_path):
    recipe = cj.override(RECIPE, {"optimizer.learning_rate": 1e30})
    table = ablate(tmp_path, [{"optimizer.learning_rate": 0.01}], seeds=1, recipe=recipe)
    told = " ".join(str(table).split())
    assert "the base has no finished run, and 'learning_rate=0.01' stands in for it" in told
    with pytest.raises(cj.InputError, match=r"all 2 runs of the study in .* have failed, the first one: .*--retry"):
        ablate(tmp_path / "all", [{"optimizer.learning_rate": 1e29}], seeds=1, recipe=recipe)


def test_arms_have_folders_of_their_own():
    """Names that lose characters keep their digest."""
    arms = grid_arms(RECIPE, {"augment.crop": [0, 1], "init_from": ["a b", "a/b"]})
    assert len({arm.folder for arm in arms}) == 4


def test_a_study_is_not_put_into_the_workdir_of_a_run(copied):
    with pytest.raises(cj.InputError, match="is the workdir of a run; name another folder for the study"):
        ablate(copied / "runs/base/seed0")


def test_a_look_at_the_test_split_by_other_commands_is_told(copied):
    cj.fit(RECIPE, copied / "runs/base/seed0", data=DATA, progress=False)
    for path in (copied, copied.parent):
        told = " ".join(str(cj.compare(path)).split())
        assert "1 runs were evaluated on the test split by other commands" in told
        assert "the test split was not used" in told


def test_final_names_the_runs_that_cannot_be_evaluated_and_goes_on(copied):
    for path in (copied / "runs/base/seed0").glob("checkpoints/*/**/*"):
        if path.is_file():
            path.write_bytes(b"damaged")
    study = Study("ablate", copied, RECIPE, ablation_arms(RECIPE, CHANGES), 2, Options(data=DATA, progress=False))
    with pytest.raises(cj.InputError, match="1 of 6 runs could not be evaluated, the first is runs/base/seed0: "):
        study.final()
    recorded = read_study(copied)
    assert (len(recorded["final"]), recorded["final"][0]["runs"]) == (1, 5)


def test_final_without_a_study_writes_nothing(tmp_path):
    study = Study("ablate", tmp_path / "new", RECIPE, ablation_arms(RECIPE, CHANGES), 2, Options(data=DATA))
    with pytest.raises(cj.InputError, match="is not finished, 6 of 6 runs are missing; train them without --final"):
        study.final()
    assert not (tmp_path / "new").exists()


def test_a_plan_for_distillation_has_its_teacher(copied, tmp_path):
    recipe = cj.override(RECIPE, {"objective": {"name": "distillation", "teacher": str(copied / "runs/base/seed0")}})
    arms = ablation_arms(recipe, CHANGES[:1])
    assert Study("ablate", tmp_path / "new", recipe, arms, 1, Options(data=DATA, progress=False)).plan().seconds > 0


def test_a_plan_counts_runs_programs_time_and_space(copied, tmp_path):
    """Against a study that is half done; nothing is written."""
    changes = [*CHANGES, {"model.dropout": 0}]
    arms, options = ablation_arms(RECIPE, changes), Options(data=DATA, progress=False)
    plan = Study("ablate", copied, RECIPE, arms, 2, options).plan()
    assert (len(plan.runs), plan.finished, plan.compilations) == (2, 6, 1)
    fresh = Study("ablate", tmp_path / "new", RECIPE, arms, 2, options).plan()
    assert (len(fresh.runs), fresh.finished, fresh.compilations) == (8, 0, 3)
    assert fresh.seconds > fresh.compile_seconds > 0
    arrays = sum(leaf.nbytes for leaf in jax.tree.leaves(cj.load_run(copied / "runs/base/seed0").state))
    assert fresh.bytes == 8 * (2 * arrays + 4 * 32 * (1 + made.CLASSES))
    assert "8 runs, 3 programs to compile" in str(fresh)
    assert not (tmp_path / "new").exists()


def test_the_names_of_arms_are_folders_that_can_be_written():
    arms = grid_arms(RECIPE, {"model.activation": ["relu", "gelu"], "augment.crop": [0, 1]})
    assert [arm.folder for arm in arms][:2] == ["runs/activation=relu,crop=0", "runs/activation=relu,crop=1"]
    long = grid_arms(RECIPE, {"init_from": ["/" + "x" * 200, "/" + "x" * 201]})
    assert all(len(Path(arm.folder).name) < 90 for arm in long)
    assert len({arm.folder for arm in long}) == 2
