"""compare: finished runs -> a table with a row for each recipe, its difference from a base, and a conclusion.

    comparison = compare(["runs/width64", "runs/width128"], detect=0.5)
    print(comparison)                       # also: to_markdown, to_latex, to_csv, to_json, to_pandas

Runs are grouped by all fields of their recipes except the seeds; a group is an arm. Arms are compared with the base by
a paired t test over common seeds. Where an arm has no seed in common with the base, Welch's test takes its place. The
p-values of these tests are corrected together (Holm), and a conclusion is one of three:

significant     the corrected p is below 0.05
too few seeds   fewer than 3 (common) seeds, or the difference that they can detect is larger than `detect`
not shown       otherwise
"""

import csv
import dataclasses
import importlib
import io
import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cifar_jax.errors import InputError
from cifar_jax.studies import statistics
from cifar_jax.studies.records import (
    Arm,
    RunRecord,
    changed_fields,
    check_records,
    find_base,
    group_runs,
    label,
    load_records,
    split_of,
)
from cifar_jax.studies.study_file import notes, read_study, run_folders
from cifar_jax.studies.tables import MISSING, Form, Table, form_of, latex_text, p_value
from cifar_jax.training.metrics import SplitPredictions

Runs = str | Path | Sequence[str | Path | RunRecord]
SIGNIFICANT, TOO_FEW, NOT_SHOWN = "significant", "too few seeds", "not shown"


@dataclass(frozen=True)
class Row:
    """One arm. All values are in the units of the metric (an accuracy in 0..1), none is rounded.

    fields: the fields that differ from the base, of the base those that differ in any arm; values: the metric of each
    run by its seeds. `p_holm` is the corrected p of `paired`, or of `welch` where no seeds are common. `pairs_needed`
    is the number of pairs that would detect `detect`. `spread` needs the predictions of all runs of the arm, `mcnemar`
    (arm first) those of both runs where the arm and the base have one run each. `ensemble` is the accuracy of the mean
    of the runs' probabilities. The tests of the base are None.
    """

    name: str
    is_base: bool
    fields: dict[str, Any]
    folders: tuple[str, ...]
    values: dict[str, float]
    summary: statistics.Summary
    spread: statistics.EvaluationSpread | None = None
    ensemble: float | None = None
    paired: statistics.PairedTest | None = None
    welch: statistics.WelchTest | None = None
    p_holm: float | None = None
    pairs_needed: int | None = None
    mcnemar: statistics.McNemarTest | None = None
    conclusion: str | None = None

    @property
    def test(self) -> statistics.PairedTest | statistics.WelchTest | None:
        """The test that the conclusion rests on."""
        return self.paired or self.welch

    def flat(self) -> dict[str, Any]:
        """The columns of the CSV file and of the data frame; the same for every row."""
        columns: dict[str, Any] = {"arm": self.name, "is_base": self.is_base, "fields": json.dumps(self.fields)}
        parts: dict[str, tuple[type, Any]] = {
            "": (statistics.Summary, self.summary),
            "paired_": (statistics.PairedTest, self.paired),
            "welch_": (statistics.WelchTest, self.welch),
            "mcnemar_": (statistics.McNemarTest, self.mcnemar),
            "spread_": (statistics.EvaluationSpread, self.spread),
        }
        for prefix, (kind, part) in parts.items():
            for field in dataclasses.fields(kind):
                value = getattr(part, field.name, None)
                if field.name.endswith("interval"):
                    columns[f"{prefix}{field.name}_low"], columns[f"{prefix}{field.name}_high"] = value or (None, None)
                else:
                    columns[prefix + field.name] = value
        columns["ensemble"] = self.ensemble
        return columns | {"p_holm": self.p_holm, "pairs_needed": self.pairs_needed, "conclusion": self.conclusion}


@dataclass(frozen=True)
class Comparison:
    """The rows, the base first. `detect` is in the units of the metric, 0.005 for half a point of accuracy.

    Tables show fractions in percent and differences in points, with two decimals; `to_csv`, `to_json` and `to_pandas`
    hold every digit.
    """

    metric: str
    base: str
    detect: float | None
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()  # of the studies: how often the test split was used, which runs failed

    def to_pandas(self) -> Any:
        """A pandas.DataFrame with a row for each arm. Raises InputError where pandas is not installed."""
        try:
            pandas = importlib.import_module("pandas")
        except ImportError as error:
            raise InputError("to_pandas needs pandas, which is not installed; run: pip install pandas") from error
        return pandas.DataFrame([row.flat() for row in self.rows])

    def to_csv(self) -> str:
        """A line for each arm; an empty cell is a value that does not exist."""
        text = io.StringIO()
        writer = csv.DictWriter(text, self.rows[0].flat(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(row.flat() for row in self.rows)
        return text.getvalue()

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False)

    def to_markdown(self) -> str:
        sentences = "\n".join(f"- {sentence}" for sentence in self.sentences())
        return "\n\n".join([*(table.markdown() for table in self.tables()), sentences])

    def to_latex(self) -> str:
        """Tabular environments, for the package booktabs; the conclusions follow as text."""
        sentences = "\n\n".join(map(latex_text, self.sentences()))
        return "\n\n".join([*(table.latex() for table in self.tables()), sentences])

    def __str__(self) -> str:
        """For a terminal of 100 columns."""
        sentences = "\n".join(textwrap.fill(sentence, 100, subsequent_indent="  ") for sentence in self.sentences())
        return "\n\n".join([*(table.terminal() for table in self.tables()), sentences]).rstrip()

    def tables(self) -> list[Table]:
        """The arms, their differences from the base, and the spread of those that keep predictions; none is empty.

        All intervals have 95% confidence.
        """
        form, others = form_of(self.metric), self.rows[1:]
        unit = f" in {form.unit}" if form.unit else ""
        tables = [
            Table(
                f"{self.metric}{' in percent' if form.unit else ''}, 95% intervals",
                ("arm", "n", "mean ± sd", "interval of mean", "interval of sd"),
                tuple(_summary_cells(row, form) for row in self.rows),
            ),
            Table(
                f"difference from {self.base}{unit} (r: correlation of the pairs)",
                ("arm", "pairs", "difference", "interval", "p", "p Holm", "p Welch", "r", "detectable"),
                tuple(_difference_cells(row, form) for row in others),
            ),
            Table(
                f"variance between runs{unit and f'{unit} squared'} (arXiv 2304.01910, equation 3)",
                ("arm", "runs", "images", "observed", "expected of the images", "true, estimated"),
                tuple(_spread_cells(row.name, row.spread, form) for row in self.rows if row.spread),
            ),
            Table(
                f"ensembles of the runs, {self.metric} in percent",
                ("arm", "runs", "mean of the runs", "ensemble"),
                tuple(_ensemble_cells(row, form) for row in self.rows if row.ensemble is not None),
            ),
        ]
        return [table for table in tables if table.rows]

    def sentences(self) -> list[str]:
        """A conclusion for each arm, McNemar's test where it and the base have one run each, and the notes."""
        others, form = self.rows[1:], form_of(self.metric)
        single = [row for row in others if row.summary.count == 1 == self.rows[0].summary.count]
        found = [f"{row.name}: {_sentence(row, self.detect, form)}." for row in others]
        return [*found, *(f"{row.name}: {_mcnemar_sentence(row)}." for row in single), *self.notes]


def compare(
    runs: Runs,
    base: str | None = None,
    metric: str = "validation_accuracy",
    detect: float | None = None,
) -> Comparison:
    """Compares finished runs, given as folders (workdirs, or folders of workdirs) or as records.

    base: the arm that the others are compared with, as in `records.find_base`; None is that of the first run. metric:
    a name of RunRecord.metrics. detect: the smallest difference of interest, in points (0.5) for accuracies and other
    fractions, otherwise in the units of the metric.

    With a study as the only path, its base is the base.

    Raises InputError on runs that cannot be compared: unfinished, given twice, without the metric, of other data or
    other evaluation images; and on a base that matches no arm or more than one.
    """
    form = form_of(metric)
    if detect is not None and not (math.isfinite(detect) and detect > 0):
        raise InputError(f"detect is {detect!r}; it must be a positive number{form.unit and f', in {form.unit}'}")
    smallest = None if detect is None else detect / form.factor
    records, left_out = _records(runs, metric)
    if base is None:
        base = _study_base(runs, records)
    check_records(records, metric)
    arms = group_runs(records)
    chosen = find_base(arms, base)
    others = [arm for arm in arms if arm is not chosen]
    rows = [_tested(_row(arm, chosen, arms, metric), arm, chosen, metric, smallest) for arm in others]
    corrected = statistics.holm([row.test.p if row.test else None for row in rows])
    rows = [dataclasses.replace(row, p_holm=p) for row, p in zip(rows, corrected, strict=True)]
    rows = [dataclasses.replace(row, conclusion=_conclude(row, smallest)) for row in rows]
    first = _row(chosen, chosen, arms, metric)
    return Comparison(metric, first.name, smallest, (first, *rows), (*_notes(runs), *left_out))


def _paths(runs: Runs) -> list[Path]:
    given: list[Any] = [runs] if isinstance(runs, str | Path) else list(runs)
    return [Path(run) for run in given if not isinstance(run, RunRecord)]


def _notes(runs: Runs) -> tuple[str, ...]:
    """Those of the studies among the paths."""
    return tuple(note for path in _paths(runs) if (study := read_study(path)) for note in notes(path, study))


def _study_base(runs: Runs, records: Sequence[RunRecord]) -> str | None:
    """A run of the base arm of the study, where that is the only path and one of its runs is compared."""
    paths = _paths(runs)
    study = read_study(paths[0]) if len(paths) == 1 else None
    own = run_folders(paths[0], study) if study else []
    own = [path for path in own if study and path.parent == paths[0] / str(study["base"])]
    compared = {record.folder for record in records}
    return next((str(path.resolve()) for path in own if str(path.resolve()) in compared), None)


def _records(runs: Runs, metric: str) -> tuple[list[RunRecord], list[str]]:
    """The runs, and a note for each study of which some lack the metric: those are left out."""
    given: list[Any] = [runs] if isinstance(runs, str | Path) else list(runs)
    records: list[RunRecord] = []
    left_out = []
    for run in given:
        found = [run] if isinstance(run, RunRecord) else load_records([run])
        measured = [record for record in found if record.metrics.get(metric) is not None]
        if measured and len(measured) < len(found) and not isinstance(run, RunRecord) and read_study(Path(run)):
            left_out.append(f"{run}: {len(found) - len(measured)} runs have no {metric} and are left out.")
            found = measured
        records += found
    return records, left_out


def _row(arm: Arm, base: Arm, arms: Sequence[Arm], metric: str) -> Row:
    fields = arm.select(changed_fields(arms if arm is base else [arm, base]))
    predictions = _predictions(arm, metric)
    several = predictions if predictions and len(predictions) > 1 else None
    return Row(
        name=label(fields) or "all runs",
        is_base=arm is base,
        fields=fields,
        folders=tuple(run.folder for run in arm.runs),
        values=arm.values(metric),
        summary=statistics.summarise(list(arm.values(metric).values())),
        spread=statistics.evaluation_spread(np.stack([run.correct for run in several])) if several else None,
        ensemble=_ensemble(several) if several else None,
    )


def _tested(row: Row, arm: Arm, base: Arm, metric: str, smallest: float | None) -> Row:
    """The row with its tests against the base, all but the correction for the number of arms."""
    ours, theirs = arm.values(metric), base.values(metric)
    common = [seeds for seeds in ours if seeds in theirs]
    paired = None
    if common:
        paired = statistics.paired_test([ours[seeds] for seeds in common], [theirs[seeds] for seeds in common])
    needed = None
    if smallest and paired and paired.standard_deviation is not None and paired.p is not None:
        needed = statistics.pairs_needed(paired.standard_deviation, smallest)
    mcnemar = None
    if len(ours) == 1 == len(theirs):
        first, second = _predictions(arm, metric), _predictions(base, metric)
        if first and second:
            mcnemar = statistics.mcnemar_test(first[0].correct, second[0].correct)
    welch = statistics.welch_test(list(ours.values()), list(theirs.values()))
    return dataclasses.replace(row, paired=paired, welch=welch, pairs_needed=needed, mcnemar=mcnemar)


def _predictions(arm: Arm, metric: str) -> list[SplitPredictions] | None:
    """Those of each run where all runs of the arm keep theirs and the metric is their accuracy.

    Raises InputError where the runs have predictions of different images.
    """
    split = split_of(metric)
    if metric != f"{split}_accuracy" or not all(split in run.predictions for run in arm.runs):
        return None
    loaded = [run.predictions[split]() for run in arm.runs]
    for run, found in zip(arm.runs, loaded, strict=True):
        if not np.array_equal(found.labels, loaded[0].labels):
            both = f"'{run.folder}' and '{arm.runs[0].folder}'"
            raise InputError(f"runs {both} keep predictions of different images; evaluate them again")
    return loaded


def _ensemble(predictions: Sequence[SplitPredictions]) -> float:
    """The accuracy of the mean of the probabilities."""
    mean = np.mean([run.probabilities for run in predictions], axis=0)
    return float((mean.argmax(-1) == predictions[0].labels).mean())


def _conclude(row: Row, smallest: float | None) -> str:
    if row.p_holm is not None and row.p_holm < statistics.ALPHA:
        return SIGNIFICANT
    detectable = row.paired.detectable if row.paired else None
    if row.p_holm is None or (smallest is not None and detectable is not None and detectable > smallest):
        return TOO_FEW
    return NOT_SHOWN


def _summary_cells(row: Row, form: Form) -> tuple[str, ...]:
    summary = row.summary
    deviation = "" if summary.standard_deviation is None else f" ± {form.value(summary.standard_deviation)}"
    return (
        f"{row.name} (base)" if row.is_base else row.name,
        str(summary.count),
        form.value(summary.mean) + deviation,
        form.interval(summary.mean_interval),
        form.interval(summary.standard_deviation_interval),
    )


def _difference_cells(row: Row, form: Form) -> tuple[str, ...]:
    paired, test = row.paired, row.test
    correlation = paired.correlation if paired else None
    return (
        row.name,
        str(paired.count if paired else 0),
        form.signed(test.difference if test else None),
        form.interval(test.interval if test else None, signed=True),
        p_value(paired.p if paired else None),
        p_value(row.p_holm),
        p_value(row.welch.p if row.welch else None),
        MISSING if correlation is None else f"{correlation:.2f}",
        form.value(paired.detectable if paired else None),
    )


def _spread_cells(name: str, spread: statistics.EvaluationSpread, form: Form) -> tuple[str, ...]:
    variances = (spread.variance, spread.images_variance, spread.true_variance)
    squared = (f"{variance * form.factor**2:.4f}" for variance in variances)
    return (name, str(spread.runs), str(spread.images), *squared)


def _ensemble_cells(row: Row, form: Form) -> tuple[str, ...]:
    return (row.name, str(row.summary.count), form.value(row.summary.mean), form.value(row.ensemble))


def _sentence(row: Row, smallest: float | None, form: Form) -> str:
    """The conclusion of an arm and its reasons."""
    paired, test = row.paired, row.test
    if test is None or test.p is None:
        if not paired:
            return f"{row.conclusion}; none in common with the base, Welch's test needs {statistics.FEWEST} of both"
        return f"{row.conclusion}; {paired.count} in common with the base, a paired test needs {statistics.FEWEST}"
    difference = f"{form.signed(test.difference)}{form.unit and ' '}{form.unit}"
    parts = [f"{row.conclusion}, {difference} ({form.interval(test.interval, signed=True)})"]
    parts.append(f"p = {p_value(row.p_holm)}".replace("= <", "< "))
    if not paired:
        parts.append("no common seeds, so by Welch's test")
    elif not paired.standard_deviation:
        parts.append("all differences are equal, so p is 1 for no difference, otherwise 0")
    elif row.conclusion != SIGNIFICANT:
        parts.append(f"{paired.count} pairs can detect {form.amount(paired.detectable or 0.0)}")
        if row.conclusion == TOO_FEW and smallest:
            parts.append(f"{form.amount(smallest)} need {row.pairs_needed} pairs")
    return "; ".join(parts)


def _mcnemar_sentence(row: Row) -> str:
    test = row.mcnemar
    if test is None:
        return "McNemar's test needs the predictions of both runs, which are not kept"
    counts = f"{test.only_first} images only here, {test.only_second} only in the base"
    return f"correct are {counts}; p = {p_value(test.p)} (McNemar, of these two models, not of other seeds)"
