"""A run that was stopped, killed or damaged ends as the unbroken run does, bit for bit."""

import functools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import cifar_jax as cj
from cifar_jax.runs import log, programs
from tests import made

ROOT = Path(__file__).parent.parent
DATA = {"train": made.split(96, classes=4, size=8, seed=0), "test": made.split(40, classes=4, size=8, seed=1)}
FULL = {
    "epochs": 5,
    "batch_size": 16,
    "data.validation": 32,
    "model.dropout": 0.3,
    "augment.flip": 0.5,
    "augment.crop": 1,
    "average.decay": 0.9,
}


def fit(recipe, workdir=None, **options):
    return cj.fit(recipe, workdir, data=DATA, progress=False, **options)


@functools.cache
def whole(recipe):
    """The run that nobody stopped; without a workdir it is the same (test_with_and_without_a_workdir_...)."""
    return fit(recipe)


def untimed(history):
    timed = ("seconds", "images_per_second")
    return [{name: value for name, value in line.items() if name not in timed} for line in history]


def assert_same(run, other):
    """Bitwise equal states, equal histories but for the clock, equal evaluations."""
    assert untimed(run.history) == untimed(other.history)
    assert jax.tree.structure(run.state) == jax.tree.structure(other.state)
    for one, two in zip(jax.tree.leaves(run.state), jax.tree.leaves(other.state), strict=True):
        np.testing.assert_array_equal(one, two)
    assert run.evaluation.to_json() == other.evaluation.to_json()


def stop_after(epoch, monkeypatch):
    """Ctrl-C just after the line of that epoch was written, before its checkpoint is saved."""
    append = log.MetricsFile.append

    def interrupted(self, lines):
        append(self, lines)
        if lines[-1]["epoch"] == epoch:
            raise KeyboardInterrupt

    monkeypatch.setattr(log.MetricsFile, "append", interrupted)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"chunk_epochs": 2},
        {"checkpoint.every_epochs": 2},
        {"early_stopping.patience": 4},
        {"early_stopping.patience": 4, "chunk_epochs": 2},
        {"average": {"decay": 0.0, "start_epoch": 2}, "optimizer.name": "muon", "optimizer.learning_rate": 0.02},
        {
            "average.decay": 0.0,
            "lookahead.steps": 3,
            "sam.rho": 0.05,
            "augment.flip": 0.0,
            "augment.alternating_flip": 1,
            "augment.randaugment": 3.0,
            "augment.mixup": 0.2,
            "groups": (("Conv.*", 1.0, 1.0), ("(Dense|head).*", 0.5, 1.0)),
        },
        {"part_steps": 2, "checkpoint.every_minutes": 0.0, "average": {"decay": 0.0, "start_epoch": 2}},
    ],
    ids=[
        "each epoch",
        "chunks of two",
        "saved every second",
        "early stopping",
        "early stopping in chunks",
        "weight averaging",
        "lookahead",
        "parts of epochs",
    ],
)
@pytest.mark.parametrize("epoch", [1, 4])
def test_a_stopped_run_resumes_exactly(changes, epoch, tmp_path, monkeypatch):
    recipe = made.recipe(**FULL | changes)
    with monkeypatch.context() as patch:
        stop_after(epoch if recipe.chunk_epochs == 1 else 4, patch)
        with pytest.raises(KeyboardInterrupt):
            fit(recipe, tmp_path / "stopped")
    assert_same(fit(recipe, tmp_path / "stopped"), whole(recipe))
    assert_same(cj.load_run(tmp_path / "stopped"), whole(recipe))


def test_chunks_do_not_change_the_run(tmp_path):
    """How many epochs run as one program is a matter of speed only."""
    one, three = (fit(made.recipe(**FULL, chunk_epochs=chunk)) for chunk in (1, 3))
    assert_same(one, three)


def test_with_and_without_a_workdir_is_the_same_run(tmp_path):
    assert_same(whole(made.recipe(**FULL)), fit(made.recipe(**FULL), tmp_path))


def test_a_complete_run_is_returned_as_it_is(tmp_path):
    recipe = made.recipe(**FULL)
    fit(recipe, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}
    assert_same(fit(recipe, tmp_path), whole(recipe))
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_recipe_json_alone_repeats_the_run(tmp_path):
    first = fit(made.recipe(**FULL), tmp_path / "whole")
    again = fit(cj.load_recipe(tmp_path / "whole" / "recipe.json"), tmp_path / "again")
    assert_same(again, first)


@pytest.mark.parametrize("damage", ["flip a bit", "remove", "empty"])
def test_a_damaged_newest_checkpoint_costs_only_its_epochs(damage, tmp_path, monkeypatch):
    recipe = made.recipe(**FULL)
    with monkeypatch.context() as patch:
        stop_after(4, patch)
        with pytest.raises(KeyboardInterrupt):
            fit(recipe, tmp_path / "run")
    newest = max((tmp_path / "run" / "checkpoints").iterdir(), key=lambda path: int(path.name))
    largest = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    if damage == "flip a bit":
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 1
        largest.write_bytes(content)
    elif damage == "remove":
        largest.unlink()
    else:
        shutil.rmtree(newest)
        newest.mkdir()
    with pytest.warns(UserWarning, match=f"checkpoint {newest.name}"):
        resumed = fit(recipe, tmp_path / "run")
    assert_same(resumed, whole(recipe))
    assert (tmp_path / "run" / "quarantine" / newest.name).exists()


def test_a_half_written_line_is_written_again(tmp_path, monkeypatch):
    recipe = made.recipe(**FULL)
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        with pytest.raises(KeyboardInterrupt):
            fit(recipe, tmp_path / "run")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "ste')
    assert [line["epoch"] for line in log.read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3]
    assert_same(fit(recipe, tmp_path / "run"), whole(recipe))


def test_another_recipe_is_refused_field_by_field(tmp_path):
    fit(made.recipe(**FULL), tmp_path)
    before = (tmp_path / "recipe.json").read_text()
    changed = made.recipe(**FULL | {"optimizer.learning_rate": 0.125, "augment.crop": 2})
    with pytest.raises(cj.InputError, match=r"augment.crop: 1 -> 2; optimizer.learning_rate: [\d.]+ -> 0.125"):
        fit(changed, tmp_path)
    assert (tmp_path / "recipe.json").read_text() == before


def test_other_data_is_refused(tmp_path):
    fit(made.recipe(**FULL), tmp_path)
    (tmp_path / "evaluation.json").unlink()
    other = {**DATA, "train": made.split(96, classes=4, size=8, seed=7)}
    with pytest.raises(cj.InputError, match="digest"):
        cj.fit(made.recipe(**FULL), tmp_path, data=other, progress=False)


def test_two_processes_cannot_share_a_workdir(tmp_path):
    from cifar_jax.runs.workdir import locked

    with locked(tmp_path), pytest.raises(cj.InputError, match="in use"):
        fit(made.recipe(**FULL), tmp_path)


def test_early_stopping_ends_on_the_best_epoch(tmp_path):
    """With a learning rate of 0 nothing improves after the first epoch."""
    recipe = made.recipe(**FULL | {"epochs": 9, "early_stopping.patience": 2, "optimizer.learning_rate": 0.0})
    run = fit(recipe, tmp_path)
    assert [line["epoch"] for line in run.history] == [1, 2, 3]
    assert run.state.step == run.history[0]["step"]
    assert_same(cj.load_run(tmp_path), run)
    assert cj.load_run(tmp_path, "last").state.step == run.history[-1]["step"]


def test_early_stopping_by_loss_keeps_the_lowest(tmp_path):
    changes = {"epochs": 8, "early_stopping.patience": 3, "early_stopping.metric": "validation_loss"}
    run = fit(made.recipe(**FULL | changes), tmp_path)
    lowest = min(run.history, key=lambda line: line["validation_loss"])
    assert run.state.step == lowest["step"]


def test_custom_functions_train_and_load(tmp_path):
    """A module, an optax optimiser and a loss in place of names; the run says that it needs them to load."""
    import flax.linen as nn
    import optax

    class Linear(nn.Module):
        @nn.compact
        def __call__(self, images, *, train):
            return nn.Dense(4)(images.reshape(len(images), -1))

    functions = {"model": Linear(), "optimizer": optax.rmsprop}
    run = fit(made.recipe(epochs=2, batch_size=16), tmp_path, **functions)
    assert_same(cj.load_run(tmp_path, **functions), run)
    assert_same(fit(made.recipe(epochs=2, batch_size=16), tmp_path, **functions), run)
    with pytest.raises(cj.InputError, match=r"Linear' is no part of cifar_jax; pass the function itself"):
        cj.load_run(tmp_path)


def test_init_from_takes_the_weights_and_replaces_the_head(tmp_path):
    source = fit(made.recipe(**FULL), tmp_path / "source")
    start = {"epochs": 1, "batch_size": 16, "optimizer.learning_rate": 0.0, "init_from": str(tmp_path / "source")}
    same = fit(made.recipe(**start))
    for one, two in zip(jax.tree.leaves(same.state.params), jax.tree.leaves(source.state.params), strict=True):
        np.testing.assert_array_equal(one, two)
    wider = {name: made.split(60, classes=6, size=8, seed=3) for name in ("train", "test")}
    with pytest.warns(UserWarning, match="the head starts afresh, the run's is of 4 classes, the data's of 6"):
        other = cj.fit(made.recipe(**start), data=wider, progress=False)
    assert other.state.params["head"]["kernel"].shape[-1] == 6
    for name in other.state.params.keys() - {"head"}:
        np.testing.assert_array_equal(other.state.params[name]["kernel"], source.state.params[name]["kernel"])
    with pytest.raises(cj.InputError, match="does not fit"):
        fit(made.recipe(**start, **{"model.width": 6}))


def test_images_in_any_number_take_few_programs_and_get_the_same_logits():
    run = fit(made.recipe({"epochs": 1, "data.validation": 0}))
    images = np.concatenate([DATA["test"].images] * 2)[:37]  # a batch has 16
    every = run.logits(images)
    for count in (*range(20), 37):
        found = run.logits(images[:count])
        assert found.shape == (count, 4)
        np.testing.assert_allclose(found, every[:count], rtol=1e-5, atol=1e-5)
    program = programs.logits_program(
        programs.shared(run.recipe, programs.EVALUATION_FIELDS), run.recipe.evaluation.views
    )
    assert program._cache_size() == 5  # 1, 2, 4, 8, 16


def test_logits_are_those_of_the_evaluation(tmp_path):
    run = fit(made.recipe(**FULL), tmp_path)
    predicted = cj.load_run(tmp_path).logits(DATA["test"].images).argmax(-1)
    assert (predicted == DATA["test"].labels).mean() == run.evaluation.accuracy
    with pytest.raises(cj.InputError, match=r"uint8 \[N, 8, 8, 3\]"):
        run.logits(np.zeros((2, 9, 9, 3), np.uint8))


def test_evaluate_takes_each_split_apart(tmp_path):
    run = fit(made.recipe(**FULL), tmp_path)
    counts = {split: cj.evaluate(run, split, data=DATA).count for split in ("train", "validation", "test")}
    assert counts == {"train": 64, "validation": 32, "test": 40}
    validation = cj.evaluate(fit(made.recipe(**FULL | {"average.decay": 0.0})), "validation", data=DATA)
    last = fit(made.recipe(**FULL | {"average.decay": 0.0})).history[-1]
    assert validation.accuracy == last["validation_accuracy"]


def test_what_was_held_out_is_known_of_a_run_without_a_workdir_too():
    run = fit(made.recipe(epochs=1, **{"data.validation": 8}))
    other = {**DATA, "train": made.split(96, classes=4, size=8, seed=7)}
    with pytest.raises(
        cj.InputError,
        match=r"the train images of data set 'made' are not those of the run.*\(made-96-4-8-0, now made-96-4-8-7\)",
    ):
        cj.evaluate(run, "validation", data=other)
    assert cj.evaluate(run, "validation", data=DATA).count == 8


# --- whole processes ---

RUN = [
    sys.executable,
    "launch.py",
    "train",
    "--config.epochs=8",
    "--config.batch_size=128",
    "--config.model.width=4",
    "--config.model.hidden=8",
]


# A process that is killed while it writes a compiled program leaves a damaged one: not in the cache of all tests.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
# These processes train for longer than the other tests, so that some optimisation pays: 6 s of the processor for 8.
ENVIRONMENT["XLA_FLAGS"] = "--xla_backend_optimization_level=1"


def start(workdir):
    """The command as a process, in which Ctrl-C is not ignored, as it is in the background jobs of a shell script."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [*RUN, f"--workdir={workdir}"],
            cwd=ROOT,
            env={**ENVIRONMENT, "XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"]},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A whole run of the launcher on the embedded digits, and how long it took, compiling included."""
    workdir, began = tmp_path_factory.mktemp("unbroken"), time.monotonic()
    process = start(workdir / "run")
    assert process.wait() == 0, process.stderr.read()
    return cj.load_run(workdir / "run"), time.monotonic() - began


@pytest.mark.parametrize("trial", range(int(os.environ.get("CIFAR_JAX_KILLS", "1"))))
def test_a_killed_run_resumes_exactly(trial, unbroken, tmp_path):
    """kill -9 at a random moment, then the same command. CIFAR_JAX_KILLS=20 tries more."""
    unbroken_run, seconds = unbroken
    process = start(tmp_path / "run")
    time.sleep(random.uniform(0.2, 0.6) * seconds)  # it finds every program compiled, and takes 0.6 of the time
    process.kill()
    process.wait()
    again = start(tmp_path / "run")
    assert again.wait() == 0, again.stderr.read()
    assert_same(cj.load_run(tmp_path / "run"), unbroken_run)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_leave_a_resumable_run(number, unbroken, tmp_path):
    unbroken_run, _ = unbroken
    process = start(tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 2:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(number)
    _, stderr = process.communicate()
    if process.returncode != 0:  # on a fast machine the run may be over before the signal comes
        assert process.returncode == 128 + number
        assert "Traceback" not in stderr
        sentence = stderr.rstrip().splitlines()[-1]
        saved = re.fullmatch(r"stopped; step (\d+) of (\d+) is saved, and the same command resumes there", sentence)
        manifests = [int(path.stem) for path in (tmp_path / "run" / "manifests").glob("*.json")]
        if saved:
            assert int(saved[1]) == max(manifests) < int(saved[2])
        else:
            assert sentence == "stopped before anything was saved; the same command starts anew"
            assert not manifests
    again = start(tmp_path / "run")
    assert again.wait() == 0
    assert_same(cj.load_run(tmp_path / "run"), unbroken_run)
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["count"] == 360


@pytest.mark.parametrize("trial", range(int(os.environ.get("CIFAR_JAX_SIGNALS", "2"))))
def test_a_signal_ends_the_process_at_any_moment(trial, unbroken, tmp_path):
    """At a random moment of import, data, compilation, training or evaluation. CIFAR_JAX_SIGNALS=100 tries more."""
    _, seconds = unbroken
    number = random.choice([signal.SIGINT, signal.SIGTERM])
    process = start(tmp_path / "run")
    moment = random.uniform(0.0, 0.6) * seconds
    time.sleep(moment)
    over, sent = process.poll() is not None, time.time()
    process.send_signal(number)
    try:
        _, stderr = process.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"{number!r} after {moment:.3f} s was ignored: {process.communicate()[1]}")
    told = f"{number!r} after {moment:.3f} of {seconds:.3f} s: exit code {process.returncode}, {stderr[-500:]}"
    # A signal may meet the end of a run that is complete, while Python itself ends.
    ended = tmp_path / "run" / "evaluation.json"
    if over or (process.returncode == 0 and ended.exists() and ended.stat().st_mtime < sent + 0.5):
        assert cj.load_run(tmp_path / "run").evaluation, told
    elif process.returncode != -number:  # the system's own behaviour, before the first line of ours and after the last
        assert process.returncode == 128 + number, told
        assert stderr.splitlines()[-1].startswith("stopped"), told
        assert "Traceback" not in stderr, told
