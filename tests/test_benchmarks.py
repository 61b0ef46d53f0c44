"""What the benchmarks decide, on figures made up here; nothing is timed."""

import argparse
import contextlib
import copy
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from cifar_jax import fit
from tests import made

HERE = Path(__file__).parent.parent / "benchmarks"
RESULT = {
    "what": "step",
    "setting": {"model": {"name": "cnn"}, "batch_size": 64},
    "cpu": "a processor",
    "cores": 2,
    "others_share_of_cpu": 0.01,
    "ratios": {"plain": {"median": 1.0}, "fast": {"median": 1.3}},
}


@pytest.fixture
def guard(monkeypatch):
    """The script, as `python benchmarks/guard.py` imports it; it needs neither jax nor torch."""
    monkeypatch.syspath_prepend(str(HERE))
    import guard

    yield guard
    for name in ("guard", "against_torch", "measuring", "report", "speedrun", "worker"):
        sys.modules.pop(name, None)


def changed(**fields):
    return copy.deepcopy(RESULT) | fields


def test_ten_percent_more_is_worse_and_less_is_not(guard):
    result = changed(ratios={"plain": {"median": 1.09}, "fast": {"median": 1.44}, "new": {"median": 9.0}})
    assert list(guard.worse_ratios(result, RESULT)) == ["fast"]
    assert not guard.worse_ratios(RESULT, RESULT)
    assert not guard.worse_ratios(changed(ratios={"plain": {"median": 0.5}}), RESULT)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"others_share_of_cpu": 0.3}, "30% of the processors"),
        ({"cores": 8}, "cores is 8 here, and was 2"),
        ({"cpu": "another"}, "cpu is another here"),
        ({}, None),
    ],
)
def test_a_figure_of_another_or_a_busy_machine_is_not_compared(guard, fields, reason):
    told = guard.incomparable(changed(**fields), RESULT)
    assert told is None if reason is None else reason in told
    assert guard.incomparable(RESULT, None) == "it is not committed yet"


def test_a_gpus_figures_are_compared_by_gpu_whatever_processor_feeds_it(guard):
    before = changed(what="gpu", gpu="NVIDIA H200")
    assert guard.incomparable(changed(what="gpu", gpu="NVIDIA H200", cpu="another"), before) is None
    assert "gpu is NVIDIA A100 here" in guard.incomparable(changed(what="gpu", gpu="NVIDIA A100"), before)


def test_the_tables_take_the_ratios_and_leave_the_other_results(guard, tmp_path):
    """Speedruns, tables of recipes and growth lie in the same folder."""
    import report

    ratios = {form: {"median": 0.8, "min": 0.7, "max": 0.9, "n": 6} for form in ("eager", "compiled")}
    sides = {"ours": {"step_ms": [40.0], "jax": "1"}, **{form: {"step_ms": [50.0], "torch": "2"} for form in ratios}}
    setting = {"model": {"name": "resnet18"}, "batch_size": 512}
    result = changed(what="gpu", gpu="NVIDIA H200", ratios=ratios, sides=sides, setting=setting, date="2026-11-21")
    (tmp_path / "gpu_resnet18.json").write_text(json.dumps(result))
    (tmp_path / "speedrun_speedrun94.json").write_text(json.dumps({"recipe": "speedrun94"}))
    report.write_tables(tmp_path)
    text = (tmp_path / "against_torch.md").read_text()
    assert "NVIDIA H200; jax 1, torch 2" in text
    assert "| resnet18, 512 | 12,800 | 10,240 | 10,240 | **0.80** (0.70 to 0.90) |" in text


PEER = """
import sys
for run in range(200):
    print(f"| {run:6} |   eval | 0.1 |  | {0.5 + run / 100:.4f} | {1.0 + run:.4f} |", flush=True)
"""

# The rows of airbench94_muon: a run is named in the row of its first epoch only, the warm-up too.
NAMED_ONCE = """
def epoch(run):
    print(f"| {run:6} |       0 | 0.1 |  | 0.1 | 0.5 |")
    print("|        |       1 | 0.1 |  | 0.1 | 0.6 |")
epoch("warmup")
print("|        |   eval | 0 | | 0 | 99 |")
"""


@pytest.mark.parametrize(
    ("text", "first"),
    [
        (PEER, 0),
        (f"{PEER}# torch.compile", 1),
        (f'print("| warmup |   eval | 0 | | 0 | 99 |"){PEER}# "warmup" torch.compile', 0),
        (f'{NAMED_ONCE}{PEER.replace("{run:6}", "      ").replace("    print", "    epoch(run); print")}# "warmup"', 0),
    ],
)
def test_a_peers_runs_are_read_without_its_warm_up(guard, monkeypatch, tmp_path, text, first):
    """Where it compiles and does not warm up by itself, its first run is its warm-up."""
    import speedrun

    peer = tmp_path / "peer.py"
    peer.write_text(text)
    (tmp_path / "runs" / "cifar10").mkdir(parents=True)
    monkeypatch.setattr(sys, "argv", ["speedrun.py", f"--peer-python={sys.executable}"])
    block = speedrun.run_peer(speedrun.parse(), str(peer), tmp_path / "runs", 3)
    assert [run["seconds"] for run in block["runs"]] == [first + 1.0, first + 2.0, first + 3.0]
    assert [run["accuracy"] for run in block["runs"]] == pytest.approx([0.5 + (first + run) / 100 for run in range(3)])


class Ours:
    """In place of the worker: a run with seed s takes 1 s and reaches 0.94 + s / 1000."""

    def __init__(self, *arguments):
        self.closed = False

    def ask(self, command, **arguments):
        if command == "train":
            return {"runs": [{"seed": s, "accuracy": 0.94 + s / 1000, "seconds": 1.0} for s in arguments["seeds"]]}
        about = {"device": "a GPU", "dtype": "bfloat16", "training_pflop": 0.3, "compile_seconds": 5.0}
        return {"prepare": about, "warm_up": {"matmul_tflops": 600.0}, "arrays": {}}[command]

    def close(self):
        self.closed = True


@pytest.fixture
def speedrun(guard, monkeypatch):
    import speedrun

    def run_peer(options, path, folder, count, variables=None):
        """Every run takes as many seconds as the file has characters."""
        seconds = len(Path(path).read_text()) / 10
        return {"runs": [{"accuracy": 0.94, "seconds": seconds}] * count, "process_seconds": seconds + 10}

    monkeypatch.setattr(speedrun, "Worker", Ours)
    monkeypatch.setattr(speedrun, "run_peer", run_peer)
    return speedrun


def sit(speedrun, monkeypatch, folder, *arguments, **files):
    """One call of the script with these peers; the record and the table that it left."""
    peers = []
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
        peers += ["--peer", f"{name}={folder / name}.py"]
    monkeypatch.setattr(sys, "argv", ["speedrun.py", f"--out={folder}", "--runs=2", *arguments, *peers])
    assert speedrun.main() == 0
    file = folder / "speedrun_speedrun94.json"
    return json.loads(file.read_text()), file.with_suffix(".md").read_text()


def test_sittings_of_a_speedrun_add_up(speedrun, monkeypatch, tmp_path):
    """Each with seeds of its own, and each peer beside our runs of its own sittings only."""
    sit(speedrun, monkeypatch, tmp_path, slow="range(200)" + 10 * " ")
    sit(speedrun, monkeypatch, tmp_path, fast="range(200)")
    record, table = sit(speedrun, monkeypatch, tmp_path, "--processes", fast="range(200)")
    order = [[block["side"] for block in sitting.get("blocks", [])] for sitting in record["sittings"]]
    assert order == [["ours", "slow", "slow", "ours"], ["ours", "fast", "fast", "ours"], []]
    seeds = [run["seed"] for run in speedrun.pooled(record["sittings"], "ours")]
    assert sorted(seeds) == list(range(8))
    assert "| ours | 8 | 94.3500% " in table
    assert "| slow | 4 | 94.0000% ± 0.0000% | 94.0000% | 2.000 (2.000) | 0.500 |  |  |" in table
    assert "| fast | 4 | 94.0000% ± 0.0000% | 94.0000% | 1.000 (1.000) | 1.000 | 11.00 (n=2) | 11.00 (n=2) |" in table
    assert "3 of 3 sittings" in table
    assert "300 TFLOP/s over the run, 50% of the 600 of matrix products" in table


def test_sittings_of_other_versions_are_kept_and_not_pooled(speedrun, monkeypatch, tmp_path):
    sit(speedrun, monkeypatch, tmp_path, peer="range(200)")
    monkeypatch.setattr(speedrun, "versions", lambda options: {"jax": "another"})
    record, table = sit(speedrun, monkeypatch, tmp_path, peer="range(200)")
    assert len(record["sittings"]) == 2
    assert record["sittings"][1]["seed"] == 0
    assert "1 of 2 sittings" in table
    assert "| ours | 4 |" in table


def test_a_peer_of_another_file_is_not_pooled_with_its_former_self(speedrun, monkeypatch, tmp_path):
    sit(speedrun, monkeypatch, tmp_path, peer="range(200)")
    sit(speedrun, monkeypatch, tmp_path, peer="range(200)" + 10 * " ")
    _, table = sit(speedrun, monkeypatch, tmp_path, peer="range(200)" + 10 * " ")
    assert "| ours | 12 |" in table
    assert "| peer | 8 | 94.0000% ± 0.0000% | 94.0000% | 2.000 (2.000) | 0.500 (0.500 to 0.500, 2 sittings) |" in table


def test_a_peer_that_makes_no_run_ends_the_sitting_and_what_was_measured_stays(guard, monkeypatch, tmp_path, capsys):
    import speedrun

    monkeypatch.setattr(speedrun, "Worker", Ours)
    (tmp_path / "cifar10").mkdir()
    monkeypatch.setattr(speedrun.tempfile, "TemporaryDirectory", lambda: contextlib.nullcontext(str(tmp_path)))
    (tmp_path / "theirs.py").write_text("range(200)\nraise SystemExit('no GPU')")
    peer = ["--peer", f"theirs={tmp_path / 'theirs.py'}", f"--peer-python={sys.executable}"]
    monkeypatch.setattr(sys, "argv", ["speedrun.py", f"--out={tmp_path / 'out'}", "--runs=2", *peer])
    assert speedrun.main() == 1
    assert "made no run" in capsys.readouterr().err
    record = json.loads((tmp_path / "out" / "speedrun_speedrun94.json").read_text())
    assert [block["side"] for block in record["sittings"][0]["blocks"]] == ["ours"]


def test_the_limit_ends_a_peer_and_keeps_its_finished_runs(guard, monkeypatch, tmp_path):
    import speedrun

    (tmp_path / "runs" / "cifar10").mkdir(parents=True)
    (tmp_path / "peer.py").write_text(PEER + "    import time; time.sleep(60 * (run == 1))\n")
    monkeypatch.setattr(sys, "argv", ["speedrun.py", f"--peer-python={sys.executable}", "--limit=3"])
    block = speedrun.run_peer(speedrun.parse(), str(tmp_path / "peer.py"), tmp_path / "runs", 200)
    assert [run["seconds"] for run in block["runs"]] == [1.0, 2.0]


def test_no_block_starts_that_would_not_end_in_time(speedrun, monkeypatch, tmp_path, capsys):
    clock = iter(range(0, 10_000, 100))
    monkeypatch.setattr(speedrun.time, "perf_counter", lambda: next(clock))
    record, _ = sit(speedrun, monkeypatch, tmp_path, "--limit=700", peer="range(200)")
    assert [block["side"] for block in record["sittings"][0]["blocks"]] == ["ours", "peer"]
    assert "the same command again adds to the results" in capsys.readouterr().out


def test_the_lower_bound_is_students(speedrun):
    """Of the table: t = 2.132 for 4 degrees of freedom and 95% on one side."""
    runs = [{"accuracy": 0.9 + each / 100, "seconds": 1.0} for each in (1, 2, 3, 4, 5)]
    assert speedrun.figures(runs)["lower_bound"] == pytest.approx(0.93 - 2.132 * 0.0158114 / 5**0.5, abs=1e-5)


@pytest.mark.parametrize(("second", "count"), [(1.5, 1), (1.3, 0)])
def test_worse_is_what_is_worse_twice(guard, monkeypatch, second, count):
    """The second measurement decides; neither is written where the machine was busy, both are otherwise."""
    written = []
    again = changed(ratios={"plain": {"median": 1.0}, "fast": {"median": second}})
    monkeypatch.setattr(guard.against_torch, "measure", lambda *arguments: iter([again]))
    monkeypatch.setattr(guard.against_torch, "describe", lambda result: "")
    monkeypatch.setattr(guard.against_torch, "write", written.append)
    first = changed(ratios={"plain": {"median": 1.0}, "fast": {"median": 1.5}})
    reasons = {"step_cnn.json": "it has no measurement here"}
    assert len(guard.judge(first, {"step_cnn.json": RESULT}, reasons, "python", 1)) == count
    assert written == [first, again]
    assert not reasons
    busy = changed(others_share_of_cpu=0.5)
    assert guard.judge(busy, {"step_cnn.json": RESULT}, reasons, "python", 1) == []
    assert written == [first, again]
    assert "50%" in reasons["step_cnn.json"]


def test_the_committed_tables_are_those_of_the_committed_figures(guard, tmp_path):
    """results/against_torch.md is never edited by hand."""
    from report import write_tables

    for path in (HERE / "results").glob("*.json"):
        (tmp_path / path.name).write_text(path.read_text())
    write_tables(tmp_path)
    assert (tmp_path / "against_torch.md").read_text() == (HERE / "results" / "against_torch.md").read_text()


def test_every_measured_network_has_a_tiny_form_and_a_file_name(guard):
    driver = guard.against_torch
    assert {name for names in driver.KINDS.values() for name in names} == set(driver.SMOKE)
    committed = {path.name for path in (HERE / "results").glob("*.json")}
    for name in committed:
        result = json.loads((HERE / "results" / name).read_text())
        if isinstance(result, dict) and result.get("what") in driver.KINDS:
            assert driver.file_name(result) == name


def test_flips_are_a_share_of_each_class_and_precision_is_read_at_the_recall(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    import audit

    names = tuple(audit.SIMILAR)
    labels = np.repeat(np.arange(10), 40)
    for kind in ("uniform", "similar"):
        found = audit.flipped(labels, names, kind, 0.05, 0)
        assert np.bincount(labels[found != labels], minlength=10).tolist() == [2] * 10
    assert {(names[a], names[b]) for a, b in zip(labels, found, strict=True) if a != b} == set(audit.SIMILAR.items())
    wrong = np.array([True, False, True, False, True, False, True])
    assert audit.precision_at(np.arange(7), wrong, 0.5) == pytest.approx(2 / 3)
    assert audit.precision_at(np.arange(7), wrong, 0.7) == pytest.approx(3 / 5)
    assert audit.precision_and_recall(np.arange(7) < 3, wrong) == {"count": 3, "precision": 0.6667, "recall": 0.5}
    sys.modules.pop("audit")


def test_equal_spreads_are_found_different_as_often_as_the_level_says(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(HERE))
    import spreads

    random = np.random.RandomState(0)
    rejected = [spreads.f_test(*random.normal(size=(2, 6)))[1] < 0.05 for _ in range(1000)]
    assert 0.03 < np.mean(rejected) < 0.07
    found = [spreads.f_test(random.normal(size=50), 1.5 * random.normal(size=50))[1] < 0.05 for _ in range(1000)]
    assert spreads.runs_needed(1.5) == 50
    assert 0.77 < np.mean(found) < 0.84
    files = [str(HERE / "results/ablations" / f"variance_{kind}/runs.csv") for kind in ("weights", "augmentation")]
    monkeypatch.setattr(sys, "argv", ["spreads.py", *files])
    assert spreads.main() == 0
    assert (
        "variance_weights / variance_augmentation: ratio of the deviations 2.06, p = 0.042" in capsys.readouterr().out
    )
    sys.modules.pop("spreads")


def test_a_finished_run_is_taken_into_the_table(monkeypatch, tmp_path):
    workdir = tmp_path / "run"
    recipe = made.recipe(epochs=1, seed=3)
    fit(recipe, workdir, data={"train": made.split(), "test": made.split(seed=1)}, progress=False)
    monkeypatch.syspath_prepend(str(HERE))
    import table

    table.add(argparse.Namespace(recipes=["configs/cnn.py"], add=[workdir]), tmp_path)
    (figure,) = json.loads((tmp_path / "table_cnn.json").read_text())
    assert (figure["seed"], figure["epochs"], figure["trained_on"]) == (3, 1, made.COUNT)
    assert {"model.width=4", "epochs=1", "batch_size=8"} <= set(figure["fields"])
    assert not any(field.startswith(("data.num_classes", "part_steps")) for field in figure["fields"])
