"""What a hyper-parameter search has found: a table, the recipe of the best trial as a file, and plots."""

import csv
import functools
import io
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cifar_jax.errors import InputError
from cifar_jax.recipe import flatten, override, without_facts
from cifar_jax.recipe import from_json as recipe_from_json
from cifar_jax.runs.files import write_bytes
from cifar_jax.runs.identity import with_later_fields
from cifar_jax.studies.definition import Definition
from cifar_jax.studies.fields import typed
from cifar_jax.studies.plan import duration
from cifar_jax.studies.recipe_file import write_recipe
from cifar_jax.studies.space import by_field, from_json, suggest
from cifar_jax.studies.storage import address_of, optuna_library, queue_lock, quiet_optuna
from cifar_jax.studies.tables import MISSING, Table, form_of
from cifar_jax.studies.trials import (
    FAILED,
    FINISHED,
    INTERRUPTED,
    PRUNED,
    RUNNING,
    WAITING,
    TrialRecord,
    attempts,
    read_trials,
)
from cifar_jax.studies.tune_file import FILE, check_address, find_study, read_space, read_tune

SHOWN = 20  # trials in the table of a terminal
STATES = (FINISHED, PRUNED, FAILED, RUNNING, WAITING, INTERRUPTED)


@dataclass(frozen=True)
class Tuned:
    """A search as it stands. `study` is that of Optuna, for its own functions."""

    folder: Path
    recipe: Any  # that was given
    space: Mapping[str, Any]
    metric: str
    seeds: int  # of each trial
    trials: tuple[TrialRecord, ...]
    study: Any
    functions: tuple[str, ...] = ()  # that the caller gave, such as "model"
    has_own_data: bool = False  # whether this process was given the data; unknown to `load_search`

    @property
    def best(self) -> TrialRecord | None:
        """The finished trial with the best value, the first of equal ones; None where none is finished."""
        found = [trial for trial in self.trials if trial.status == FINISHED]
        return min(found, key=self._order, default=None)

    @property
    def given(self) -> TrialRecord | None:
        """The trial with the values of the recipe that was given; None where the space does not hold them."""
        return next((trial for trial in self.trials if trial.is_given), None)

    @property
    def all_failed(self) -> bool:
        """Whether there are trials, and all have failed."""
        return bool(self.trials) and all(trial.status == FAILED for trial in self.trials)

    def since_best(self) -> int:
        """How many trials have ended after the best one was drawn, without being better."""
        best = self.best
        return 0 if best is None else sum(trial.is_over and trial.number > best.number for trial in self.trials)

    def _order(self, trial: TrialRecord) -> float:
        """Ascending from the best trial on."""
        assert trial.value is not None
        return -trial.value if self.metric == "validation_accuracy" else trial.value

    def changes(self, trial: TrialRecord) -> dict[str, Any]:
        """Field -> value of a trial."""
        fixed = optuna_library().trial.FixedTrial(trial.parameters)
        return typed(self.recipe, suggest(self.space, fixed))

    @property
    def best_recipe(self) -> ConfigDict:
        """The recipe of the best trial, with the seed that was given. Raises InputError where no trial is finished."""
        if self.best is None:
            what = f"no trial of the study in '{self.folder}' is finished yet; the same command continues"
            if self.all_failed:
                what = f"all {len(self.trials)} trials of the study in '{self.folder}' have failed, the first one:"
                what += f" {self.trials[0].reason}; the same command with --retry trains them again"
            raise InputError(what)
        return without_facts(override(self.recipe, self.changes(self.best)))

    def shown(self, value: float | None) -> str:
        """A value with its unit, "61.20%" or "1.0712"."""
        percent = "%" if self.metric == "validation_accuracy" and value is not None else ""
        return f"{form_of(self.metric).value(value)}{percent}"

    def counts(self) -> str:
        """ "40 trials: 30 finished, 10 pruned"."""
        count = {state: sum(trial.status == state for trial in self.trials) for state in STATES}
        return f"{len(self.trials)} trials: " + ", ".join(f"{n} {state}" for state, n in count.items() if n)

    def table(self, shown: int = SHOWN) -> Table:
        """The best trials first, then those without a value; at most `shown`."""
        ended = sorted((trial for trial in self.trials if trial.status == FINISHED), key=self._order)
        others = [trial for trial in self.trials if trial.status != FINISHED]
        names, values = self._fields()
        last = [name.rpartition(".")[2] for name in names]
        unique = lambda end, name: end if last.count(end) == 1 and end != "name" else name.removesuffix(".name")
        short = [unique(end, name) for end, name in zip(last, names, strict=True)]
        unit = f"{self.metric}{' %' if self.metric == 'validation_accuracy' else ''}"
        what = f"mean of {self.seeds} seeds" if self.seeds > 1 else "1 seed"
        title = f"{self.counts()}. {self.metric} ({what}) of the model that each run returns; a trial that was pruned"
        title += " has its last report."
        if ended:
            title += " The best of many is higher than a new run of it: the test split was not used."
        form = form_of(self.metric).value
        rows = [
            (
                str(trial.number),
                trial.status,
                form(trial.value),
                *(_text(values[trial.number].get(name, MISSING)) for name in names),
                duration(trial.seconds),
                str(trial.retries),
            )
            for trial in [*ended, *others][:shown]
        ]
        return Table(title, ("trial", "status", unit, *short, "time", "retries"), tuple(rows))

    def _fields(self) -> tuple[list[str], dict[int, dict[str, Any]]]:
        """The fields that were searched, and of each trial their values."""
        values = {trial.number: by_field(self.space, trial.parameters) for trial in self.trials}
        return list(dict.fromkeys(name for fields in values.values() for name in fields)), values

    def __str__(self) -> str:
        lines = [self.table().terminal(120)]
        if len(self.trials) > SHOWN:
            lines.append(f"{len(self.trials) - SHOWN} more trials are in {self.folder / 'trials.csv'}.")
        lines += [f"trial {trial.number} failed: {trial.reason}" for trial in self.trials if trial.status == FAILED]
        lines += [sentence] if (sentence := self.given_sentence()) else []
        if found := self.importances():
            shown = ", ".join(f"{name} {share:.0%}" for name, share in found.items())
            lines.append(f"importance (PED-ANOVA, Watanabe et al. 2023): {shown}")
        return "\n".join(lines)

    def given_sentence(self) -> str:
        """What the recipe that was given reached; "" where it is no trial, or not over."""
        given = self.given
        if given is None or given.status != FINISHED:
            return ""
        return f"The recipe as it was given is trial {given.number}: {self.shown(given.value)}."

    def curves(self) -> dict[int, dict[int, float]]:
        """Trial -> epoch -> what it reported then; with several seeds a trial, seed -> its value."""
        found = {number: every[-1].intermediate_values for number, every in attempts(self.study).items()}
        return {number: dict(sorted(values.items())) for number, values in found.items() if values}

    def importances(self) -> dict[str, float]:
        """Share of each parameter that all finished trials have; {} where these are too few, or all equal."""
        optuna = optuna_library()
        if len({trial.value for trial in self.trials if trial.status == FINISHED}) < 4:
            return {}
        with quiet_optuna():
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            try:
                return dict(optuna.importance.get_param_importances(self.study, evaluator=evaluator))
            except (RuntimeError, ValueError):  # no parameter is in all trials, or none varies
                return {}

    def write(self, new: int | None = None) -> None:
        """trials.csv, and best.py where there is a best trial, the `new` one if given; where functions were given
        there is none, because no file names them."""
        write_bytes(self.folder / "trials.csv", self.to_csv().encode())
        if (
            self.best is not None
            and new in (None, self.best.number)
            and not self.functions
            and not any(map(callable, flatten(self.recipe).values()))
        ):
            self.write_best()

    def to_csv(self) -> str:
        """A line for each trial."""
        stream = io.StringIO()
        names, fields = self._fields()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["trial", "status", self.metric, *names, "reports", "seconds", "retries", "reason"])
        for trial in self.trials:
            values = [fields[trial.number].get(name) for name in names]
            more = [trial.reports, round(trial.seconds, 2), trial.retries, trial.reason]
            writer.writerow([trial.number, trial.status, trial.value, *values, *more])
        return stream.getvalue()

    def write_best(self) -> Path:
        """best.py: a recipe that trains as it is, with the figures of the trial in its docstring."""
        path = self.folder / "best.py"
        write_recipe(path, self.best_recipe, self._docstring(path))
        return path

    def _docstring(self, path: Path) -> str:
        best = self.best
        assert best is not None
        name, epochs = self.metric.replace("_", " ").capitalize(), self.best_recipe.epochs
        seeds = f"mean of {self.seeds} seeds" if self.seeds > 1 else f"1 seed ({self.recipe.seed})"
        after = f"after {epochs} epoch{'s' if epochs > 1 else ''}, in {duration(best.seconds)}"
        figures = f"{name} {self.shown(best.value)}, {seeds}, {after}: the best of {self.counts()}. It was selected by"
        figures += " this figure, which is therefore higher than that of new runs; the test split was not used."
        lines = [
            f"The best of a search: trial {best.number}.",
            "",
            f"cj.fit(cj.load_recipe({str(path)!r}), data=...)  # with the data of the search"
            if self.has_own_data
            else f"python launch.py train --config={path}",
            "",
            *textwrap.wrap(f"{figures} {self.given_sentence()}".strip(), 120),
            "",
            "Searched:",
            *(f"    {path} = {value!r}" for path, value in self.changes(best).items()),
        ]
        return "\n".join(lines)

    def plot(self) -> list[Path]:
        """Plots of Optuna as pages of HTML in plots/: history, slices, and importances; what cannot be drawn is left
        out. Raises InputError where plotly is missing."""
        try:
            import plotly  # noqa: F401
        except ImportError as error:
            remedy = "install it with pip install plotly"
            raise InputError(f"plots of a search need plotly, which is not installed; {remedy}") from error
        visual, target = optuna_library().visualization, self.metric.replace("_", " ")
        draw: dict[str, Any] = {
            "history": functools.partial(visual.plot_optimization_history, target_name=target),
            "slices": functools.partial(visual.plot_slice, target_name=target),
        }
        if self.importances():
            evaluator = optuna_library().importance.PedAnovaImportanceEvaluator
            draw["importances"] = lambda study: visual.plot_param_importances(study, evaluator=evaluator())
        written = []
        folder = self.folder / "plots"
        if self.best is None:
            return []
        folder.mkdir(exist_ok=True)
        with quiet_optuna():
            for name, function in draw.items():
                path = folder / f"{name}.html"
                function(self.study).write_html(path, include_plotlyjs="directory")
                written.append(path)
        return written


def load_search(folder: str | Path, storage: str | None = None) -> Tuned:
    """The search in a folder as it stands, without its data; workers may be training its trials.

    storage: the address of its database, where that needs a password, which the folder does not hold.

    Raises InputError where the folder holds no search, or its trials cannot be reached.
    """
    folder = Path(folder)
    if (stored := read_tune(folder)) is None:
        raise InputError(f"'{folder}' holds no search (no {FILE}); tune begins one")
    address = address_of(storage or stored["storage"], folder)
    if storage:
        check_address(folder, stored, address, storage)
    if address.password == "***":  # as it is shown; the client library may know the password
        address = address.set(password=None)
    definition = Definition.from_json(stored["definition"])
    space = from_json(read_space(folder))
    with queue_lock(folder), quiet_optuna():
        study = find_study(folder, stored, address)
        trials = tuple(read_trials(study, folder))
    recipe = with_later_fields(recipe_from_json(definition.recipe))
    functions = tuple(definition.functions)
    return Tuned(folder, recipe, space, stored["metric"], len(definition.seeds), trials, study, functions)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
