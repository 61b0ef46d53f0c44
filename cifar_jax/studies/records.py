"""Finished runs as plain records: reading them, refusing those that cannot be compared, and grouping them in arms."""

import functools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cifar_jax.errors import InputError, nearest, suggestion
from cifar_jax.recipe import tuples
from cifar_jax.runs.identity import FREE_FIELDS, LATER_FIELDS
from cifar_jax.runs.log import read_metrics
from cifar_jax.runs.recipes import read_recipe
from cifar_jax.runs.stopping import best_epoch
from cifar_jax.runs.workdir import (
    EVALUATIONS,
    PREDICTIONS,
    read_evaluation,
    read_predictions,
    read_record,
)
from cifar_jax.studies.fields import with_defaults
from cifar_jax.studies.study_file import nothing_finished, read_study, run_folders, study_of
from cifar_jax.training.keys import FOLLOW
from cifar_jax.training.metrics import Evaluation, SplitPredictions

ABSENT = "absent"  # the value of a field that a recipe does not have


@dataclass(frozen=True)
class RunRecord:
    """One run. `recipe` is flat and holds plain values: {"seed": 0, "optimizer.learning_rate": 0.1, ...}.

    metrics: "<split>_<name>" -> value, {"validation_accuracy": 0.81, "test_accuracy": None}; None was not measured.
    digests: "data" -> text that identifies the training data; a split -> text that identifies its images. Runs whose
    texts differ are not compared; what is absent is not checked.
    predictions: split -> a function that loads what the run says about each image of the split.
    arm: the name of the arm, where the run is part of a study.
    """

    folder: str
    recipe: Mapping[str, Any]
    metrics: Mapping[str, float | None]
    digests: Mapping[str, str] = field(default_factory=dict)
    predictions: Mapping[str, Callable[[], SplitPredictions]] = field(default_factory=dict)
    complete: bool = True
    arm: str | None = None

    @property
    def seeds(self) -> dict[str, Any]:
        """The fields by which runs of a recipe differ: `seed`, and those of `seeds.*` that do not follow it."""
        return {name: value for name, value in self.recipe.items() if _is_seed(name) and value != FOLLOW}

    @property
    def seed_text(self) -> str:
        """The seeds as one text, equal for runs that are paired: "seed=0"."""
        return label(dict(sorted(self.seeds.items())))


@dataclass(frozen=True)
class Arm:
    """Runs that differ in nothing but their seeds; `fields` are those of the recipe, flat, without seeds."""

    fields: Mapping[str, Any]
    runs: tuple[RunRecord, ...]

    def values(self, metric: str) -> dict[str, float]:
        """The metric of each run that has it, by the text of its seeds."""
        measured = {run.seed_text: run.metrics.get(metric) for run in self.runs}
        return {seeds: float(value) for seeds, value in measured.items() if value is not None}

    def select(self, names: Sequence[str]) -> dict[str, Any]:
        """The fields of these names."""
        return {name: self.fields.get(name, ABSENT) for name in names}


def load_records(paths: Sequence[str | Path]) -> list[RunRecord]:
    """The runs in `paths`, each a workdir, a study, or a folder of workdirs, in the given order; of a study those that
    are finished.

    Metrics are those of the model that the run returns: the last epoch's, or the best epoch's where the run could stop
    early.

    Raises InputError where a path holds no run, or a file of a run is damaged.
    """
    studies: dict[Path, Any] = {}
    folders = [folder for path in paths for folder in _workdirs(Path(path))]
    return [_load(folder, _arm_of(folder, studies)) for folder in folders]


def check_records(records: Sequence[RunRecord], metric: str) -> None:
    """Raises InputError unless the runs are finished, different, and measured by `metric` on the same images."""
    if not records:
        raise InputError("there are no runs to compare; give the folders of finished runs")
    folders: set[str] = set()
    known = sorted({name for record in records for name, value in record.metrics.items() if value is not None})
    for record in records:
        if record.folder in folders:
            raise InputError(f"run '{record.folder}' is given twice; give each run once")
        folders.add(record.folder)
        if not record.complete:
            raise InputError(f"run '{record.folder}' is not finished; resume it, or leave it out")
        if metric not in known:
            raise InputError(f"metric '{metric}' is measured by none of the runs{nearest(metric, known)}")
        value = record.metrics.get(metric)
        if value is None or not math.isfinite(value):
            raise InputError(f"run '{record.folder}' has {metric}={value}; leave it out, or choose another metric")
    _check_same(records, "data", "were trained on different data", "compare runs of one data set")
    split = split_of(metric)
    _check_same(records, split, f"have different {split} images", f"compare runs with one {split} split")


def group_runs(records: Sequence[RunRecord]) -> list[Arm]:
    """The arms in the order in which their first runs are given.

    Raises InputError where two runs of an arm have the same seeds.
    """
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        group = groups.setdefault(json.dumps(_without_seeds(record), sort_keys=True), [])
        for other in group:
            if other.seed_text == record.seed_text:
                both = f"'{other.folder}' and '{record.folder}'"
                raise InputError(f"runs {both} have the same recipe and seeds ({record.seed_text}); leave one out")
        group.append(record)
    return [Arm(_without_seeds(runs[0]), tuple(runs)) for runs in groups.values()]


def changed_fields(arms: Sequence[Arm]) -> list[str]:
    """The fields that do not have the same value in all arms, sorted."""
    names = {name for arm in arms for name in arm.fields}
    return sorted(name for name in names if len({repr(arm.fields.get(name, ABSENT)) for arm in arms}) > 1)


def find_base(arms: Sequence[Arm], base: str | None) -> Arm:
    """The arm that `base` names: by fields, "learning_rate=0.1, epochs=30", or by the folder of a run; None the first.

    The last part of a field's name is enough. Raises InputError where no arm, or more than one, matches.
    """
    if base is None:
        return arms[0]
    wanted = [part.strip().partition("=") for part in re.split(r",\s*(?=[\w.]+=)", base)]
    has = lambda arm, name, value: any(
        str(held) == value for path, held in arm.fields.items() if path == name or path.endswith(f".{name}")
    )
    folders = {base, str(Path(base).resolve())}
    named = [arm for arm in arms if folders & {run.folder for run in arm.runs}]
    named = named or [arm for arm in arms if {run.arm for run in arm.runs} == {base}]
    matches = named or [arm for arm in arms if wanted and all(has(arm, name, value) for name, _, value in wanted)]
    labels = {id(arm): label(arm.select(changed_fields(arms))) for arm in arms}
    if not matches:
        names = [next(iter({run.arm for run in arm.runs})) or labels[id(arm)] for arm in arms]
        meant = suggestion(base, names)
        hint = f"; did you mean '{meant}'?" if meant else ""
        raise InputError(f"base '{base}' matches no arm{hint}; the arms are: {'; '.join(names)}")
    if len(matches) > 1:
        listed = "; ".join(labels[id(arm)] for arm in matches)
        raise InputError(f"base '{base}' matches {len(matches)} arms; name one of them by its fields: {listed}")
    return matches[0]


def label(fields: Mapping[str, Any]) -> str:
    """ "learning_rate=0.1, epochs=30": the last part of each name, or the whole name where that is not unique."""
    last = [name.rpartition(".")[2] for name in fields]
    short = [end if last.count(end) == 1 and end != "name" else name for end, name in zip(last, fields, strict=True)]
    return ", ".join(f"{name}={tuples(value)}" for name, value in zip(short, fields.values(), strict=True))


def split_of(metric: str) -> str:
    """ "validation_accuracy" -> "validation"."""
    return metric.partition("_")[0]


def _is_seed(name: str) -> bool:
    return name == "seed" or name.startswith("seeds.")


def _without_seeds(record: RunRecord) -> dict[str, Any]:
    return {name: value for name, value in record.recipe.items() if not _is_seed(name)}


def _check_same(records: Sequence[RunRecord], key: str, fault: str, remedy: str) -> None:
    known = [record for record in records if key in record.digests]
    for record in known:
        first, other = known[0].digests[key], record.digests[key]
        if first != other:
            both = f"'{known[0].folder}' and '{record.folder}'"
            raise InputError(f"runs {both} {fault} ({first} and {other}); {remedy}")


def _workdirs(path: Path) -> list[Path]:
    """The folder itself where it is a workdir, else the runs of the study, or the workdirs in it."""
    if study := read_study(path):
        if not (found := run_folders(path, study)):
            raise InputError(nothing_finished(path, study))
        return found
    if (path / "run.json").exists():
        return [path]
    if (path / "tune.json").exists():
        remedy = f"trials.csv has them, and `report {path}` shows them; give folders below {path / 'trials'} to compare"
        raise InputError(f"'{path}' is a search by tune, whose trials are no repeated runs: {remedy}")
    found = sorted(child.parent for child in path.glob("**/run.json"))
    if not found:
        fault = "holds no run (no run.json)" if path.exists() else "does not exist"
        raise InputError(f"'{path}' {fault}; give a workdir, a study or a folder of workdirs")
    return found


def _load(folder: Path, arm: str | None) -> RunRecord:
    record, recipe = read_record(folder), read_recipe(folder / "recipe.json")
    assert record is not None
    digests = {"data": record["data"]["train"]}
    # With the data, these decide which images are held out.
    held_out = f"data.validation={recipe.data.validation}, data.seed={recipe.data.seed}"
    digests["validation"] = record["data"].get("validation", held_out)
    digests |= {split: digest for split, digest in record["data"].items() if split == "test"}
    evaluations = [read_evaluation(folder, split) for split in EVALUATIONS]
    # What the caller passed is part of what a run is: two functions of one name are two arms.
    origin = {f"{name}.digest": value["digest"] for name, value in record["functions"].items()}
    origin |= {"context.digest": record["context"]} if record["context"] else {}
    fields = LATER_FIELDS | with_defaults(recipe)
    return RunRecord(
        folder=str(folder.resolve()),
        recipe={path: value for path, value in fields.items() if path not in FREE_FIELDS} | origin,
        metrics=_metrics(recipe, read_metrics(folder / "metrics.jsonl"), evaluations),
        digests=digests,
        predictions={
            split: functools.partial(_load_predictions, folder, split)
            for split, name in PREDICTIONS.items()
            if name in record["files"]
        },
        complete=record["complete"],
        arm=arm,
    )


def _arm_of(folder: Path, studies: dict[Path, Any]) -> str | None:
    """The name of the arm that a run belongs to, where it is part of a study; `studies` keeps those that were read."""
    if (place := study_of(folder)) is None:
        return None
    if place not in studies:
        studies[place] = read_study(place)
    run = studies[place]["runs"].get(str(folder.resolve().relative_to(place)))
    return run["arm"] if run else None


def _load_predictions(folder: Path, split: str) -> SplitPredictions:
    if (found := read_predictions(folder, split)) is None:
        raise InputError(f"the predictions of run '{folder}' on split '{split}' are damaged; leave the run out")
    return found


def _metrics(
    recipe: Any, history: list[dict[str, Any]], evaluations: Sequence[Evaluation | None]
) -> dict[str, float | None]:
    """The figures of metrics.jsonl for the model that the run returns, and all single numbers of its evaluations."""
    metrics: dict[str, float | None] = {}
    if history:
        best = best_epoch(recipe, history) if recipe.early_stopping.patience else history[-1]["epoch"]
        line = next(line for line in history if line["epoch"] == best)
        # Training looks at the image alone; figures of several views come from an evaluation only.
        kinds = ("train_", "validation_") if recipe.evaluation.views == "one" else ("train_",)
        metrics |= {name: value for name, value in line.items() if name.startswith(kinds)}
    for evaluation in filter(None, evaluations):
        figures = {name: value for name, value in vars(evaluation).items() if isinstance(value, float)}
        metrics |= {f"{evaluation.split}_{name}": value for name, value in figures.items()}
    return metrics
