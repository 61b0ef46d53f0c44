"""Plots of a comparison, as PNG and SVG: arms, differences from the base, each axis of a grid, learning curves.

Points are runs, bars are 95% intervals of the mean, bands are the range of the runs. Needs the extra `report`.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cifar_jax.errors import InputError
from cifar_jax.reports.figures import COLOURS, INK, new_figure
from cifar_jax.runs.log import read_metrics
from cifar_jax.studies.comparison import SIGNIFICANT, Comparison, Row
from cifar_jax.studies.tables import Form, form_of

MOST_CURVES = 7  # the base and six others, each with a colour of its own


def draw(comparison: Comparison, folder: Path) -> list[Path]:
    """Writes the plots and returns their files. Raises InputError where matplotlib is missing or a file cannot be
    written."""
    return write_figures(figures(comparison), folder)


def write_figures(drawn: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes each figure under its name, as PNG and SVG. Raises InputError where a file cannot be written."""
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in drawn.items():
            for suffix in ("png", "svg"):
                paths.append(folder / f"{name}.{suffix}")
                figure.savefig(paths[-1], dpi=150)
    except OSError as error:
        raise InputError(
            f"the plots cannot be written to '{folder}' ({error.strerror}); name another folder"
        ) from error
    return paths


def figures(comparison: Comparison) -> dict[str, Any]:
    """Name -> figure: "arms", "differences", "axis_<field>" for each axis of a grid, "curves" from the histories."""
    found = {"arms": arms_figure(comparison)}
    if any(row.test and row.test.interval for row in comparison.rows):
        found["differences"] = differences_figure(comparison)
    if axes := grid_axes(comparison):
        found |= {f"axis_{name}": axis_figure(comparison, axes, name) for name in axes}
    if (curves := curves_figure(comparison)) is not None:
        found["curves"] = curves
    return found


def arms_figure(comparison: Comparison) -> Any:
    """A line for each arm, the base on top: its runs, their mean and its interval; the mean of the base is dashed."""
    form, rows = form_of(comparison.metric), comparison.rows
    figure, axes = new_figure(7.5, 1.2 + 0.42 * len(rows))
    for place, row in enumerate(rows):
        colour = INK if row.is_base else COLOURS[0]
        values = scaled(form, list(row.values.values()))
        axes.scatter(values, np.full(len(values), place), s=22, color=colour, alpha=0.45, linewidths=0)
        _mean(axes, row, form, place, colour, horizontal=True)
    axes.axvline(rows[0].summary.mean * form.factor, color=INK, linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(rows)), [title_of(row) for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(axis_label(comparison.metric))
    return figure


def differences_figure(comparison: Comparison) -> Any:
    """The difference of each arm from the base, its interval, and each pair of runs; filled where significant."""
    form, rows = form_of(comparison.metric), comparison.rows[1:]
    base = comparison.rows[0].values
    figure, axes = new_figure(7.5, 1.2 + 0.42 * len(rows))
    for place, row in enumerate(rows):
        if row.test is None:
            continue
        if row.paired:
            pairs = scaled(form, [value - base[seeds] for seeds, value in row.values.items() if seeds in base])
            axes.scatter(pairs, np.full(len(pairs), place), s=22, color=COLOURS[0], alpha=0.45, linewidths=0)
        difference = form.factor * row.test.difference
        error = np.abs(np.array([scaled(form, row.test.interval)]).T - difference) if row.test.interval else None
        fill = COLOURS[0] if row.conclusion == SIGNIFICANT else "none"
        options = {"fmt": "o", "color": COLOURS[0], "markerfacecolor": fill, "markersize": 6, "capsize": 3}
        axes.errorbar(difference, place, xerr=error, linewidth=1.2, **options)
    axes.axvline(0, color=INK, linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(rows)), [wrapped(row.name) for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(wrapped(f"difference{' in points' if form.unit else ''} from {comparison.base}"))
    return figure


def grid_axes(comparison: Comparison) -> dict[str, list[Any]]:
    """Field -> its values, where the arms are all combinations of the values of some fields; otherwise {}."""
    base = comparison.rows[0].fields
    values: dict[str, list[Any]] = {}
    for row in comparison.rows:
        for name in base:
            value = row.fields.get(name, base[name])
            if value not in values.setdefault(name, []):
                values[name].append(value)
    whole = math.prod(map(len, values.values())) == len(comparison.rows)
    numbers = lambda found: all(isinstance(value, int | float) for value in found)
    return {name: sorted(found) if numbers(found) else found for name, found in values.items()} if whole else {}


def axis_figure(comparison: Comparison, axes: dict[str, list[Any]], name: str) -> Any:
    """The metric over the values of a field; a line for each combination of the other fields."""
    form, base = form_of(comparison.metric), comparison.rows[0].fields
    lines: dict[str, list[Row]] = {}
    for row in comparison.rows:
        others = [f"{last(other)}={row.fields.get(other, base[other])}" for other in axes if other != name]
        lines.setdefault(", ".join(others), []).append(row)
    figure, plot = new_figure(6, 4)
    place = lambda row: axes[name].index(row.fields.get(name, base[name]))
    for number, (text, rows) in enumerate(sorted(lines.items())):
        colour, shift = COLOURS[number % len(COLOURS)], 0.04 * (number - (len(lines) - 1) / 2)
        rows = sorted(rows, key=place)
        means = [row.summary.mean * form.factor for row in rows]
        plot.plot([place(row) + shift for row in rows], means, color=colour, linewidth=1, label=text or None)
        for row in rows:
            values = scaled(form, list(row.values.values()))
            plot.scatter(np.full(len(values), place(row) + shift), values, s=22, color=colour, alpha=0.45, linewidths=0)
            _mean(plot, row, form, place(row) + shift, colour, horizontal=False)
    plot.set_xticks(range(len(axes[name])), [str(value) for value in axes[name]])
    plot.set_xlabel(name)
    plot.set_ylabel(axis_label(comparison.metric))
    if len(lines) > 1:
        plot.legend(fontsize=8, frameon=False)
    return figure


def curves_figure(comparison: Comparison) -> Any:
    """The validation accuracy of each arm over the epochs: mean of the runs, and their range as a band. None where the
    runs kept no history of it. Of many arms the base and the best are drawn."""
    sign = 1 if comparison.metric.endswith("loss") else -1  # a low loss is good
    rows = [comparison.rows[0], *sorted(comparison.rows[1:], key=lambda row: sign * row.summary.mean)][:MOST_CURVES]
    figure, axes = new_figure(6.5, 4)
    drawn = False
    for number, row in enumerate(rows):
        histories = [read_metrics(Path(folder) / "metrics.jsonl") for folder in row.folders]
        curves = [[line["validation_accuracy"] for line in lines] for lines in histories]
        curves = [curve for curve in curves if curve and None not in curve]
        if not curves:
            continue
        shortest = min(map(len, curves))
        values = 100 * np.array([curve[:shortest] for curve in curves])
        epochs = np.arange(1, shortest + 1)
        colour = INK if row.is_base else COLOURS[(number - 1) % 6]
        axes.plot(epochs, values.mean(0), color=colour, linewidth=1.2, label=title_of(row))
        axes.fill_between(epochs, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
        drawn = True
    if not drawn:
        return None
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation accuracy (%)")
    axes.legend(fontsize=7, frameon=False, loc="lower right")
    return figure


def _mean(axes: Any, row: Row, form: Form, place: float, colour: str, horizontal: bool) -> None:
    """The mean of an arm with its interval, where that exists."""
    mean, interval = row.summary.mean * form.factor, row.summary.mean_interval
    error = np.abs(np.array([scaled(form, interval)]).T - mean) if interval else None
    options = {"fmt": "o", "color": colour, "markersize": 5, "capsize": 3, "linewidth": 1.2}
    axes.errorbar(mean, place, xerr=error, **options) if horizontal else axes.errorbar(
        place, mean, yerr=error, **options
    )


def title_of(row: Row) -> str:
    """The name of an arm, wrapped, with a mark on the base."""
    name = wrapped(row.name)
    return f"{name} (base)" if row.is_base and row.name != "base" else name


def wrapped(text: str) -> str:
    """In at most two lines of 38 characters: runs of several studies may differ in many fields."""
    return "\n".join(textwrap.wrap(text, 38, max_lines=2, placeholder=" ..."))


def scaled(form: Form, values: Sequence[float]) -> np.ndarray:
    return np.asarray(values) * form.factor


def axis_label(metric: str) -> str:
    """ "validation accuracy (%)"."""
    unit = " (%)" if form_of(metric).unit else ""
    return f"{metric.replace('_', ' ')}{unit}"


def last(name: str) -> str:
    """ "optimizer.learning_rate" -> "learning_rate"."""
    return name.rpartition(".")[2]
