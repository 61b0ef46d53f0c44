"""The result of `compare`: a row for each arm, and how it is written: terminal, Markdown, LaTeX, CSV, JSON, pandas."""

import csv
import dataclasses
import importlib
import io
import json
import textwrap
from dataclasses import dataclass
from typing import Any

from cifar_jax.errors import InputError
from cifar_jax.studies import statistics
from cifar_jax.studies.tables import MISSING, Form, Table, form_of, latex_text, p_value

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
        lower = " (lower is better)" if self.metric.endswith("loss") else ""
        tables = [
            Table(
                f"{self.metric}{' in percent' if form.unit else lower}, 95% intervals",
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


def _summary_cells(row: Row, form: Form) -> tuple[str, ...]:
    summary = row.summary
    deviation = "" if summary.standard_deviation is None else f" ± {form.value(summary.standard_deviation)}"
    return (
        f"{row.name} (base)" if row.is_base and row.name != "base" else row.name,
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
    counts = f"{test.only_first} images only in this run, {test.only_second} only in the base"
    return f"{counts} are correct; p = {p_value(test.p)} (McNemar, of these two models, not of other seeds)"
