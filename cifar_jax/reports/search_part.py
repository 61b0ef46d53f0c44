"""What a report says of a hyper-parameter search: history, learning curves, slices, importances."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cifar_jax.reports.figures import COLOURS, INK, new_figure
from cifar_jax.reports.plots import axis_label
from cifar_jax.reports.run_report import Figure
from cifar_jax.studies.space import SCALARS, Choice, ranges
from cifar_jax.studies.tables import form_of
from cifar_jax.studies.trials import FAILED, FINISHED, PRUNED, TrialRecord
from cifar_jax.studies.tuned import Tuned

COLUMNS = 3  # of the slices


def sentences(found: Tuned) -> list[str]:
    """The best trial, the importances, and why trials failed."""
    lines = []
    if best := found.best:
        what = f"Trial {best.number} is the best, with a {found.metric.replace('_', ' ')} of {found.shown(best.value)}"
        lines.append(f"{what}. It was selected by this figure, which is therefore higher than that of new runs.")
    else:
        lines.append("All trials have failed." if found.all_failed else "No trial is finished yet.")
    if given := found.given_sentence():
        lines.append(given)
    if shares := found.importances():
        shown = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        lines.append(f"Importance (PED-ANOVA, Watanabe et al. 2023): {shown}.")
    failed = [trial for trial in found.trials if trial.status == FAILED]
    return lines + [f"Trial {trial.number} failed: {trial.reason}." for trial in failed]


def figures(found: Tuned) -> list[Figure]:
    """History, curves, slices and importances, as far as there is something to draw."""
    measured = [trial for trial in found.trials if trial.status in (FINISHED, PRUNED) and trial.value is not None]
    if not measured:
        return []
    drawn = [history_figure(found, measured)]
    if found.seeds == 1 and (curves := found.curves()):
        drawn.append(curves_figure(found, curves))
    if any(trial.parameters for trial in measured):
        drawn.append(slices_figure(found, measured))
    if shares := found.importances():
        drawn.append(importances_figure(shares))
    return drawn


def history_figure(found: Tuned, measured: Sequence[TrialRecord]) -> Figure:
    """The value of each trial, and the best so far."""
    figure, axes = new_figure(6.5, 3.4)
    _scatter(axes, found, measured, [trial.number for trial in measured])
    finished = [trial for trial in measured if trial.status == FINISHED]
    if finished:
        keep = np.minimum if found.metric.endswith("loss") else np.maximum
        best = keep.accumulate(_values(found, finished))
        axes.step([trial.number for trial in finished], best, where="post", color=INK, linewidth=1)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("trial")
    axes.set_ylabel(axis_label(found.metric))
    return "History", figure, "Filled points are finished trials, hollow ones were pruned; the line is the best so far."


def curves_figure(found: Tuned, curves: dict[int, dict[int, float]]) -> Figure:
    """What each trial reported after each epoch; the best trial stands out."""
    figure, axes = new_figure(6.5, 3.8)
    factor, best = form_of(found.metric).factor, found.best.number if found.best else None
    for number, values in sorted(curves.items(), key=lambda item: item[0] == best):
        colour, width, alpha = (COLOURS[1], 2.0, 1.0) if number == best else (COLOURS[0], 0.9, 0.45)
        shown = [factor * value for value in values.values()]
        axes.plot(
            list(values), shown, color=colour, linewidth=width, alpha=alpha, marker="." if len(shown) == 1 else ""
        )
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("epoch")
    axes.set_ylabel(axis_label(found.metric))
    standing = "" if best is None else f"; trial {best}, the best, stands out"
    return (
        "Learning curves of the trials",
        figure,
        f"A line for each trial{standing}. Those of pruned trials end early.",
    )


def slices_figure(found: Tuned, measured: Sequence[TrialRecord]) -> Figure:
    """The value of the trials over each parameter alone."""
    given = {name: values for name, values in ranges(found.space).items() if _with(measured, name)}
    columns = min(COLUMNS, len(given))
    rows = -(-len(given) // columns)
    figure, axes = new_figure(2.5 * columns, 2.4 * rows, columns, rows)
    plots = [axes] if rows * columns == 1 else list(axes.flat)
    lowest, highest = min(_values(found, measured)), max(_values(found, measured))
    margin = 0.06 * (highest - lowest) or 1e-3
    for plot, (name, values) in zip(plots, given.items(), strict=False):
        own = _with(measured, name)
        places = [trial.parameters[name] for trial in own]
        if isinstance(values, Choice):
            known = [value if type(value) in SCALARS else repr(value) for value in values.values]  # as Optuna has them
            plot.set_xticks(range(len(known)), [str(value) for value in known])
            plot.set_xlim(-0.5, len(known) - 0.5)
            places = [known.index(value) for value in places]
        else:
            plot.set_xscale("log" if values.log else "linear")
            plot.set_xlim(values.low, values.high)
            if values.log and values.high < 100 * values.low:  # the labels of the minor ticks would overlap
                ticks = [values.low, math.sqrt(values.low * values.high), values.high]
                plot.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
                plot.set_xticks([], minor=True)
        _scatter(plot, found, own, places)
        plot.set_ylim(lowest - margin, highest + margin)
        plot.tick_params(labelsize=8)
        plot.set_xlabel(name, fontsize=8)
    for plot in plots[::columns]:
        plot.set_ylabel(axis_label(found.metric), fontsize=8)
    for plot in plots[len(given) :]:
        plot.set_visible(False)
    return "Slices", figure, "The trials over each parameter alone: filled finished, hollow pruned, a star the best."


def importances_figure(shares: dict[str, float]) -> Figure:
    figure, axes = new_figure(6.5, 0.9 + 0.32 * len(shares))
    axes.barh(range(len(shares)), [100 * share for share in shares.values()], color=COLOURS[0])
    axes.set_yticks(range(len(shares)), list(shares), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("importance (%)")
    text = "How much each parameter decides whether a trial is among the best."
    return "Importance of the parameters", figure, text


def _scatter(axes: Any, found: Tuned, trials: Sequence[TrialRecord], places: Sequence[Any]) -> None:
    """Trials at the places: filled where finished, hollow where pruned, a star for the best."""
    points = list(zip(trials, places, _values(found, trials), strict=True))
    best = found.best.number if found.best else None
    kind = lambda trial: "best" if trial.number == best else trial.status
    styles: dict[str, dict[str, Any]] = {
        PRUNED: {"s": 24, "facecolors": "none", "edgecolors": COLOURS[0]},
        FINISHED: {"s": 24, "color": COLOURS[0]},
        "best": {"s": 110, "marker": "*", "color": COLOURS[1]},
    }
    for name, style in styles.items():
        own = [(place, value) for trial, place, value in points if kind(trial) == name]
        if own:
            axes.scatter(*zip(*own, strict=True), clip_on=False, **style)


def _with(trials: Sequence[TrialRecord], name: str) -> list[TrialRecord]:
    """The trials that have a parameter: of alternatives each has its own."""
    return [trial for trial in trials if name in trial.parameters]


def _values(found: Tuned, trials: Sequence[TrialRecord]) -> list[float]:
    factor = form_of(found.metric).factor
    return [factor * trial.value for trial in trials if trial.value is not None]
