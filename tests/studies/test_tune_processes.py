"""Several workers in processes of their own: kills, signals, SQLite and a real PostgreSQL, and the command line."""

import csv
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("optuna")

from tests import postgres
from tests.studies.kills import check, kill_workers, start

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def database():
    if reason := postgres.reason_to_skip():
        pytest.skip(reason)
    pytest.importorskip("psycopg")
    with postgres.server() as address:
        yield address


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_after_kills_and_one_start_of_a_worker_no_trial_is_lost(kind, tmp_path, request):
    address = request.getfixturevalue("database") if kind == "postgresql" else None
    result, figures = kill_workers(tmp_path / f"study-{kind}", address, kills=2, seed=1)
    check(result)
    assert sum(figures["after"].values()) == max(1, sum(figures["before"].values()))
    numbers = [trial.number for trial in result.trials]
    assert len({trial.parameters["optimizer.learning_rate"] for trial in result.trials}) == len(numbers)


def test_two_living_workers_are_both_owners(tmp_path):
    """A third one, which is started beside them, takes nothing of theirs."""
    workers = [start(tmp_path / "study", None) for _ in range(2)]
    try:
        third = start(tmp_path / "study", None)
        workers.append(third)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and len(list((tmp_path / "study/trials").glob("*"))) < 4:
            time.sleep(0.2)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    lines = list(csv.DictReader((tmp_path / "study/trials.csv").open()))
    assert len(lines) >= 2
    assert {line["retries"] for line in lines} == {"0"}
    assert "failed" not in {line["status"] for line in lines}


# --- the command line ---


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    path = tmp_path_factory.mktemp("spaces") / "digits.py"
    path.write_text(
        "from cifar_jax.studies.space import log_uniform\n\n\n"
        'def get_space():\n    return {"optimizer.learning_rate": log_uniform(1e-4, 1e-2)}\n'
    )
    return path


def command(space, folder, *more):
    fields = [
        "--config.epochs=1",
        "--config.model.width=4",
        "--config.model.hidden=8",
        "--config.checkpoint.every_epochs=1",
    ]
    options = [f"--space={space}", f"--folder={folder}", *more]
    return [sys.executable, "launch.py", "tune", "--config=configs/quickstart.py", *options, *fields]


def test_the_command_with_two_processes(space, tmp_path):
    done = subprocess.run(
        command(space, tmp_path / "study", "--trials=3", "--processes=2", "--patience=9"),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 trials: 3 finished.")
    assert f"The best recipe is {tmp_path / 'study/best.py'}." in done.stdout
    assert done.stderr.count(" finished: validation accuracy ") == 3
    train = [sys.executable, "launch.py", "train", f"--config={tmp_path / 'study/best.py'}"]
    trained = subprocess.run(
        [*train, f"--workdir={tmp_path / 'best'}", "--evaluate=validation"], cwd=ROOT, capture_output=True, text=True
    )
    assert trained.returncode == 0, trained.stderr


@pytest.mark.parametrize(("processes", "number"), [(1, signal.SIGINT), (2, signal.SIGTERM)])
def test_a_signal_ends_the_command_and_the_same_command_continues(processes, number, space, tmp_path):
    folder = tmp_path / "study"
    long = [f"--processes={processes}", "--trials=1", "--config.epochs=3000"]
    process = subprocess.Popen(
        [*command(space, folder, *long[:2]), long[2]], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(folder.glob("trials/0/seed0/manifests/*.json")):
        time.sleep(0.1)
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    assert process.stderr is not None
    said = process.stderr.read()  # until the workers have ended too
    assert "stopped in trial 0; the same command continues it" in said
    assert ("the workers stop too" in said) == (processes > 1)
    assert (folder / "trials/0/interrupted").exists()
    assert not list(folder.glob("trials.csv"))


def test_the_exit_code_tells_that_all_trials_failed(tmp_path, capsys):
    from cifar_jax.cli import main

    path = tmp_path / "space.py"
    path.write_text(
        "from cifar_jax.studies.space import uniform\n\n\n"
        'def get_space():\n    return {"optimizer.learning_rate": uniform(1e30, 2e30)}\n'
    )
    assert main(command(path, tmp_path / "study", "--trials=2")[2:]) == 1
    assert "2 trials: 2 failed." in capsys.readouterr().out


def test_a_dry_run_writes_nothing(space, tmp_path, capsys):
    from cifar_jax.cli import main

    assert main(command(space, tmp_path / "study", "--trials=2", "--dry_run")[2:]) == 0
    assert "optimizer.learning_rate: log_uniform(0.0001, 0.01)\n2 trials (0 more are there" in capsys.readouterr().out
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("more", "answer"),
    [
        (["--processes=0"], "error: processes is 0; it is the number of workers, at least 1"),
        (["--trials=0", "--processes=2"], "error: trials is 0; a search needs a whole number of them, at least 1"),
        (["--pruner=wilcoxon"], "error: pruner 'wilcoxon' compares trials seed by seed"),
    ],
)
def test_bad_arguments(more, answer, space, tmp_path, capsys):
    from cifar_jax.cli import main

    arguments = command(space, tmp_path / "study", *more)[2:]
    assert main(arguments) == 2
    assert answer in capsys.readouterr().err
    assert not (tmp_path / "study").exists()
