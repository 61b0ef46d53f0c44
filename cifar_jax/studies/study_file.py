"""The folder of a study: study.json, which says what it is and how far it is, and runs.csv, a line for each run.

study.json    format, the definition (see `definition`), "execution", "final": one entry for each evaluation on the
              test split, "runs": folder of a run -> {"arm", "seed", "status", "reason", "seconds", "compile_seconds",
              "metrics"}, and "digest" of all this. A run that is not listed was not begun, or was interrupted.
              Written within `waiting_lock`, because several workers may finish runs
runs.csv      the same runs, for other programs
runs/         a workdir for each run: runs/<arm>/seed<n>
"""

import contextlib
import csv
import fcntl
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cifar_jax.errors import InputError
from cifar_jax.runs.files import read_json, unsealed, write_bytes, write_sealed
from cifar_jax.runs.workdir import open_lock

FORMAT = 1
FINISHED, FAILED = "finished", "failed"  # the status of a run


def read_study(folder: Path) -> dict[str, Any] | None:
    """study.json; None where the folder holds no study. Raises InputError where it is damaged or of another format."""
    path = folder / "study.json"
    if not path.exists():
        return None
    stored = read_json(path)
    if isinstance(stored, dict) and stored.get("format", FORMAT) != FORMAT:
        raise InputError(f"'{folder}' holds a study of format {stored['format']}, and this version reads {FORMAT}")
    study = unsealed(stored)
    if study is None:
        raise InputError(f"{path} is damaged, or was changed; restore it, or name another folder")
    return study


@contextlib.contextmanager
def waiting_lock(folder: Path, name: str) -> Iterator[None]:
    """One process at a time is within it; the others wait. A killed process leaves no lock behind.

    Raises InputError where the folder cannot be written.
    """
    with open_lock(folder, name) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_study(folder: Path, study: Mapping[str, Any]) -> None:
    """study.json, and runs.csv after it."""
    write_sealed(folder / "study.json", study)
    metrics = sorted({name for run in study["runs"].values() for name in run["metrics"]})
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    columns = ("arm", "seed", "status", "reason", "seconds", "compile_seconds")
    writer.writerow([*columns, *metrics, "folder"])
    for name, run in study["runs"].items():
        writer.writerow([*(run[column] for column in columns), *(run["metrics"].get(key) for key in metrics), name])
    write_bytes(folder / "runs.csv", stream.getvalue().encode())


def run_folders(folder: Path, study: Mapping[str, Any]) -> list[Path]:
    """The workdirs of the runs that are finished, in the order of the study: arm by arm."""
    finished = [name for name, run in study["runs"].items() if run["status"] == FINISHED]
    order = [arm["folder"] for arm in study["arms"]]
    return [folder / name for name in sorted(finished, key=lambda name: order.index(str(Path(name).parent)))]


def study_of(workdir: Path) -> Path | None:
    """The folder of the study that a run belongs to: runs/<arm>/seed<n> below it."""
    place = workdir.resolve().parents
    return place[2] if len(place) > 2 and (place[2] / "study.json").exists() else None


def nothing_finished(folder: Path, study: Mapping[str, Any]) -> str:
    """Why a study has no run to compare, in a sentence."""
    failed = [run for run in study["runs"].values() if run["status"] == FAILED]
    if not failed:
        return f"no run of the study in '{folder}' is finished yet; the command that began it continues it"
    return (
        f"all {len(failed)} runs of the study in '{folder}' that were trained have failed, the first one:"
        f" {failed[0]['reason']}; the same command with --retry trains them again"
    )


def notes(folder: Path, study: Mapping[str, Any]) -> list[str]:
    """What a report of the study must say beside its figures."""
    runs, planned = study["runs"], len(study["arms"]) * len(study["seeds"])
    failed = {name: run for name, run in runs.items() if run["status"] == FAILED}
    times = len(study["final"])
    used = {0: "was not used", 1: "was evaluated once"}.get(times, f"was evaluated {times} times")
    lines = [f"{folder}: the test split {used}."]
    looked = [name for name in runs if (folder / name / "evaluation.json").exists()]
    outside = [name for name in looked if "test_accuracy" not in runs[name]["metrics"]]
    if outside:
        lines.append(f"{folder}: {len(outside)} runs were evaluated on the test split by other commands.")
    if len(runs) < planned:
        lines.append(f"{folder}: {planned - len(runs)} of {planned} runs are not trained yet.")
    finished = {run["arm"] for run in runs.values() if run["status"] == FINISHED}
    for arm in study["arms"]:
        if arm["name"] not in finished:
            lines.append(f"{folder}: arm '{arm['name']}' has no finished run, and is in no table.")
    lines += [f"{folder}: {run['arm']}, seed {run['seed']} failed: {run['reason']}." for run in failed.values()]
    return lines
