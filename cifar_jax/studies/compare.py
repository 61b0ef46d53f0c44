"""compare: finished runs -> a table with a row for each recipe, its difference from a base, and a conclusion.

    comparison = compare("runs/width64", "runs/width128", detect=0.5)
    print(comparison)                       # also: to_markdown, to_latex, to_csv, to_json, to_pandas

Runs are grouped by all fields of their recipes except the seeds; a group is an arm. Arms are compared with the base by
a paired t test over common seeds. Where an arm has no seed in common with the base, Welch's test takes its place. The
p-values of these tests are corrected together (Holm), and a conclusion is one of three:

significant     the corrected p is below 0.05
too few seeds   fewer than 3 (common) seeds, or the difference that they can detect is larger than `detect`
not shown       otherwise
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cifar_jax.errors import InputError, nearest
from cifar_jax.studies import statistics
from cifar_jax.studies.comparison import NOT_SHOWN, SIGNIFICANT, TOO_FEW, Comparison, Row
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
from cifar_jax.studies.study_file import notes, read_study, run_folders, study_of
from cifar_jax.studies.tables import Form, form_of
from cifar_jax.training.metrics import Evaluation, SplitPredictions

Runs = str | Path | Sequence[str | Path | RunRecord]


def compare(
    *runs: Runs | RunRecord,
    base: str | None = None,
    metric: str = "validation_accuracy",
    detect: float | None = None,
) -> Comparison:
    """Compares finished runs, given as folders (workdirs, studies, or folders of workdirs), as records, or as lists.

    base: the arm that the others are compared with, as in `records.find_base`; None is that of the first run. metric:
    a name of RunRecord.metrics. detect: the smallest difference of interest, in points (0.5) for accuracies and other
    fractions, otherwise in the units of the metric.

    With a study as the only path, its base is the base.

    Raises InputError on runs that cannot be compared: unfinished, given twice, without the metric, of other data or
    other evaluation images; and on a base that matches no arm or more than one.
    """
    form = check_detect(metric, detect)
    smallest = None if detect is None else detect / form.factor
    given = [each for one in runs for each in ([one] if isinstance(one, str | Path | RunRecord) else one)]
    records, left_out = _records(given, metric)
    if base is None:
        base = _study_base(given, records)
    check_records(records, metric)
    arms = group_runs(records)
    chosen = find_base(arms, base)
    others = [arm for arm in arms if arm is not chosen]
    rows = [_tested(_row(arm, chosen, arms, metric), arm, chosen, metric, smallest) for arm in others]
    corrected = statistics.holm([row.test.p if row.test else None for row in rows])
    rows = [dataclasses.replace(row, p_holm=p) for row, p in zip(rows, corrected, strict=True)]
    rows = [dataclasses.replace(row, conclusion=_conclude(row, smallest)) for row in rows]
    first = _row(chosen, chosen, arms, metric)
    found = (*_notes(given), *_base_note(given, base, chosen), *left_out)
    return Comparison(metric, first.name, smallest, (first, *rows), found)


def check_detect(metric: str, detect: float | None) -> Form:
    """How the metric is written. Raises InputError unless `detect` is None or a positive number."""
    form = form_of(metric)
    if detect is not None and not (math.isfinite(detect) and detect > 0):
        raise InputError(f"detect is {detect!r}; it must be a positive number{form.unit and f', in {form.unit}'}")
    return form


def check_metric(metric: str, splits: Sequence[str]) -> None:
    """Raises InputError where a study's runs will not have the metric, before they are trained."""
    figures = [field.name for field in dataclasses.fields(Evaluation) if field.type is float]
    known = ["train_loss", "train_accuracy", *(f"{split}_{name}" for split in splits for name in figures)]
    if metric not in known:
        hint = "; the test split is evaluated with --final" if metric.startswith("test_") else nearest(metric, known)
        raise InputError(f"metric '{metric}' will be measured by none of the runs{hint}")


def _paths(runs: Runs) -> list[Path]:
    given: list[Any] = [runs] if isinstance(runs, str | Path) else list(runs)
    return [Path(run) for run in given if not isinstance(run, RunRecord)]


def _notes(runs: Runs) -> tuple[str, ...]:
    """Those of the studies that the runs belong to."""
    places = dict.fromkeys(path for path in _paths(runs) if (path / "study.json").exists())
    covered = {path.resolve() for path in places}
    inside = [study_of(folder.parent) for path in _paths(runs) for folder in sorted(path.glob("**/run.json"))]
    places |= dict.fromkeys(place for place in inside if place and place not in covered)
    return tuple(note for path in places if (study := read_study(path)) for note in notes(path, study))


def _base_note(runs: Runs, base: str | None, chosen: Arm) -> list[str]:
    """That the base of the study has no run, and another arm stands in for it."""
    paths = _paths(runs)
    study = read_study(paths[0]) if len(paths) == 1 and base is None else None
    if not study or not study["base"]:
        return []
    name = next(iter({run.arm for run in chosen.runs}))
    return [f"{paths[0]}: the base has no finished run, and '{name}' stands in for it."]


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


def _names(arms: Sequence[Arm]) -> dict[int, str] | None:
    """id of an arm -> its name in the study, where all are arms of one study."""
    found = [{run.arm for run in arm.runs} for arm in arms]
    studies = {study_of(Path(run.folder)) for arm in arms for run in arm.runs}
    single = [next(iter(names)) for names in found if len(names) == 1]
    if len(studies) != 1 or None in single or len(set(single)) < len(arms):
        return None
    return {id(arm): str(name) for arm, name in zip(arms, single, strict=True)}


def _row(arm: Arm, base: Arm, arms: Sequence[Arm], metric: str) -> Row:
    names = _names(arms)
    fields = arm.select(changed_fields(arms if arm is base else [arm, base]))
    predictions = _predictions(arm, metric)
    several = predictions if predictions and len(predictions) > 1 else None
    return Row(
        name=names[id(arm)] if names else label(fields) or "all runs",
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
    detectable = row.paired.detectable if row.paired else row.welch.detectable if row.welch else None
    if row.p_holm is None or (smallest is not None and detectable is not None and detectable > smallest):
        return TOO_FEW
    return NOT_SHOWN
