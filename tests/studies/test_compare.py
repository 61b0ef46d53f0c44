"""Comparisons of made-up runs: what is grouped, paired, concluded, refused, and how it is written."""

import csv
import dataclasses
import io
import json
import sys
import types

import numpy as np
import pytest

from cifar_jax.errors import InputError
from cifar_jax.runs.identity import Identity
from cifar_jax.runs.workdir import Workdir
from cifar_jax.studies import statistics
from cifar_jax.studies.compare import compare
from cifar_jax.studies.records import RunRecord, load_records
from cifar_jax.studies.tables import Table, form_of, latex_text
from cifar_jax.training.metrics import SplitPredictions, summarise
from tests import made

BASE = (0.8102, 0.8149, 0.8117, 0.8171, 0.8090)
BETTER = (0.8161, 0.8190, 0.8129, 0.8214, 0.8188)
NOISE = (0.8131, 0.8122, 0.8139, 0.8150, 0.8101)


def record(rate, seed, accuracy, **changes):
    values = {
        "folder": f"runs/rate{rate}_{seed}",
        "recipe": {"seed": seed, "optimizer.learning_rate": rate, "model.name": "cnn"},
        "metrics": {"validation_accuracy": accuracy, "validation_loss": 2 * (accuracy or 0), "test_accuracy": None},
        "digests": {"data": "d0", "validation": "v0"},
    }
    return RunRecord(**{**values, **changes})


def arm(rate, accuracies, seeds=None, **changes):
    seeds = seeds or range(len(accuracies))
    return [record(rate, seed, accuracy, **changes) for seed, accuracy in zip(seeds, accuracies, strict=True)]


def one_line(comparison):
    """Without the line breaks of a terminal."""
    return " ".join(str(comparison).split())


STUDY = [*arm(0.1, BASE), *arm(0.2, BETTER), *arm(0.4, NOISE)]


def test_arms_are_tested_against_the_base_over_common_seeds():
    """The runs come in any order; what is paired has the same seed."""
    comparison = compare(STUDY[:5] + STUDY[5:][::-1], detect=0.5)
    base, noise, better = comparison.rows
    assert [row.name for row in comparison.rows] == ["learning_rate=0.1", "learning_rate=0.4", "learning_rate=0.2"]
    assert better.summary == dataclasses.replace(statistics.summarise(BETTER), mean=better.summary.mean)
    paired = statistics.paired_test(BETTER, BASE)
    assert (better.paired.p, better.paired.interval) == (pytest.approx(paired.p), pytest.approx(paired.interval))
    assert better.welch.p == pytest.approx(statistics.welch_test(BETTER, BASE).p)
    assert [better.p_holm, noise.p_holm] == pytest.approx(statistics.holm([better.paired.p, noise.paired.p]))
    assert better.pairs_needed == statistics.pairs_needed(paired.standard_deviation, 0.005)
    assert base.paired is base.conclusion is None
    assert better.fields == {"optimizer.learning_rate": 0.2}
    assert better.values["seed=4"] == 0.8188


def test_the_correction_decides():
    """p = 0.03 alone is a finding, as one of three it is not."""
    alone = compare([*arm(0.1, BASE), *arm(0.2, BETTER)])
    assert alone.rows[1].p_holm == alone.rows[1].paired.p < 0.05
    assert alone.rows[1].conclusion == "significant"
    among = compare([*STUDY, *arm(0.8, NOISE[::-1])])
    assert among.rows[1].paired.p < 0.05 < among.rows[1].p_holm
    assert among.rows[1].conclusion == "not shown"


def test_too_few_seeds_are_those_that_cannot_detect_what_is_wanted():
    pair = [*arm(0.1, BASE), *arm(0.4, NOISE)]
    detectable = compare(pair).rows[1].paired.detectable
    assert compare(pair).rows[1].conclusion == "not shown"
    fine, coarse = (compare(pair, detect=factor * 100 * detectable).rows[1] for factor in (0.9, 1.1))
    assert (fine.conclusion, coarse.conclusion) == ("too few seeds", "not shown")
    assert coarse.pairs_needed <= 5 < fine.pairs_needed
    assert f"need {fine.pairs_needed} pairs" in one_line(compare(pair, detect=90 * detectable))


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_than_three_seeds_conclude_nothing(count):
    comparison = compare([*arm(0.1, BASE[:count]), *arm(0.2, BETTER[:count])], detect=0.5)
    row = comparison.rows[1]
    assert (row.conclusion, row.p_holm, row.paired.interval, row.pairs_needed) == ("too few seeds", None, None, None)
    assert row.paired.difference == pytest.approx(np.mean(BETTER[:count]) - np.mean(BASE[:count]))
    assert "nan" not in str(comparison).lower()
    assert "NaN" not in comparison.to_json()


def test_without_common_seeds_welch_takes_its_place():
    comparison = compare([*arm(0.1, BASE), *arm(0.2, BETTER, seeds=range(5, 10))])
    row = comparison.rows[1]
    assert (row.paired, row.p_holm) == (None, row.welch.p)
    assert "no common seeds, so by Welch's test" in one_line(comparison)
    two = compare([*arm(0.1, BASE[:2]), *arm(0.2, BETTER[:2], seeds=[5, 6])])
    assert two.rows[1].conclusion == "too few seeds"
    assert "none in common" in one_line(two)


def test_only_common_seeds_are_paired():
    row = compare([*arm(0.1, BASE), *arm(0.2, BETTER[1:], seeds=range(1, 5))]).rows[1]
    assert (row.paired.count, row.summary.count) == (4, 4)
    assert row.paired.difference == pytest.approx(np.mean(np.subtract(BETTER, BASE)[1:]))


def test_all_seed_fields_are_seeds():
    def runs(rate):
        fields = {"optimizer.learning_rate": rate, "seed": 0}
        return [
            record(rate, seed, accuracy, recipe={**fields, "seeds.order": seed}) for seed, accuracy in enumerate(BASE)
        ]

    rows = compare([*runs(0.1), *runs(0.2)]).rows
    assert [row.summary.count for row in rows] == [5, 5]
    assert rows[1].paired.p == 1
    assert list(rows[0].values)[1] == "seed=0, order=1"


@pytest.mark.parametrize("base", ["learning_rate=0.4", "optimizer.learning_rate=0.4", "runs/rate0.4_3"])
def test_the_base_is_named_by_its_fields_or_by_a_run(base):
    comparison = compare(STUDY, base=base)
    assert comparison.base == comparison.rows[0].name == "learning_rate=0.4"
    assert [row.is_base for row in comparison.rows] == [True, False, False]


@pytest.mark.parametrize(
    ("runs", "options", "message"),
    [
        ([], {}, "there are no runs"),
        ([*STUDY, STUDY[0]], {}, r"run 'runs/rate0.1_0' is given twice"),
        (
            [*STUDY, record(0.1, 0, 0.8, folder="copy")],
            {},
            r"'runs/rate0.1_0' and 'copy' have the same recipe and seeds",
        ),
        ([*STUDY, record(0.1, 7, 0.8, complete=False)], {}, r"run 'runs/rate0.1_7' is not finished"),
        ([*STUDY, record(0.1, 7, None)], {}, r"run 'runs/rate0.1_7' has validation_accuracy=None"),
        ([*STUDY, record(0.1, 7, float("nan"))], {}, r"run 'runs/rate0.1_7' has validation_accuracy=nan"),
        (STUDY, {"metric": "test_accuracy"}, "measured by none of the runs; did you mean 'validation_accuracy'"),
        (
            [*STUDY, record(0.1, 7, 0.8, digests={"data": "d1", "validation": "v0"})],
            {},
            r"'runs/rate0.1_0' and 'runs/rate0.1_7' were trained on different data \(d0 and d1\)",
        ),
        (
            [*STUDY, record(0.1, 7, 0.8, digests={"data": "d0", "validation": "v1"})],
            {},
            r"'runs/rate0.1_0' and 'runs/rate0.1_7' have different validation images \(v0 and v1\)",
        ),
        (STUDY, {"base": "learning_rate=0.3"}, "'learning_rate=0.3' matches no arm"),
        (STUDY, {"base": "model.name=cnn"}, "matches 3 arms; name one of them by its fields: learning_rate=0.1; "),
        (STUDY, {"detect": 0}, "detect is 0; it must be a positive number, in points"),
        (STUDY, {"detect": float("nan")}, "detect is nan"),
    ],
)
def test_what_cannot_be_compared_is_refused(runs, options, message):
    with pytest.raises(InputError, match=message):
        compare(runs, **options)


def predictions(rate, accuracy, runs, images=400, seed=0):
    random = np.random.RandomState(seed)
    made_up = []
    for index in range(runs):
        correct = random.uniform(size=images) < accuracy
        probabilities = np.where(correct[:, None], (0.9, 0.1), (0.2, 0.8)).astype(np.float32)
        kept = SplitPredictions(np.zeros(images, np.int32), probabilities)
        made_up.append(record(rate, index, correct.mean(), predictions={"validation": lambda kept=kept: kept}))
    return made_up


def test_single_runs_are_compared_image_by_image():
    runs = [*predictions(0.1, 0.7, 1), *predictions(0.2, 0.8, 1, seed=1)]
    comparison = compare(runs)
    first, second = (run.predictions["validation"]().correct for run in runs)
    assert comparison.rows[1].mcnemar == statistics.mcnemar_test(second, first)
    assert f"{comparison.rows[1].mcnemar.only_first} images only in this run" in one_line(comparison)
    assert compare(runs, metric="validation_loss").rows[1].mcnemar is None
    assert "needs the predictions of both runs" in one_line(compare([*arm(0.1, BASE[:1]), *arm(0.2, BETTER[:1])]))


def test_the_spread_of_the_images_is_reported_where_predictions_are_kept():
    runs = [*predictions(0.1, 0.7, 4), *arm(0.2, BETTER)]
    base, other = (comparison := compare(runs)).rows
    matrix = np.stack([run.predictions["validation"]().correct for run in runs[:4]])
    assert base.spread == statistics.evaluation_spread(matrix)
    assert (other.spread, other.mcnemar) == (None, None)
    assert f"{base.spread.true_variance * 1e4:.4f}" in str(comparison)
    few = SplitPredictions(np.zeros(3, np.int32), np.ones((3, 2), np.float32))
    short = [*predictions(0.1, 0.7, 2), record(0.1, 9, 0.5, predictions={"validation": lambda: few})]
    with pytest.raises(InputError, match=r"'runs/rate0.1_9' and 'runs/rate0.1_0' keep predictions of different images"):
        compare(short)


def test_an_ensemble_is_the_mean_of_the_probabilities():
    """Three independent runs of 70%, whose probability of the right class is 0.9 or 0.2."""
    runs = predictions(0.1, 0.7, 3)
    correct = np.stack([run.predictions["validation"]().correct for run in runs])
    votes = correct.sum(0) * 0.9 + (3 - correct.sum(0)) * 0.2
    comparison = compare(runs)
    assert comparison.rows[0].ensemble == (votes / 3 > (3 - votes) / 3).mean()
    assert f"{100 * comparison.rows[0].ensemble:.2f}" in str(comparison)
    assert compare(arm(0.1, BASE)).rows[0].ensemble is None


def test_csv_and_json_hold_every_digit():
    comparison = compare(STUDY, detect=0.5)
    lines = list(csv.DictReader(io.StringIO(comparison.to_csv())))
    values = json.loads(comparison.to_json())
    for row, line, value in zip(comparison.rows, lines, values["rows"], strict=True):
        assert float(line["mean"]) == value["summary"]["mean"] == row.summary.mean
        assert float(line["mean_interval_high"]) == value["summary"]["mean_interval"][1] == row.summary.mean_interval[1]
        assert line["conclusion"] == (value["conclusion"] or "")
        assert json.loads(line["fields"]) == value["fields"]
    assert float(lines[1]["paired_p"]) == comparison.rows[1].paired.p
    assert (lines[0]["paired_p"], lines[0]["mcnemar_p"], values["detect"]) == ("", "", 0.005)


def test_pandas_is_asked_for_where_it_is_absent(monkeypatch):
    comparison = compare(STUDY)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match="pip install pandas"):
        comparison.to_pandas()
    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=list))
    assert [row["paired_p"] for row in comparison.to_pandas()][1] == comparison.rows[1].paired.p


def test_the_terminal_table_fits_100_columns():
    """Two fields differ, so that names are long: they are broken after their commas."""
    long = [record(0.1, seed, value) for seed, value in enumerate(BASE)]
    for run in arm(0.2, BETTER):
        fields = {"optimizer.weight_decay": 0.0005, "average.start_epoch": 12}
        long.append(dataclasses.replace(run, recipe={**run.recipe, **fields}))
    text = str(compare(long, detect=0.01))
    assert max(map(len, text.splitlines())) <= 100
    assert "\n  weight_decay=0.0005" in text.replace(",\n", "\n")
    assert "81.26 ± 0.34" in text
    assert "+0.51" in text


def test_losses_are_not_percent():
    text = str(compare(STUDY, metric="validation_loss"))
    assert "1.6252 ± 0.0067" in text
    assert "percent" not in text


def test_markdown_and_latex_are_tables():
    comparison = compare(STUDY)
    markdown = [line for line in comparison.to_markdown().splitlines() if line.startswith("|")]
    assert {line.replace(r"\|", "").count("|") for line in markdown[:5]} == {6}
    assert r"| learning\_rate=0.1 (base) | 5 | 81.26 ± 0.34 |" in markdown[2]
    latex = comparison.to_latex()
    body = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert r"learning\_rate=0.1 (base) & 5 & 81.26 $\pm$ 0.34 &" in body[1]
    assert latex.count(r"\toprule") == latex.count(r"\bottomrule") == latex.count(r"\end{tabular}") == 2


def test_latex_escapes_what_it_would_read_as_a_command():
    text = latex_text(r"a_b\c {50%} <0.0001 -0.5 to +1 & #1 $x ~^ x-1")
    expected = (
        r"a\_b\textbackslash{}c \{50\%\} $<$0.0001 $-$0.5 to +1 \& \#1 \$x \textasciitilde{}\textasciicircum{} x-1"
    )
    assert text == expected
    assert Table("t", ("a", "b"), (("x|y", "1"),)).markdown().endswith(r"| x\|y | 1 |")


def test_small_p_values_are_not_zero():
    better = [value + 0.1 + 1e-4 * index for index, value in enumerate(BASE)]
    text = str(compare([*arm(0.1, BASE), *arm(0.2, better)]))
    assert "p < 0.0001" in text
    equal = one_line(compare([*arm(0.1, BASE), *arm(0.2, np.add(BASE, 0.01))]))
    assert "all differences are equal" in equal
    assert form_of("test_accuracy").amount(0.005) == "0.50 points"


def write_run(folder, recipe, accuracies, finished=True):
    """A workdir as a run leaves it, without checkpoints; an accuracy of the validation images for each epoch."""
    folder.mkdir(parents=True)
    workdir = Workdir(folder, Identity(recipe, {}, {"train": "d0"}), ("a", "b"))
    lines = [
        {"epoch": epoch + 1, "train_loss": 1.0, "validation_loss": 1 - value, "validation_accuracy": value}
        for epoch, value in enumerate(accuracies)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        sums = {"confusion": np.diag([3, 1]), "loss_sum": 2.0, "top5": 4, "calibration": np.ones((15, 3))}
        evaluation = summarise(sums, ("a", "b"), "test", 4).to_json()
        workdir.write("evaluation.json", evaluation, complete=True, reason="finished")


def test_runs_are_read_from_workdirs_and_from_folders_of_them(tmp_path, monkeypatch):
    for rate in (0.1, 0.2):
        for seed, (ours, theirs) in enumerate(zip(BASE, BETTER, strict=True)):
            recipe = made.recipe({"optimizer.learning_rate": rate, "seed": seed})
            write_run(tmp_path / "study" / f"{rate}_{seed}", recipe, [0.5, ours if rate == 0.1 else theirs])
    comparison = compare(tmp_path / "study")
    assert [row.name for row in comparison.rows] == ["learning_rate=0.1", "learning_rate=0.2"]
    assert comparison.rows[1].paired.p == pytest.approx(statistics.paired_test(BETTER, BASE).p)
    monkeypatch.chdir(tmp_path)
    assert compare(["study"], base="study/0.2_3").base == "learning_rate=0.2"
    one, two = load_records([tmp_path / "study" / "0.1_0", tmp_path / "study" / "0.2_0"])
    assert (one.metrics["test_accuracy"], two.metrics["validation_accuracy"]) == (1.0, BETTER[0])
    assert (one.seeds, one.digests["data"]) == ({"seed": 0}, "d0")
    assert one.metrics["train_loss"] == 1.0
    with pytest.raises(InputError, match="is given twice"):
        compare([tmp_path / "study", tmp_path / "study" / "0.1_0"])
    with pytest.raises(InputError, match="nowhere' does not exist"):
        compare([tmp_path / "nowhere"])


def test_a_run_that_could_stop_early_counts_with_its_best_epoch(tmp_path):
    stopping = {"early_stopping.patience": 2, "data.validation": 8}
    write_run(tmp_path / "best", made.recipe(stopping), [0.5, 0.7, 0.6])
    write_run(tmp_path / "last", made.recipe({"data.validation": 8}), [0.5, 0.7, 0.6], finished=False)
    best, last = load_records([tmp_path])
    assert [run.metrics["validation_accuracy"] for run in (best, last)] == [0.7, 0.6]
    assert [run.complete for run in (best, last)] == [True, False]
    assert "data.validation=8" in best.digests["validation"]
