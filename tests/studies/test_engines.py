"""Studies whose runs are trained by workers: processes on this machine, and jobs of a real Slurm with two nodes."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import cifar_jax as cj
from cifar_jax.runs.workdir import locked, read_record
from cifar_jax.studies import engines, space
from cifar_jax.studies.engines import Engine, find_engine
from cifar_jax.studies.slurm import REQUEUES, is_alive, job_states, read_jobs
from cifar_jax.studies.study_file import read_study, write_study
from cifar_jax.studies.worker import load_worker
from tests import made, slurm

ROOT = Path(__file__).parent.parent.parent
FIELDS = {"epochs": 10, "model.width": 4, "model.hidden": 8, "checkpoint.every_epochs": 1}
RATES = [0.001, 0.01]
RUNS = [f"runs/learning_rate={rate}/seed0" for rate in RATES]


def sweep(folder, **options):
    recipe = cj.load_recipe("configs/quickstart.py", FIELDS)
    grid = {"optimizer.learning_rate": RATES}
    return cj.sweep(recipe, grid, seeds=1, folder=folder, progress=False, **options)


def start(folder, *more):
    """The same study by the command line."""
    fields = [f"--config.{name}={value}" for name, value in FIELDS.items()]
    grid = f"--grid=optimizer.learning_rate={','.join(map(str, RATES))}"
    command = [sys.executable, "launch.py", "sweep", grid, "--seeds=1", f"--folder={folder}", *more, *fields]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(ready, process=None):
    deadline = time.monotonic() + 120
    while not ready():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, process.stderr.read()
        time.sleep(0.1)


def has_begun(folder, name):
    """Whether a run has a checkpoint, and is not complete."""
    return bool(list((folder / name / "manifests").glob("*.json")))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The folder of the study, trained in this process."""
    folder = tmp_path_factory.mktemp("studies") / "unbroken"
    sweep(folder)
    return folder


def assert_same_study(folder, other, exact=True):
    """The runs have the same weights and figures; without `exact`, but for the order of sums in threads."""
    for name in RUNS:
        ours, theirs = (read_study(each)["runs"][name] for each in (folder, other))
        assert ours["status"] == theirs["status"] == "finished"
        if exact:
            made.assert_same(cj.load_run(folder / name).state, cj.load_run(other / name).state)
            assert ours["metrics"] == theirs["metrics"]
        assert ours["metrics"] == pytest.approx(theirs["metrics"], abs=0.01)
    lines = csv.DictReader((folder / "runs.csv").open())
    assert {line["folder"] for line in lines} >= set(RUNS)
    assert read_study(folder)["final"] == []


# --- workers on this machine ---


def test_killed_workers_leave_runs_that_the_same_command_continues(unbroken, tmp_path):
    folder = tmp_path / "study"
    process = start(folder, "--processes=2")
    wait_for(lambda: all(has_begun(folder, name) for name in RUNS), process)
    for worker in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        os.kill(int(worker), signal.SIGKILL)
    assert process.wait(60) == 2
    said = process.stderr.read()
    assert said.count("ended with code -9") == 2
    assert "no run of the study" in said
    assert not read_study(folder)["runs"]
    assert not any(read_record(folder / name)["complete"] for name in RUNS)
    assert len(sweep(folder, engine="local", processes=2).rows) == 2
    assert_same_study(folder, unbroken, exact=False)


def test_a_run_that_another_process_trains_is_left_to_it(tmp_path, capsys):
    recipe = made.recipe({"epochs": 1, "batch_size": 16, "data.validation": 32})
    train = lambda: cj.ablate(
        recipe, [{"optimizer.learning_rate": 0.05}], seeds=1, folder=tmp_path, data={"train": made.split(96)}
    )
    with locked(tmp_path / "runs/base/seed0", ".claim"):
        train()
    assert "base/seed0 is left out: another process trains it" in capsys.readouterr().err
    assert list(read_study(tmp_path)["runs"]) == ["runs/learning_rate=0.05/seed0"]
    train()
    assert len(read_study(tmp_path)["runs"]) == 2


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({"functions": {"loss": {"digest": "0"}}}, "has functions or a context of its script, which must continue it"),
        ({"data": {"train": "0"}}, "the data set is not the one that the study in"),
    ],
)
def test_a_worker_refuses_a_study_that_it_cannot_continue(changes, answer, unbroken, tmp_path):
    write_study(tmp_path, read_study(unbroken) | changes)
    with pytest.raises(cj.InputError, match=answer):
        load_worker(tmp_path)


# --- Slurm ---


@pytest.fixture(scope="module")
def cluster():
    if reason := slurm.reason_to_skip():
        pytest.skip(reason)
    pytest.importorskip("submitit")
    with slurm.cluster() as variables, pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


def test_runs_that_slurm_stops_go_on_and_one_that_is_cancelled_is_submitted_again(cluster, unbroken, tmp_path):
    """One is told of the end of its time limit, the other is preempted; both are requeued. Then one is cancelled."""
    folder = tmp_path / "study"
    first = start(folder, "--engine=slurm", "--partition=main", "--time_limit=5")
    wait_for(lambda: len(read_jobs(folder)) == 2, first)
    first.send_signal(signal.SIGINT)
    assert first.wait(60) == 130
    jobs = {name: job["job"] for name, job in read_jobs(folder).items()}
    (array,) = {job.partition("_")[0] for job in jobs.values()}
    assert f"the jobs go on: the same command watches them, 'scancel {array}' cancels them" in first.stderr.read()

    second = start(folder, "--engine=slurm", "--partition=main", "--time_limit=5")
    wait_for(lambda: all(has_begun(folder, name) for name in RUNS), second)
    outputs = [folder / "jobs" / f"{jobs[name]}_0_log.out" for name in RUNS]
    subprocess.run(["scancel", "--signal=USR2", jobs[RUNS[1]]], check=True)
    wait_for(
        lambda: f"Requeued job {jobs[RUNS[1]]} ({REQUEUES - 1} remaining timeouts)" in outputs[1].read_text(), second
    )
    urgent = ["sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"]
    subprocess.run(urgent, check=True, capture_output=True)
    wait_for(lambda: all(output.read_text().count("Starting with") == 2 for output in outputs), second)
    subprocess.run(["scancel", jobs[RUNS[1]]], check=True)
    assert second.wait(240) == 1  # it has a table, of the run that is done
    assert {name: job["job"] for name, job in read_jobs(folder).items()} == jobs  # nothing was submitted again
    said = f"was interrupted: its job is CANCELLED, and its output in {folder}/jobs/{jobs[RUNS[1]]}_0_log.err"
    assert said in second.stderr.read()
    assert read_jobs(folder)[RUNS[1]]["state"] == "interrupted (CANCELLED)"
    assert list(read_study(folder)["runs"]) == RUNS[:1]
    assert not read_record(folder / RUNS[1])["complete"]
    sweep(folder, engine="slurm", partition="main", time_limit=5)
    assert read_jobs(folder)[RUNS[0]]["job"] == jobs[RUNS[0]]
    assert read_jobs(folder)[RUNS[1]]["job"] != jobs[RUNS[1]]
    assert_same_study(folder, unbroken)


def test_workers_of_a_search_are_jobs(cluster, tmp_path):
    pytest.importorskip("optuna")
    recipe = cj.load_recipe("configs/quickstart.py", {**FIELDS, "epochs": 1})
    searched = {"optimizer.learning_rate": space.log_uniform(1e-4, 1e-2)}
    options = {"folder": tmp_path / "study", "progress": False, "engine": "slurm", "processes": 2}
    result = cj.tune(recipe, searched, trials=3, **options)
    assert [trial.status for trial in result.trials] == ["finished"] * 3
    assert (tmp_path / "study/best.py").exists()
    assert len(read_jobs(tmp_path / "study")) == 2


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ({"partition": "mian"}, r"partition 'mian' is unknown to Slurm; did you mean 'main'\? Known: main, urgent"),
        ({"slurm": {"gres": "none:1"}}, r"Slurm refused the job \(.*gres.*\); correct that option"),
    ],
)
def test_what_slurm_refuses_is_told(options, answer, cluster, tmp_path, capfd):
    with pytest.raises(cj.InputError, match=answer):
        sweep(tmp_path / "study", engine="slurm", **options)
    assert not capfd.readouterr().err
    assert not list((tmp_path / "study").glob("jobs/*"))


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'squeue: error: Unable to contact slurm controller' >&2; exit 1", "Unable to contact slurm controller"),
        ("exec /bin/sleep 30", "squeue did not end within 0 s"),
    ],
)
def test_a_cluster_that_does_not_answer_is_told(script, reason, tmp_path, monkeypatch):
    (tmp_path / "squeue").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(engines, "ANSWER", 0.2)
    with pytest.raises(cj.InputError, match=re.escape(f"Slurm does not answer ({reason}); start it")):
        job_states()


# --- bad input, and parts ---


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ({"engine": "slrum"}, "engine is 'slrum'; did you mean 'slurm'? Known: local, slurm"),
        ({"engine": "local"}, "engine='local' needs the number of workers; give processes, for example 2"),
        ({"processes": 0}, "processes is 0; it is the number of workers, at least 1"),
        ({"processes": 2, "partition": "gpu"}, "partition is 'gpu', and only engine='slurm' reads it"),
        ({"time_limit": 10}, "time_limit is 10, and only engine='slurm' reads it"),
        ({"slurm": {"mem": "1G"}}, "slurm is {'mem': '1G'}, and only engine='slurm' reads it"),
        ({"engine": "slurm", "time_limit": 0}, "time_limit is 0; it is in whole minutes, at least 1"),
        ({"processes": 2, "execution": "mapped"}, "engine='local' trains each run alone"),
        ({"processes": 2, "data": {"train": made.split(8)}}, "data=... is in the memory of this process"),
        ({"processes": 2, "loss": lambda logits, targets: logits}, "loss=... is in the memory of this process"),
    ],
)
def test_bad_options(options, answer, tmp_path):
    with pytest.raises(cj.InputError, match=re.escape(answer)):
        sweep(tmp_path / "study", **options)
    assert not (tmp_path / "study").exists()


def test_slurm_or_its_library_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", type(sys)("submitit"))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(cj.InputError, match=r"needs Slurm's commands, and sbatch, squeue, .* is not on this machine's"):
        find_engine("slurm")
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(cj.InputError, match=re.escape("pip install -c constraints.txt -e '.[slurm]'")):
        find_engine("slurm")


def test_more_processes_than_cores_are_warned_of(recwarn, monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    cores = engines.cores()
    assert find_engine(processes=1) is None
    assert find_engine("local", processes=cores) == Engine("local", cores)
    assert not recwarn.list
    assert os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"  # the memory of a GPU is left to the workers
    find_engine(processes=cores + 1)
    assert f"processes={cores + 1} is more than the {cores} cores" in str(recwarn.list[0].message)


def test_workers_share_the_gpus_out(tmp_path, monkeypatch, recwarn):
    told = "import os, sys; open(sys.argv[1] + os.environ['JAX_CUDA_VISIBLE_DEVICES'], 'a').write('.')"
    monkeypatch.setattr(engines, "worker_command", lambda arguments: [sys.executable, "-c", told, *arguments])
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    monkeypatch.setattr("jax.local_device_count", lambda: 2)
    assert engines.run_workers([f"{tmp_path}/gpu"], 3) == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"gpu0": "..", "gpu1": "."}
    assert "processes=3 is more than the 2 GPUs of this machine" in str(recwarn.list[-1].message)


def test_work_refuses_what_it_cannot_train(tmp_path, capsys):
    from cifar_jax.cli import main

    assert main(["work", str(tmp_path)]) == 2
    assert "holds no study (no study.json); ablate or sweep begins one" in capsys.readouterr().err
    assert main(["work", str(tmp_path), "--trials=3"]) == 2
    assert f"--trials is 3, and '{tmp_path}' holds no search; leave it out" in capsys.readouterr().err
    (tmp_path / "tune.json").write_text("{}")
    assert main(["work", str(tmp_path)]) == 2
    assert "give the number of its trials" in capsys.readouterr().err


def test_a_space_survives_json():
    searched = {
        "batch_size": space.choice(32, 64, (1, 2)),
        "epochs": space.integer(2, 8, log=True),
        "optimizer": space.alternatives(
            {"name": "sgd", "learning_rate": space.log_uniform(1e-3, 1e-1), "nesterov": True},
            {"name": "adamw", "beta2": space.uniform(0.9, 0.99, step=0.01)},
        ),
    }
    assert space.from_json(json.loads(json.dumps(space.to_json(searched)))) == searched


def test_states_of_jobs():
    assert all(map(is_alive, ["PENDING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED"]))
    assert not any(map(is_alive, ["COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "PREEMPTED", "OUT_OF_MEMORY", None]))
