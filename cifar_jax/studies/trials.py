"""The trials of a study as users count them, and those whose process has died.

A trial has one or more attempts; each is a trial of Optuna. Later attempts continue the first one: they have its
parameters, its intermediate values, and its folder, and carry its number. Attributes: system "failed_trial" and
"retry_history", as Optuna's own retries, for its tools; user "original", the first number; "host", where it runs;
"reason", why it failed; "interruptions", attempts that a signal ended, or that ended before they began; "given".
"""

import contextlib
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifar_jax.runs.workdir import LockedError, locked
from cifar_jax.studies.storage import optuna_library, quiet_optuna

MAX_RETRIES = 3
FINISHED, PRUNED, FAILED, RUNNING, WAITING = "finished", "pruned", "failed", "running", "waiting"
INTERRUPTED = "interrupted"  # its process has died, and the next worker queues it again
RUNG = "completed_rung_"  # begins the attributes in which Optuna's successive halving notes a trial's values
GIVEN = "given"  # the attribute of the trial whose values are those of the recipe that was given
MARK = "interrupted"  # a file in a trial's folder: a signal ended its process


class UntoldError(BaseException):
    """Ends an attempt without a result, so that the trial is continued; no failure of the trial."""


@dataclass(frozen=True)
class TrialRecord:
    """A trial with all its attempts."""

    number: int  # of its first attempt
    status: str
    value: float | None  # of the objective; of a pruned trial the last that was reported
    parameters: dict[str, Any]  # name in the space -> value
    reason: str  # why it failed
    retries: int  # attempts after the first, but for those that a signal made necessary
    reports: int  # values so far: one for each epoch, or for each seed where a trial has several
    seconds: float  # of the last attempt: nobody knows when a process that was killed ended
    is_given: bool = False  # whether its values are those of the recipe that the search was given

    @property
    def is_over(self) -> bool:
        return self.status in (FINISHED, PRUNED, FAILED)


def number_of(trial: Any) -> int:
    """The number of the first attempt."""
    return int(trial.user_attrs.get("original", trial.number))


def trial_folder(folder: Path, number: int) -> Path:
    """Of the runs of a trial, whatever the attempt."""
    return folder / "trials" / str(number)


def attempts(study: Any) -> dict[int, list[Any]]:
    """First number -> the attempts, in their order."""
    found: dict[int, list[Any]] = {}
    for trial in study.get_trials(deepcopy=True):
        found.setdefault(number_of(trial), []).append(trial)
    return found


def waiting(every: Mapping[int, Sequence[Any]]) -> list[int]:
    """The first numbers of the trials that wait for a worker, the next one first, as Optuna hands them out."""
    last = [each[-1] for each in every.values() if each[-1].state.name == "WAITING"]
    return [number_of(trial) for trial in sorted(last, key=lambda trial: trial.number)]


def read_trials(study: Any, folder: Path) -> list[TrialRecord]:
    """All trials, by number."""
    return [_record(number, every, folder) for number, every in sorted(attempts(study).items())]


def _record(number: int, every: Sequence[Any], folder: Path) -> TrialRecord:
    last = every[-1]
    retries = len(every) - 1 - last.user_attrs.get("interruptions", 0)
    return TrialRecord(
        number=number,
        status=_status(last, retries, trial_folder(folder, number)),
        value=last.value if last.state.is_finished() else None,
        parameters=last.params,
        reason=_reason(last, len(every)),
        retries=retries,
        reports=len(last.intermediate_values),
        seconds=last.duration.total_seconds() if last.duration else 0.0,
        is_given=bool(last.user_attrs.get(GIVEN, False)),
    )


def _status(last: Any, retries: int, folder: Path) -> str:
    name = last.state.name
    if name == "FAIL" and is_lost(last) and retries - _is_no_retry(last, folder) < MAX_RETRIES:
        return INTERRUPTED
    if name == "RUNNING" and not is_foreign(last) and is_free(folder):
        return INTERRUPTED
    return {"COMPLETE": FINISHED, "PRUNED": PRUNED, "FAIL": FAILED, "RUNNING": RUNNING, "WAITING": WAITING}[name]


def _is_no_retry(last: Any, place: Path) -> bool:
    """Whether what follows an attempt is no retry: a signal ended it, or it ended before it had its lock, which is when
    it notes its host."""
    return (place / MARK).exists() or "host" not in last.user_attrs


def _reason(last: Any, count: int) -> str:
    if last.state.name != "FAIL":
        return ""
    died = f"its process ended without a result {count} times"
    return str(last.user_attrs.get("reason", died))


def is_lost(trial: Any) -> bool:
    """Whether an attempt has no result: it is running, or was marked as failed although no run of it failed."""
    return trial.state.name == "RUNNING" or (trial.state.name == "FAIL" and "reason" not in trial.user_attrs)


def is_foreign(trial: Any) -> bool:
    """Whether it runs on another machine: the locks of a network file system may be known to one machine only."""
    return trial.user_attrs.get("host", socket.gethostname()) != socket.gethostname()


def is_free(folder: Path) -> bool:
    """Whether no process holds the lock of a trial, or of one of its runs."""
    if not folder.exists():
        return True
    try:
        with contextlib.ExitStack() as stack:
            for each in (folder, *(path.parent for path in folder.glob("*/.lock"))):
                stack.enter_context(locked(each))
    except LockedError:
        return False
    return True


def requeue_lost(study: Any, folder: Path) -> list[int]:
    """Queues trials again whose process has died; call it inside `queue_lock`. Returns their numbers.

    On this machine a lock says whether a trial has an owner; of those on others, Optuna's heartbeat must have stopped
    too. A trial that was queued again MAX_RETRIES times fails, unless signals ended its attempts.
    """
    optuna = optuna_library()
    with quiet_optuna():
        optuna.storages.fail_stale_trials(study)
        queued = []
        for number, every in attempts(study).items():
            place = trial_folder(folder, number)
            # A kill between the two writes of `_queue_again` leaves an attempt that runs beside its successor.
            dead = [trial for trial in every[:-1] if trial.state.name == "RUNNING"]
            if is_lost(every[-1]) and not (every[-1].state.name == "RUNNING" and is_foreign(every[-1])):
                dead += every[-1:]
            if dead and is_free(place):
                if dead[-1] is every[-1] and _queue_again(study, number, every, place):
                    queued.append(number)
                for trial in dead:
                    study.tell(trial.number, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)
    return queued


def _queue_again(study: Any, number: int, every: Sequence[Any], place: Path) -> bool:
    """Adds the next attempt, before the last one is marked as failed, so that a kill loses neither; False where none
    is left."""
    last = every[-1]
    interruptions = last.user_attrs.get("interruptions", 0) + _is_no_retry(last, place)
    if len(every) - interruptions > MAX_RETRIES:
        return False
    _add_attempt(study, number, every, place, interruptions)
    return True


def queue_failed(study: Any, folder: Path) -> None:
    """Queues failed trials again, as if they had no retry yet; call it inside `queue_lock`."""
    for number, every in attempts(study).items():
        place = trial_folder(folder, number)
        if every[-1].state.name == "FAIL" and is_free(place):
            _add_attempt(study, number, every, place, len(every))


def _add_attempt(study: Any, number: int, every: Sequence[Any], place: Path, interruptions: int) -> None:
    """The next attempt of a trial, which continues the last one."""
    optuna, last = optuna_library(), every[-1]
    # Values are drawn one after another; where no run was begun with them, the attempt draws all of them again.
    begun = any(place.glob("seed*"))
    history = [trial.number for trial in every]
    kept = {name: value for name, value in last.user_attrs.items() if name not in ("host", "reason")}
    # A rung of Hyperband at the last report may have been noted and not yet decided: it is decided again.
    newest = last.intermediate_values.get(last.last_step)
    rungs = [name for name, value in last.system_attrs.items() if name.startswith(RUNG) and value == newest]
    system = {name: value for name, value in last.system_attrs.items() if name not in rungs}
    study.add_trial(
        optuna.create_trial(
            state=optuna.trial.TrialState.WAITING,
            params=last.params if begun else {},
            distributions=last.distributions if begun else {},
            user_attrs={**kept, "original": number, "interruptions": interruptions},
            system_attrs={**system, "failed_trial": number, "retry_history": history},
            intermediate_values=last.intermediate_values,
        )
    )
    (place / MARK).unlink(missing_ok=True)
