"""tune on made-up data: what is searched, continued, pruned, refused and written; what a kill at any write leaves."""

import ast
import csv
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import optax
import pytest

optuna = pytest.importorskip("optuna")

import cifar_jax as cj  # noqa: E402
from cifar_jax.runs.events import Event  # noqa: E402
from cifar_jax.runs.files import write_bytes  # noqa: E402
from cifar_jax.runs.workdir import locked  # noqa: E402
from cifar_jax.studies import pruning, storage, trials  # noqa: E402
from cifar_jax.studies import search as search_module  # noqa: E402
from cifar_jax.studies.search import Search  # noqa: E402
from cifar_jax.studies.space import alternatives, choice, integer, log_uniform, uniform  # noqa: E402
from cifar_jax.studies.tune_file import read_tune  # noqa: E402
from tests import made  # noqa: E402

DATA = {"train": made.split(96, seed=0), "test": made.split(40, seed=1)}
RECIPE = cj.override(made.recipe(), {"epochs": 4, "batch_size": 16, "data.validation": 32, "model.dropout": 0.2})
RATES = {"optimizer.learning_rate": log_uniform(1e-3, 1e-1)}
SPACE = {**RATES, "batch_size": choice(16, 32)}


class Killed(BaseException):
    """Stands for the end of a process: no handler of ours catches it, and all locks are released."""


def search(folder, space=RATES, recipe=RECIPE, **options):
    names = {"metric": "validation_accuracy", "sampler": "tpe", "pruner": "none", "seeds": 1, "address": None}
    return Search(recipe, space, folder, **{"data": DATA, "progress": False, **names, **options})


def run(folder, space=RATES, recipe=RECIPE, **options):
    return cj.tune(recipe, space, folder=folder, **{"data": DATA, "progress": False, "trials": 3, **options})


def quality(rate, epoch):
    """Of a learning rate after an epoch, in 0..1: the best rate is 0.02."""
    return round(epoch / 10 - abs(rate - 0.02), 6)


@pytest.fixture
def quick(monkeypatch):
    """`fit` without training: each epoch is told and then saved, a run continues after the last that was saved, and the
    calls are returned. `epochs_done[path]` counts how often each epoch of a run was computed."""
    calls = []

    def fit(recipe, workdir, *, callbacks=(), stoppable=False, **options):
        with locked(workdir):
            saved = workdir / "saved.json"
            state = json.loads(saved.read_text()) if saved.exists() else {"lines": [], "reason": None}
            calls.append((workdir, len(state["lines"])))
            tell = lambda lines: [
                callback(Event(recipe, workdir, lines, len(state["lines"]), recipe.epochs)) for callback in callbacks
            ]
            while state["reason"] is None:
                if len(calls[-1]) == 2:  # the first event has the lines of before
                    calls[-1] = (*calls[-1], tell(state["lines"]))
                if len(state["lines"]) == recipe.epochs:
                    state["reason"] = "finished"
                    break
                epoch = len(state["lines"]) + 1
                accuracy = quality(recipe.optimizer.learning_rate, epoch) - 0.001 * recipe.seed
                line = {"epoch": epoch, "validation_accuracy": accuracy, "validation_loss": 1 - accuracy}
                state["lines"].append(line)
                if any(tell([line])):
                    assert stoppable
                    state["reason"] = "stopped"
                write_bytes(saved, json.dumps(state).encode())
            write_bytes(saved, json.dumps(state).encode())
            last = state["lines"][-1]
            seen = SimpleNamespace(accuracy=last["validation_accuracy"], loss=last["validation_loss"])
            return SimpleNamespace(reason=state["reason"], evaluation=seen, history=state["lines"])

    monkeypatch.setattr(search_module, "fit", fit)
    monkeypatch.setattr(search_module, "finish_lightening", lambda workdir: None)
    return calls


# Optuna's own `finally` looks at a name that is unbound where the process ends in its last write.
KILLS = (Killed, UnboundLocalError)


WRITES = ("_create_new_trial", "_set_trial_param", "set_trial_state_values", "set_trial_intermediate_value")
WRITES = (*WRITES, "set_trial_user_attr", "set_trial_system_attr")


def kill_at(monkeypatch, write, names=WRITES, error=Killed):
    """The process ends after the n-th write to the storage. Returns a list whose item counts the writes."""
    count = [0]

    def patched(original):
        def call(*arguments, **more):
            count[0] += 1
            result = original(*arguments, **more)
            if count[0] == write:
                raise error
            return result

        return call

    for name in names:
        monkeypatch.setattr(optuna.storages.RDBStorage, name, patched(getattr(optuna.storages.RDBStorage, name)))
    return count


# --- a search ---


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune") / "finished"
    return run(folder, SPACE, trials=4)


def test_a_trial_is_the_single_run_of_its_recipe_bit_for_bit(finished, tmp_path):
    trial = finished.trials[2]
    recipe = cj.override(RECIPE, finished.changes(trial))
    single = cj.fit(recipe, tmp_path, data=DATA, evaluate="validation", progress=False)
    stored = cj.load_run(finished.folder / "trials/2/seed0")
    made.assert_same(stored.state, single.state)
    assert trial.value == single.evaluation.accuracy
    assert not (stored.workdir / "evaluation.json").exists()  # the test split is not used


def test_the_best_recipe_trains_as_it_is(finished, tmp_path):
    path = finished.folder / "best.py"
    text, best = path.read_text(), finished.best
    assert best.value == max(trial.value for trial in finished.trials)
    loaded = cj.load_recipe(path)
    assert loaded.batch_size == best.parameters["batch_size"]
    assert loaded.optimizer.learning_rate == best.parameters["optimizer.learning_rate"]
    docstring = ast.get_docstring(ast.parse(text))
    for words in (f"trial {best.number}", f"{best.value:.2%}", "1 seed (0)", "4 epochs", "the best of 4 trials"):
        assert words in docstring
    assert f"cj.fit(cj.load_recipe({str(path)!r}), data=...)" in docstring
    again = cj.fit(loaded, tmp_path, data=DATA, evaluate="validation", progress=False)
    assert again.evaluation.accuracy == best.value
    ruff = Path(sys.executable).parent / "ruff"
    if ruff.exists():
        subprocess.run([ruff, "format", "--check", "--line-length=120", path], check=True)


def test_the_table_and_the_csv_have_every_trial(finished):
    text = str(finished)
    assert text.startswith("4 trials: 4 finished. validation_accuracy (1 seed)")
    lines = list(csv.DictReader((finished.folder / "trials.csv").open()))
    assert [int(line["trial"]) for line in lines] == [0, 1, 2, 3]
    for line, trial in zip(lines, finished.trials, strict=True):
        assert float(line["validation_accuracy"]) == trial.value
        assert float(line["optimizer.learning_rate"]) == trial.parameters["optimizer.learning_rate"]
        assert (line["status"], line["reports"], line["reason"]) == ("finished", "4", "")
        assert f"{100 * trial.value:.2f}" in text
    rows = finished.table().rows
    assert [float(row[2]) for row in rows] == sorted((float(row[2]) for row in rows), reverse=True)


def test_plots(finished):
    pytest.importorskip("plotly")
    names = {path.name for path in finished.plot()}
    assert {"history.html", "slices.html"} <= names
    assert (finished.folder / "plots/plotly.min.js").exists()


def test_a_search_can_be_repeated_whether_it_was_interrupted_or_not(quick, tmp_path):
    whole = run(tmp_path / "whole", trials=13)
    for count in (3, 11, 13):
        parts = run(tmp_path / "parts", trials=count)
    assert [trial.parameters for trial in parts.trials] == [trial.parameters for trial in whole.trials]
    assert len({trial.parameters["optimizer.learning_rate"] for trial in whole.trials}) == 13
    calls = len(quick)
    assert len(run(tmp_path / "whole", trials=13).trials) == 13
    assert len(quick) == calls  # nothing to train


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc", "nsgaii"])
def test_every_sampler_finds_a_good_rate(sampler, quick, tmp_path):
    result = run(tmp_path, sampler=sampler, trials=12)
    assert abs(result.best.parameters["optimizer.learning_rate"] - 0.02) < 0.01
    assert len({trial.parameters["optimizer.learning_rate"] for trial in result.trials}) > 8


def test_loss_is_minimised(quick, tmp_path):
    result = run(tmp_path, metric="validation_loss", trials=6)
    assert result.best.value == min(trial.value for trial in result.trials)
    assert "%" not in result.table().header[2]


def test_seeds_are_averaged(quick, tmp_path):
    result = run(tmp_path, seeds=3, trials=2)
    for trial in result.trials:
        expected = quality(trial.parameters["optimizer.learning_rate"], 4) - 0.001
        assert trial.value == pytest.approx(expected)
    assert {call[0].name for call in quick} == {"seed0", "seed1", "seed2"}


def test_alternatives_and_epochs_can_be_searched(quick, tmp_path):
    sections = ({"name": "sgd", "learning_rate": uniform(0.01, 0.1)}, {"name": "adam", "learning_rate": 1e-3})
    space = {"optimizer": alternatives(*sections), "epochs": integer(1, 3)}
    result = run(tmp_path, space, trials=12)
    names = {trial.parameters["optimizer.name"]: trial for trial in result.trials}
    assert result.changes(names["adam"])["optimizer.learning_rate"] == 1e-3
    assert {trial.reports for trial in result.trials} == {1, 2, 3}
    assert cj.load_recipe(tmp_path / "best.py").optimizer.name == result.best.parameters["optimizer.name"]


def test_a_trial_that_fails_is_shown_with_its_reason_and_the_others_go_on(tmp_path):
    result = run(tmp_path, {"optimizer.learning_rate": choice(0.01, 1e30)}, trials=6, sampler="random")
    failed = [trial for trial in result.trials if trial.status == "failed"]
    assert 0 < len(failed) < 6
    assert all("the loss is not finite at step" in trial.reason for trial in failed)
    assert f"trial {failed[0].number} failed: the loss is not finite at step" in str(result)
    assert result.best.parameters["optimizer.learning_rate"] == 0.01
    assert all(trial.retries == 0 for trial in failed)


def test_max_hours_begins_no_further_trial(quick, tmp_path, capsys):
    result = run(tmp_path, trials=50, max_hours=1e-9, progress=True)
    assert [trial.status for trial in result.trials] == ["waiting"]  # the recipe as it is
    assert "stopped after 1e-09 hours; the same command continues" in capsys.readouterr().err


def test_light_keeps_no_optimiser_state(tmp_path):
    run(tmp_path, trials=1, light=True)
    assert cj.load_run(tmp_path / "trials/0/seed0").state.opt_state is None


# --- pruning ---


def test_the_median_ends_trials_that_are_worse(quick, tmp_path):
    result = run(tmp_path, trials=20, pruner="median", sampler="random")
    pruned = [trial for trial in result.trials if trial.status == "pruned"]
    assert pruned
    assert all(trial.number >= pruning.STARTUP and 1 <= trial.reports < 4 for trial in pruned)
    rates = lambda status: [
        abs(trial.parameters["optimizer.learning_rate"] - 0.02) for trial in result.trials if trial.status == status
    ]
    assert min(rates("pruned")) > sorted(rates("finished"))[len(rates("finished")) // 2 - 1]
    for trial in pruned:
        assert trial.value == quality(trial.parameters["optimizer.learning_rate"], trial.reports)


def test_real_runs_are_pruned_once_an_epoch(tmp_path):
    result = run(tmp_path, trials=9, pruner="hyperband", recipe=cj.override(RECIPE, {"epochs": 9}))
    pruned = [trial for trial in result.trials if trial.status == "pruned"]
    assert pruned
    for trial in pruned:
        stopped = cj.load_run(tmp_path / f"trials/{trial.number}/seed0")
        assert (stopped.reason, len(stopped.history)) == ("stopped", trial.reports)
        reported = result.study.trials[trial.number].intermediate_values
        assert reported == {line["epoch"]: line["validation_accuracy"] for line in stopped.history}


def test_hyperband_keeps_a_retry_in_the_bracket_of_the_first_attempt():
    pruner, study = pruning.make_pruner("hyperband", 27), optuna.create_study(study_name="brackets")
    pruner._try_initialization(study)
    attempt = lambda number, state="RUNNING", **user: SimpleNamespace(
        number=number, state=optuna.trial.TrialState[state], user_attrs=user
    )
    own = [pruner._get_bracket_id(study, attempt(number)) for number in range(40)]
    assert len(set(own)) == 4
    for number in range(40):
        assert pruner._get_bracket_id(study, attempt(99, original=number)) == own[number]
    assert pruner._get_bracket_id(study, attempt(3, "FAIL")) == -1  # its successor counts
    assert pruner._get_bracket_id(study, attempt(3, "FAIL", reason="loss")) == own[3]
    theirs = optuna.pruners.HyperbandPruner(max_resource=27)
    theirs._try_initialization(study)
    assert own == [theirs._get_bracket_id(study, attempt(number)) for number in range(40)]


def test_wilcoxon_reports_seed_by_seed(quick, tmp_path):
    result = run(tmp_path, trials=8, seeds=6, pruner="wilcoxon", sampler="random")
    pruned = [trial for trial in result.trials if trial.status == "pruned"]
    assert pruned
    for trial in pruned:
        seeds = {call[0].name for call in quick if call[0].parent.name == str(trial.number)}
        assert seeds == {f"seed{seed}" for seed in range(trial.reports)}
        assert 4 <= len(seeds) < 6


# --- what a kill leaves ---


@pytest.mark.parametrize("pruner", ["none", "hyperband"])
def test_a_kill_at_any_write_loses_no_trial_and_trains_none_twice(pruner, quick, tmp_path, monkeypatch):
    options = {"pruner": pruner, "trials": 2, "recipe": cj.override(RECIPE, {"epochs": 3})}
    begin = search(tmp_path / "begun/study", pruner=pruner, recipe=options["recipe"])
    begin.open()
    with monkeypatch.context() as patch:
        writes = kill_at(patch, 0)
        whole = run(shutil.copytree(begin.folder, tmp_path / "whole/study"), **options)
    assert writes[0] >= 2 * 7  # new, host, parameter, 3 epochs, value
    for write in range(1, writes[0] + 1):
        folder = shutil.copytree(begin.folder, tmp_path / f"{write}/study")
        with monkeypatch.context() as patch:
            kill_at(patch, write)
            with pytest.raises(KILLS):
                run(folder, **options)
        begun = search(folder, pruner=pruner, recipe=options["recipe"]).result().trials
        quick.clear()
        result = run(folder, **options)
        assert [trial.number for trial in result.trials] in ([0, 1], [0, 2])
        assert [trial.parameters for trial in result.trials] == [trial.parameters for trial in whole.trials]
        for trial in result.trials:
            assert trial.status in ("finished", "pruned")
            known = {before.number: before.parameters for before in begun}.get(trial.number, {})
            assert known.items() <= trial.parameters.items()  # with the values that it began with
            assert trial.value == quality(trial.parameters["optimizer.learning_rate"], trial.reports)
        last = {trials.number_of(each): each for each in result.study.trials}
        assert all(len(each.intermediate_values) == each.last_step for each in last.values())
        computed = [call[0] for call in quick]
        assert len(computed) == len(set(computed))  # no trial is trained by two


def test_a_kill_while_trials_are_queued_again_loses_none(quick, tmp_path, monkeypatch):
    def dead_trial(folder):
        with monkeypatch.context() as patch:
            kill_at(patch, 12)  # in the second trial, between two epochs
            with pytest.raises(KILLS):
                run(folder, trials=2)

    dead_trial(tmp_path / "count")
    with monkeypatch.context() as patch:
        writes = kill_at(patch, 0)
        opened = search(tmp_path / "count")
        opened.open()
        with storage.queue_lock(opened.folder):
            assert trials.requeue_lost(opened.study, opened.folder) == [1]
    assert writes[0] >= 2  # the successor, and the end of the dead attempt
    for write in range(1, writes[0] + 1):
        folder = tmp_path / str(write)
        dead_trial(folder)
        with monkeypatch.context() as patch:
            kill_at(patch, write)
            with pytest.raises(KILLS):
                run(folder, trials=2)
        result = run(folder, trials=2)
        assert [(trial.number, trial.status) for trial in result.trials] == [(0, "finished"), (1, "finished")]
        assert result.trials[1].retries == 1
        assert [each.state.name for each in result.study.trials] == ["COMPLETE", "FAIL", "COMPLETE"]


def test_a_retry_continues_at_the_checkpoint_exactly(tmp_path, monkeypatch):
    class Stop(pruning.Reports):
        def __call__(self, event):
            super().__call__(event)
            if self.trial.number == 1 and event.lines and event.lines[-1]["epoch"] == 3:
                raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(pruning, "Reports", Stop)
        with pytest.raises(Killed):
            run(tmp_path / "study", SPACE)
    starts, fit = [], search_module.fit
    first = lambda event: starts.append((event.workdir, event.step)) if not event.lines or event.step else None

    def spied(recipe, workdir, *, callbacks, **more):
        return fit(recipe, workdir, callbacks=[first, *callbacks], **more)

    monkeypatch.setattr(search_module, "fit", spied)
    result = run(tmp_path / "study", SPACE)
    assert [trial.retries for trial in result.trials] == [0, 1, 0]
    own = [step for workdir, step in starts if workdir.parent.name == "1"]
    assert own[0] > 0  # from the checkpoint on, in the folder of the first attempt
    recipe = cj.override(RECIPE, result.changes(result.trials[1]))
    single = cj.fit(recipe, tmp_path / "single", data=DATA, evaluate="validation", progress=False)
    made.assert_same(cj.load_run(tmp_path / "study/trials/1/seed0").state, single.state)
    successor = result.study.trials[2]
    assert successor.user_attrs["original"] == 1
    assert optuna.storages.RetryHeartbeatStaleTrialCallback.retried_trial_number(successor) == 1
    assert successor.intermediate_values == {line["epoch"]: line["validation_accuracy"] for line in single.history}
    assert {path.name for path in (tmp_path / "study/trials").iterdir()} == {"0", "1", "3"}


def test_after_three_retries_a_trial_has_failed(quick, tmp_path, monkeypatch):
    def killed(*arguments, **more):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(search_module, "fit", killed)
        for _ in range(4):
            with pytest.raises(Killed):
                run(tmp_path, trials=1)
    result = run(tmp_path, trials=2)
    assert [(trial.status, trial.retries) for trial in result.trials] == [("failed", 3), ("finished", 0)]
    assert "trial 0 failed: its process ended without a result 4 times" in str(result)
    assert next(csv.DictReader((tmp_path / "trials.csv").open()))["status"] == "failed"
    assert run(tmp_path, trials=2).trials == result.trials  # and it stays so


def test_a_signal_leaves_the_trial_untold_and_counts_as_no_retry(quick, tmp_path, monkeypatch):
    def interrupted(*arguments, **more):
        raise KeyboardInterrupt

    for _ in range(6):
        with monkeypatch.context() as patch:
            patch.setattr(search_module, "fit", interrupted)
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path, trials=1)
        assert [trial.status for trial in search(tmp_path).result().trials] == ["interrupted"]
    result = run(tmp_path, trials=1)
    assert [(trial.status, trial.retries) for trial in result.trials] == [("finished", 0)]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_search_that_signals_interrupt_anywhere_draws_what_an_unbroken_one_draws(
    sampler, quick, tmp_path, monkeypatch
):
    """Also between taking a trial and its lock, and between its first value and its second; no signal is a retry."""
    whole = run(tmp_path / "whole", SPACE, trials=14, sampler=sampler)
    often = ("set_trial_user_attr", "set_trial_state_values", "_create_new_trial", "_set_trial_param")
    moments = [("set_trial_intermediate_value", 43)]  # in the eleventh trial; TPE draws at random before it
    moments += [(name, 1) for name in (*often, "set_trial_state_values") for _ in range(5)]  # there are three retries
    for name, write in moments:
        with monkeypatch.context() as patch:
            kill_at(patch, write, (name,), KeyboardInterrupt)
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path / "parts", SPACE, trials=14, sampler=sampler)
    parts = run(tmp_path / "parts", SPACE, trials=14, sampler=sampler)
    assert len(parts.study.trials) > 14 + 15
    assert [trial.parameters for trial in parts.trials] == [trial.parameters for trial in whole.trials]
    assert {(trial.status, trial.retries) for trial in parts.trials} == {("finished", 0)}


@pytest.mark.parametrize("inner", ["", "seed0"])
def test_a_trial_whose_lock_is_taken_is_left_for_later(inner, quick, tmp_path):
    search(tmp_path).open()
    with locked(tmp_path / "trials/0" / inner):
        result = run(tmp_path, trials=2)
        status = {trial.number: trial.status for trial in result.trials}
        assert status == {0: "running", 1: "finished"}  # the owner of the lock may finish it
        assert run(tmp_path, trials=2).trials == result.trials
    result = run(tmp_path, trials=2)
    assert [trial.status for trial in result.trials] == ["finished", "finished"]


def test_a_stale_trial_that_optuna_failed_is_queued_again(quick, tmp_path):
    """Optuna's own workers mark it, and a kill between that and their callback loses the retry."""
    opened = search(tmp_path)
    opened.open()
    trial = opened.study.ask({"optimizer.learning_rate": optuna.distributions.FloatDistribution(1e-3, 0.1, log=True)})
    trial.set_user_attr("host", socket.gethostname())
    (tmp_path / "trials/0/seed0").mkdir(parents=True)
    opened.study.tell(trial, state=optuna.trial.TrialState.FAIL)
    assert [record.status for record in opened.result().trials] == ["interrupted"]
    result = run(tmp_path, trials=1)
    assert [(record.number, record.status, record.retries) for record in result.trials] == [(0, "finished", 1)]
    assert result.trials[0].parameters == trial.params


def test_a_trial_of_another_machine_needs_a_stopped_heartbeat_too(quick, tmp_path, monkeypatch):
    opened = search(tmp_path)
    opened.open()
    trial = opened.study.ask()
    trial.set_user_attr("host", "another machine")
    assert [record.status for record in run(tmp_path, trials=1).trials] == ["running"]
    with monkeypatch.context() as patch:
        patch.setattr(optuna.storages.RDBStorage, "_get_stale_trial_ids", lambda self, study: [trial._trial_id])
        assert [record.status for record in run(tmp_path, trials=1).trials] == ["finished"]


def test_a_worker_that_slept_and_was_taken_for_dead_changes_nothing(quick, tmp_path, monkeypatch):
    fit = search_module.fit

    def slept(recipe, workdir, **more):
        opened.study.tell(0, state=optuna.trial.TrialState.FAIL)  # what another worker does meanwhile
        return fit(recipe, workdir, **more)

    opened = search(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(search_module, "fit", slept)
        patch.setattr(Search, "_tell", lambda self, count: None)
        original = opened._attempt

        def once(queue, count):
            original(queue, count)
            raise Killed

        patch.setattr(opened, "_attempt", once)
        with pytest.raises(Killed):
            opened.work(1)
    assert [trial.status for trial in opened.result().trials] == ["interrupted"]
    assert [(trial.number, trial.status) for trial in run(tmp_path, trials=1).trials] == [(0, "finished")]


# --- the recipe that was given, and when a search ends ---


def test_the_recipe_that_was_given_is_the_first_trial(quick, tmp_path, capsys):
    sgd = {"name": "sgd", "learning_rate": log_uniform(1e-3, 1e-1), "momentum": 0.9}
    recipe = cj.override(RECIPE, {"optimizer.name": "sgd", "optimizer.momentum": 0.9, "optimizer.learning_rate": 0.05})
    space = {"optimizer": alternatives({"name": "adam", "learning_rate": 1e-3}, sgd), "batch_size": choice(16, 32)}
    result = run(tmp_path / "given", space, recipe=recipe, trials=3, progress=True)
    assert result.given.number == 0
    assert cj.override(recipe, result.changes(result.trials[0])) == recipe
    assert [trial.is_given for trial in result.trials] == [True, False, False]
    sentence = f"The recipe as it was given is trial 0: {100 * quality(0.05, 4):.2f}%."
    assert sentence in str(result)
    assert sentence in " ".join((tmp_path / "given/best.py").read_text().split())
    assert "none of the trials" not in capsys.readouterr().err
    assert len(run(tmp_path / "given", space, recipe=recipe, trials=4).trials) == 4  # and it is so once


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"optimizer.learning_rate": 0.5}, "optimizer.learning_rate=0.5 is not in log_uniform(0.001, 0.1)"),
        ({"batch_size": 24}, "batch_size=24 is not in choice(16, 32)"),
    ],
)
def test_a_recipe_outside_the_space_is_no_trial_and_told(fields, why, quick, tmp_path, capsys):
    result = run(tmp_path, SPACE, recipe=cj.override(RECIPE, fields), trials=2, progress=True)
    assert result.given is None
    assert f"the given recipe is none of the trials, because the search space does not hold it: {why}" in (
        capsys.readouterr().err
    )


def test_a_retry_of_the_given_recipe_is_the_given_recipe(quick, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill_at(patch, 1, ("_set_trial_param",))
        with pytest.raises(KILLS):
            run(tmp_path, SPACE)
    result = run(tmp_path, SPACE)
    assert (result.given.number, result.given.retries) == (0, 1)
    assert result.given.parameters["optimizer.learning_rate"] == RECIPE.optimizer.learning_rate


def test_patience_ends_a_search_that_does_not_improve(quick, tmp_path, capsys):
    result = run(tmp_path, trials=40, patience=6, sampler="random", progress=True)
    assert len(result.trials) == result.best.number + 7 < 40
    assert "stopped: 6 trials have ended since the best one; a larger patience continues" in capsys.readouterr().err
    assert len(run(tmp_path, trials=40, patience=7, sampler="random").trials) > len(result.trials)


def test_a_search_whose_first_trials_all_fail_ends_and_can_be_retried(quick, tmp_path, monkeypatch, capsys):
    def failed(*arguments, **more):
        raise ValueError("no luck")

    with monkeypatch.context() as patch:
        patch.setattr(search_module, "fit", failed)
        result = run(tmp_path, trials=40, progress=True)
        assert [trial.status for trial in result.trials] == ["failed"] * 5
        assert "stopped: all 5 trials have failed; --retry trains them again" in capsys.readouterr().err
        assert "The best of many" not in str(result)
        with pytest.raises(
            cj.InputError, match=r"all 5 trials .* have failed, the first one: ValueError: no luck; the"
        ):
            _ = result.best_recipe
        assert run(tmp_path, trials=40).trials == result.trials
    again = run(tmp_path, trials=6, retry=True)
    assert [trial.status for trial in again.trials] == ["finished"] * 6
    assert [trial.parameters for trial in again.trials[:5]] == [trial.parameters for trial in result.trials]
    assert again.trials[0].retries == 0


def test_a_plan_says_what_is_searched_and_trains_nothing(tmp_path):
    plan = search(tmp_path / "study", SPACE).plan(5)
    assert "optimizer.learning_rate: log_uniform(0.001, 0.1)" in plan
    assert "5 trials (0 more are there already), 5 runs" in plan
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("change", [shutil.copytree, shutil.move])
def test_a_search_continues_in_a_folder_of_another_name(change, quick, tmp_path):
    before = run(tmp_path / "one", trials=2)
    change(tmp_path / "one", tmp_path / "two")
    after = run(tmp_path / "two", trials=3)
    assert after.trials[:2] == before.trials
    assert cj.load_search(tmp_path / "two").trials == after.trials


# --- what is refused ---


@pytest.mark.parametrize("name", ["study.json", "tune.json"])
def test_a_run_is_not_trained_into_the_folder_of_a_study(name, tmp_path):
    (tmp_path / name).write_text("{}")
    with pytest.raises(cj.InputError, match=r"is the folder of a (study|search by tune); name another folder for the"):
        cj.fit(RECIPE, tmp_path, data=DATA, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_a_new_search_would_overwrite_is_refused(quick, tmp_path):
    for name in ("best.py", "trials.csv"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text("mine")
        with pytest.raises(cj.InputError, match=rf"has '{name}', and no tune.json that says which search"):
            run(folder)
        assert [path.read_text() for path in folder.iterdir()] == ["mine"]
    run(tmp_path / "search", trials=1)
    (tmp_path / "search/tune.json").unlink()
    before = (tmp_path / "search/trials.csv").read_text()
    with pytest.raises(cj.InputError, match=r"has 'space.json', and no tune.json"):
        run(tmp_path / "search", {"batch_size": choice(16, 32)})
    assert (tmp_path / "search/trials.csv").read_text() == before


def test_a_damaged_database_is_named(quick, tmp_path):
    run(tmp_path, trials=1)
    (tmp_path / "trials.db").write_text("no database at all, but text" * 100)
    with pytest.raises(cj.InputError, match=r"cannot be reached \(file is not a database\); restore that file"):
        run(tmp_path, trials=2)


def test_a_file_in_place_of_the_folder_is_refused(quick, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(cj.InputError, match=r"folder '.*file' cannot be written \(File exists\); name another folder"):
        run(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ({"metric": "test_accuracy"}, "a search compares 'validation_accuracy' or 'validation_loss'"),
        ({"sampler": "tp"}, "sampler is 'tp'; did you mean 'tpe'?"),
        ({"pruner": "medan"}, "pruner is 'medan'; did you mean 'median'?"),
        ({"pruner": "median", "space": {"epochs": integer(1, 3)}}, "and the search space changes 'epochs'"),
        ({"pruner": "median", "seeds": 3}, "a trial has 3 seeds; ask for 1 seed, or set pruner='wilcoxon'"),
        ({"pruner": "wilcoxon", "seeds": 4}, "cannot end one before its fourth of 4 seeds; ask for 5 seeds or more"),
        ({"trials": 0}, "trials is 0; a search needs a whole number of them, at least 1"),
        ({"seeds": 0}, "the number of seeds is 0"),
        ({"max_hours": 0}, "max_hours is 0; it must be a number above 0"),
        ({"max_hours": "1"}, "max_hours is '1'; it must be a number above 0"),
        ({"patience": 0}, "patience is 0; it is a number of trials, at least 1"),
        ({"sampler": optuna.samplers.RandomSampler()}, "; give it by its name. Known: "),
        ({"pruner": ["median"]}, "pruner is ['median']; give it by its name. Known: hyperband, "),
        ({"trials": "5"}, "trials is '5'; a search needs a whole number of them, at least 1"),
        ({"recipe": 3}, "the recipe is 3; give a recipe"),
        (
            {"recipe": cj.override(RECIPE, {"optimizer.rate": 1})},
            "recipe field 'optimizer.rate' is unknown to optimizer",
        ),
        ({"folder": ""}, "folder is ''; it is a path"),
        ({"folder": 3}, "folder is 3; it is a path, such as 'studies/NAME'"),
        ({"together": 3}, "tune has no option 'together'"),
        ({"folder": None}, "give folder='studies/NAME'"),
        ({"recipe": cj.override(RECIPE, {"data.validation": 0})}, "a study compares its runs on a validation split"),
        ({"space": {"model.dropuot": uniform(0, 1)}}, "recipe field 'model.dropuot' is unknown to model 'cnn'"),
        ({"space": {"batch_size": choice(16, 128)}}, "a recipe that cannot be trained (batch_size=128): "),
        ({"space": {}}, "the search space is {}"),
        ({"storage": "journal.log"}, "is no address of a database; give postgresql://USER@HOST/DATABASE"),
        ({"storage": "sqlite://"}, "is in the memory of this process"),
        ({"storage": "nothing://here"}, "needs a driver that is not installed"),
        ({"storage": "sqlite:////nowhere/trials.db"}, "cannot be reached (unable to open database file)"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(options, answer, tmp_path):
    options = {"folder": tmp_path / "study", **options}
    with pytest.raises(cj.InputError) as error:
        run(options.pop("folder"), **options)
    assert answer in str(error.value)
    assert not (tmp_path / "study").exists()


def test_what_a_function_replaces_is_not_searched_and_no_file_names_it(quick, tmp_path):
    loss = lambda logits, targets: optax.softmax_cross_entropy(logits, targets)
    with pytest.raises(
        cj.InputError, match=r"'loss.label_smoothing' changes nothing, because loss=... takes the place"
    ):
        run(tmp_path / "refused", {"loss.label_smoothing": uniform(0.0, 0.5)}, loss=loss)
    assert not (tmp_path / "refused").exists()
    result = run(tmp_path / "study", loss=loss)
    assert result.best is not None
    assert (tmp_path / "study" / "trials.csv").exists()
    assert not (tmp_path / "study" / "best.py").exists()
    assert cj.load_search(tmp_path / "study").functions == result.functions == ("loss",)


def test_a_database_that_is_away_is_named_without_its_password(tmp_path):
    pytest.importorskip("psycopg")
    with pytest.raises(cj.InputError) as error:
        run(tmp_path / "study", storage="postgresql://me:secret@127.0.0.1:1/trials")
    assert "storage 'postgresql+psycopg://me:***@127.0.0.1:1/trials' cannot be reached (" in str(error.value)
    assert "secret" not in str(error.value)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ({"space": {"optimizer.learning_rate": log_uniform(1e-3, 1)}}, "holds another study (space: "),
        ({"metric": "validation_loss"}, "metric: validation_accuracy -> validation_loss"),
        ({"sampler": "random"}, "sampler: tpe -> random"),
        ({"pruner": "median"}, "pruner: none -> median"),
        ({"seeds": 2}, "seeds of a trial: 1 -> 2"),
        ({"recipe": cj.override(RECIPE, {"epochs": 5})}, "holds another study (epochs: 4 -> 5)"),
        ({"data": {"train": made.split(96, seed=5)}}, "its data has digest made-96-4-8-0"),
        ({"storage": "sqlite:///other.db"}, "are kept in its own folder, without --storage; ask for the same"),
    ],
)
def test_another_search_in_the_folder_is_refused(options, answer, quick, tmp_path):
    run(tmp_path, trials=1)
    before = (tmp_path / "tune.json").read_bytes(), (tmp_path / "trials.csv").read_bytes()
    with pytest.raises(cj.InputError) as error:
        run(tmp_path, **{"trials": 1, **options})
    assert answer in str(error.value)
    assert ((tmp_path / "tune.json").read_bytes(), (tmp_path / "trials.csv").read_bytes()) == before


def test_a_storage_that_belongs_to_another_study_is_refused(quick, tmp_path):
    address = f"sqlite:///{tmp_path}/shared.db"
    run(tmp_path / "a/study", trials=1, storage=address)
    assert read_tune(tmp_path / "a/study")["storage"] == address
    with pytest.raises(cj.InputError, match="holds a study 'study' that belongs to another folder"):
        run(tmp_path / "b/study", trials=1, storage=address)
    assert not (tmp_path / "b/study").exists()
    run(tmp_path / "b/other", trials=1, storage=address)  # two studies can share it
    with pytest.raises(cj.InputError, match=r"are kept in --storage='sqlite:.*shared.db'; ask for the same"):
        run(tmp_path / "a/study", trials=1)
    (tmp_path / "shared.db").unlink()
    with pytest.raises(cj.InputError, match=r"are not there \(.*shared.db\); correct the address, or restore"):
        run(tmp_path / "a/study", trials=1, storage=address)
    assert not (tmp_path / "shared.db").exists()


def test_a_kill_while_a_study_begins_is_repaired(quick, tmp_path, monkeypatch):
    for step in ("create_new_study", "set_study_user_attr"):
        for after in (False, True):
            folder, real = tmp_path / f"{step}-{after}", getattr(optuna.storages.RDBStorage, step)

            def killed(*arguments, original=real, after=after, **more):
                if after:
                    original(*arguments, **more)
                raise Killed

            with monkeypatch.context() as patch:
                patch.setattr(optuna.storages.RDBStorage, step, killed)
                with pytest.raises(Killed):
                    run(folder, trials=1)
            assert [trial.status for trial in run(folder, trials=1).trials] == ["finished"]


def test_other_folders_are_refused(quick, tmp_path):
    for name, answer in (("run.json", "is the workdir of a run"), ("study.json", "is the folder of a study")):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text("{}")
        with pytest.raises(cj.InputError, match=answer):
            run(folder)
    run(tmp_path / "search", trials=1)
    path = tmp_path / "search/tune.json"
    path.write_text(path.read_text().replace('"tpe"', '"random"'))
    with pytest.raises(cj.InputError, match=r"tune.json is damaged, or was changed"):
        run(tmp_path / "search")


@pytest.mark.parametrize(
    ("module", "call", "answer"),
    [
        ("optuna", {}, "tune needs optuna, which is not installed; install it with pip install -c constraints.txt -e"),
        ("psycopg", {"storage": "postgresql://me@host/db"}, "needs a driver that is not installed; pip install -c"),
        ("torch", {"sampler": "gp"}, "sampler 'gp' needs torch, which is not installed; install it with pip install"),
    ],
)
def test_a_missing_library_is_answered_with_the_command_that_installs_it(module, call, answer, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(cj.InputError, match=answer):
        run(tmp_path / "study", **call)
    assert not (tmp_path / "study").exists()


def test_plots_without_plotly_are_answered(finished, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(cj.InputError, match="plots of a search need plotly, which is not installed"):
        finished.plot()


def test_a_database_that_is_lost_in_a_trial_leaves_it_untold(quick, tmp_path, monkeypatch):
    def lost(*arguments, **more):
        raise optuna.exceptions.StorageInternalError("server closed the connection")

    with monkeypatch.context() as patch:
        patch.setattr(optuna.storages.RDBStorage, "set_trial_intermediate_value", lost)
        with pytest.raises(
            cj.InputError, match=r"cannot be reached any more \(server closed .*the same command contin"
        ):
            run(tmp_path, trials=1)
    assert [(trial.status, trial.retries) for trial in run(tmp_path, trials=1).trials] == [("finished", 1)]
