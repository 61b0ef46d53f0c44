"""Studies: many runs of one recipe, on disk, and their comparison. `ablate` and `sweep` differ only in their arms.

    table = cj.ablate(recipe, [{"augment.flip": 0}, {"model.dropout": 0}], seeds=8, folder="studies/regularisation")
    table = cj.sweep(recipe, {"optimizer.learning_rate": [0.01, 0.03, 0.1]}, seeds=5, folder="studies/rates")

A study trains with evaluate="validation": the test split is not used before `final`, which study.json counts.
"""

import contextlib
import datetime
import functools
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import jax

from cifar_jax.data import arrays
from cifar_jax.data.load import load_split
from cifar_jax.errors import InputError
from cifar_jax.recipe import from_json
from cifar_jax.runs import stream
from cifar_jax.runs.files import check_free
from cifar_jax.runs.fit import check, fit
from cifar_jax.runs.functions import check_replaced
from cifar_jax.runs.identity import with_later_fields
from cifar_jax.runs.light import finish_lightening, lighten
from cifar_jax.runs.loop import Executor
from cifar_jax.runs.workdir import LockedError, Run, locked
from cifar_jax.studies import execution, plan
from cifar_jax.studies.compare import compare
from cifar_jax.studies.comparison import Comparison
from cifar_jax.studies.definition import Definition, StudyArm, extended, find_arms, seeds_of
from cifar_jax.studies.engine_study import train_with
from cifar_jax.studies.options import Options, check_engine, check_hours, define, load_data, with_dtype
from cifar_jax.studies.progress import StudyProgress, compile_clock, short
from cifar_jax.studies.study_file import FAILED, FINISHED, FORMAT, read_study, waiting_lock, write_study

BLOCK = 16  # arms whose seeds are trained in turn: as many programs as a process keeps, twice (programs.PROGRAMS)
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "MemoryError", "Out of memory")


class Study:
    """A study and its folder. Making one checks all arms and writes nothing."""

    def __init__(
        self, command: str, folder: str | Path, recipe: Any, arms: Sequence[StudyArm], seeds: int, options: Options
    ) -> None:
        """Raises InputError where an arm cannot be trained, or the folder holds another study."""
        self.folder, self.options = Path(folder), options
        execution.check_execution(options.execution, options.together)
        check_engine(options)
        check_hours(options.max_hours)
        chosen = seeds_of(recipe, arms, seeds)
        if (count := len(arms) * len(chosen)) > options.max_runs:
            what = f"{len(arms)} arms with {len(chosen)} seeds are {count} runs, and max_runs is {options.max_runs}"
            raise InputError(f"{what}; ask for fewer, or set max_runs to {count}")
        check_free(self.folder, "study.json", "the study")
        self.stored = read_study(self.folder)
        self.recipe = with_dtype(recipe, self.stored)
        self.data = load_data(recipe, options)
        resolved = [self._check(arm, chosen[-1]) for arm in arms]
        self.wanted = define(command, self.recipe, arms, chosen, self.data, options)
        self._extend()
        self.resolved = {arm.folder: own for arm, own in zip(self.definition.arms, resolved, strict=True)}
        self._writing = Lock()

    @classmethod
    def from_folder(cls, folder: Path, options: Options) -> "Study":
        """The study in a folder, for a worker, which checks the arms that it trains only.

        Raises InputError where the folder has none, or one that needs what was in the memory of another process.
        """
        if (stored := read_study(folder)) is None:
            raise InputError(f"'{folder}' holds no study (no study.json); ablate or sweep begins one")
        study = cls.__new__(cls)
        study.folder, study.stored, study._writing = folder, stored, Lock()
        study.options = replace(options, light=stored["light"])
        study.definition = study.wanted = Definition.from_json(stored)
        if study.definition.functions or study.definition.context:
            raise InputError(
                f"the study in '{folder}' has functions or a context of its script, which must continue it"
            )
        study.recipe = with_later_fields(from_json(study.definition.recipe))
        study.data = load_data(study.recipe, study.options)
        now = define(study.definition.command, study.recipe, study.definition.arms, (), study.data, study.options).data
        if now != study.definition.data:
            raise InputError(f"the data set is not the one that the study in '{folder}' was begun with; restore it")
        return study

    def _load(self, split: str) -> arrays.Split:
        return load_split(self.recipe.data, split, self.options.data_dir, self.options.progress)

    def _check(self, arm: StudyArm, seed: int) -> Any:
        """The arm's resolved recipe. Raises InputError, with the name of the arm, where it cannot be trained."""
        given = {"context": self.options.context, "evaluate": "validation", **self.options.functions}
        given["executor"] = Executor(execution.placements(self.options.execution)[0])
        try:
            check_replaced(arm.changes, self.options.functions)
            recipe, self.context = check(arm.recipe(self.recipe, seed), self.data, **given)
        except InputError as error:
            raise InputError(f"arm '{arm.name}': {error}") from error
        return recipe

    def _extend(self) -> None:
        """The definition: what is asked for, over what the folder holds."""
        self.definition = self.wanted
        if self.stored:
            stored = Definition.from_json(self.stored)
            self.definition = extended(stored, self.wanted, self.folder, self.recipe)

    def record(self) -> dict[str, Any]:
        """study.json as it is, or as it begins."""
        base = [arm.folder for arm in self.definition.arms if not arm.key(self.recipe)]
        begun = {"runs": {}, "final": [], "execution": {}, "light": self.options.light}
        known = {**begun, **(self.stored or {}), **self.definition.to_json()}
        return {**known, "format": FORMAT, "base": base[0] if base else None}

    def missing(self) -> list[tuple[StudyArm, int]]:
        """The runs that are not trained yet, in their order: of at most BLOCK arms the first seed, then the next."""
        known = {} if self.stored is None else self.stored["runs"]
        again = (FAILED,) if self.options.retry else ()
        done = {name for name, run in known.items() if run["status"] not in again}
        arms = self.definition.arms
        blocks = [arms[start : start + BLOCK] for start in range(0, len(arms), BLOCK)]
        every = [(arm, seed) for block in blocks for seed in self.definition.seeds for arm in block]
        return [(arm, seed) for arm, seed in every if run_name(arm, seed) not in done]

    def total(self) -> int:
        return len(self.definition.arms) * len(self.definition.seeds)

    def plan(self) -> plan.Plan:
        """The runs that are missing, and what they will cost; measured, in a minute or two. Writes nothing."""
        missing = self.missing()
        runs = [(arm.name, seed) for arm, seed in missing]
        recipes = [self.resolved[arm.folder] for arm, _ in missing]
        finished = self.total() - len(runs)
        return plan.estimate(runs, recipes, finished, *execution.sample(self.data, self.context), self.options.light)

    def train(self) -> int:
        """Trains what is missing. A run that fails is recorded, and the others go on. 0, or an exit code where workers
        left runs behind."""
        with locked(self.folder):
            missing = self._begin()
            if not missing:
                self._say(f"all {self.total()} runs are there; nothing to train")
                return 0
            costs = {run_name(arm, seed): plan.work(self.resolved[arm.folder]) for arm, seed in missing}
            with StudyProgress(self.total(), costs, self.options.progress) as self.progress:
                if self.options.engine:
                    given = {"data_dir": self.options.data_dir, "max_hours": self.options.max_hours}
                    return train_with(self.options.engine, self.folder, list(costs), self.progress, **given)
                assert self.stored is not None
                how = self.stored["execution"]["how"]
                self._train_all(self._groups(missing, how), how)
                return 0

    def _begin(self) -> list[tuple[StudyArm, int]]:
        """Writes what is asked for into study.json, and returns what is missing."""
        with self._records():
            self._extend()
            self.stored = self.record()
            if self.stored["light"] != self.options.light:
                raise InputError(f"'{self.folder}' holds a study with light={self.stored['light']}; ask for the same")
            if missing := self.missing():
                for arm, seed in missing:
                    self.stored["runs"].pop(run_name(arm, seed), None)
                self.stored["execution"] = self._execution(missing)
                write_study(self.folder, self.stored)
            return missing

    def interrupted(self) -> str:
        """What a signal leaves of a worker, in a sentence. Imports nothing."""
        return "the worker stops; its run continues where it is trained next"

    @contextlib.contextmanager
    def _records(self) -> Iterator[None]:
        """study.json as it is now, which no other process changes within it."""
        with waiting_lock(self.folder, ".records"):
            self.stored = read_study(self.folder)
            yield

    def work(self, only: str | None = None) -> None:
        """What a worker does: trains runs that nobody trains, one after another, until none is left. `only` is the name
        of one."""
        start, hours, taken = time.monotonic(), self.options.max_hours, set[str]()
        while not hours or time.monotonic() - start <= 3600 * hours:
            self.stored = read_study(self.folder)
            named = {run_name(arm, seed): (arm, seed) for arm, seed in self.missing()}
            free = [name for name in named if name not in taken and only in (None, name)]
            if not free:
                return
            with StudyProgress(self.total(), dict.fromkeys(named, 1.0), False) as self.progress:
                executor = Executor(execution.placements("sequential")[0])
                if self._train_one(*named[free[0]], "sequential", 1, executor):
                    taken.clear()  # a worker that died meanwhile has left its run
                else:
                    taken.add(free[0])

    def _say(self, text: str) -> None:
        if self.options.progress:
            print(text, file=sys.stderr, flush=True)

    def _execution(self, missing: Sequence[tuple[StudyArm, int]]) -> dict[str, Any]:
        """How runs are computed: as asked for, as it was measured on such a device, or as a measurement says now."""
        assert self.stored is not None
        known, device = self.stored["execution"], jax.devices()[0].device_kind
        streamed = stream.is_streamed(self.data, execution.placements("sequential")[0])
        if streamed and self.options.execution in ("unrolled", "mapped"):
            what = f"execution='{self.options.execution}' computes several runs at once"
            raise InputError(f"{what}, and the images do not fit the device even for one; use 'sequential'")
        seconds: dict[str, float] = {}
        if self.options.engine or self.options.execution != "auto":
            how = "sequential" if self.options.engine else self.options.execution
        elif known.get("seconds") and known.get("device") == device:
            return dict(known)
        else:
            together = 1 if streamed else max(len(group) for group in self._groups(missing, "mapped"))
            measured = execution.sample(self.data, self.context)
            how, seconds = execution.choose(self.resolved[missing[0][0].folder], *measured, together)
        if seconds:
            shown = ", ".join(f"{name} {1e3 * value:.2f} ms" for name, value in seconds.items())
            self._say(f"execution: {how} (a step and run: {shown})")
        return {"how": how, "seconds": seconds, "device": device}

    def _groups(self, missing: Sequence[tuple[StudyArm, int]], how: str) -> list[list[tuple[StudyArm, int]]]:
        """The runs that are computed at the same time."""
        size = execution.at_once(how, self.options.together)
        if how == "devices":
            return [list(missing[start : start + size]) for start in range(0, len(missing), size)]
        by_program: dict[Any, list[tuple[StudyArm, int]]] = {}
        for number, (arm, seed) in enumerate(missing):
            key = number if size == 1 else execution.group_key(self.resolved[arm.folder])
            by_program.setdefault(key, []).append((arm, seed))
        return [runs[start : start + size] for runs in by_program.values() for start in range(0, len(runs), size)]

    def _train_all(self, groups: Sequence[Sequence[tuple[StudyArm, int]]], how: str) -> None:
        assert self.stored is not None
        start, places = time.monotonic(), execution.placements(how)
        task = lambda arm, seed, count: functools.partial(self._train_one, arm, seed, how, count)
        for number, group in enumerate(groups):
            if number and self.options.max_hours and time.monotonic() - start > 3600 * self.options.max_hours:
                self.progress.say(f"stopped after {self.options.max_hours} hours; the same command continues")
                return
            execution.run_together([task(arm, seed, len(group)) for arm, seed in group], how, places)
            for arm, seed in group if len(group) > 1 and how != "devices" else ():
                reason = self.stored["runs"].get(run_name(arm, seed), {"reason": ""})["reason"]
                if any(word in reason for word in OUT_OF_MEMORY):  # alone it may fit
                    self.progress.again(run_name(arm, seed))
                    self._record(run_name(arm, seed), None)
                    execution.run_together([task(arm, seed, 1)], "sequential", places)

    def _train_one(self, arm: StudyArm, seed: int, how: str, count: int, executor: Executor) -> bool:
        """Trains a run, one of `count` at the same time, and records what became of it; False where another process
        trains it."""
        name = run_name(arm, seed)
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(locked(self.folder / name, ".claim"))
            except LockedError:
                self.progress.say(f"{short(name)} is left out: another process trains it")
                return False
            if name not in (read_study(self.folder) or {"runs": {}})["runs"]:
                self._record(name, self._outcome(arm, seed, how, count, executor))
        return True

    def _outcome(self, arm: StudyArm, seed: int, how: str, count: int, executor: Executor) -> dict[str, Any]:
        """Trains a run; returns its entry in study.json."""
        name, compiled = run_name(arm, seed), compile_clock().seconds
        entry: dict[str, Any] = {"arm": arm.name, "seed": seed, "status": FINISHED, "reason": "", "metrics": {}}
        begun = time.monotonic()
        try:
            finish_lightening(self.folder / name)
            follow = self.progress.follow(name)
            run = self._fit(arm, seed, "validation", callbacks=[follow], executor=executor, resume=True)
            entry |= {"reason": run.reason, "metrics": metrics_of(run)}
            seconds = sum(line["seconds"] for line in run.history)
            if self.options.light:
                lighten(self.folder / name, **self.options.functions)
        except Exception as error:  # whatever went wrong with this run, the others can still be trained
            entry |= {"status": FAILED, "reason": in_words(error)}
            seconds = time.monotonic() - begun
        compiling = compile_clock().seconds - compiled
        entry |= {"seconds": round(seconds / count, 2), "compile_seconds": round(compiling / count, 2)}
        return entry | {"execution": how if count > 1 else "sequential", "together": count}

    def _record(self, name: str, entry: dict[str, Any] | None) -> None:
        """Writes what became of a run; None takes it out again."""
        with self._writing, self._records():
            assert self.stored is not None
            self.stored["runs"].pop(name, None)
            if entry is not None:
                self.stored["runs"][name] = entry
            write_study(self.folder, self.stored)
            if entry is not None:
                self.progress.done(name, entry)

    def _fit(self, arm: StudyArm, seed: int, split: str, **more: Any) -> Run:
        options = {"data": self.data, "context": self.options.context, "evaluate": split, "progress": False}
        recipe = arm.recipe(self.recipe, seed)
        return fit(recipe, self.folder / run_name(arm, seed), **{**options, **self.options.functions, **more})

    def final(self, arm: str | None = None) -> None:
        """Evaluates the finished runs of an arm, or of all, on the test split, and counts it in study.json.

        Raises InputError where runs are missing: the test split is for what is not changed any more. A run that cannot
        be evaluated does not stop the others, and is named at the end.
        """
        arms = self.definition.arms if arm is None else find_arms(self.definition.arms, arm)
        if self.stored is None or self.missing():
            count = f"{len(self.missing())} of {self.total()} runs are missing"
            raise InputError(f"the study in '{self.folder}' is not finished, {count}; train them without --final first")
        with locked(self.folder):
            self.stored = read_study(self.folder) or {}
            runs, failures = self.stored["runs"], []
            every = [(arm, seed) for arm in arms for seed in self.definition.seeds]
            left = [(arm, seed) for arm, seed in every if self._awaits_test(runs[run_name(arm, seed)])]
            if not left:
                return
            self.data = self.data if "test" in self.data else {**self.data, "test": self._load("test")}
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            self.stored["final"].append({"time": now, "arms": [arm.name for arm in arms], "runs": 0})
            executor = Executor(execution.placements(self.stored["execution"].get("how", "sequential"))[0])
            for own, seed in left:
                try:
                    finish_lightening(self.folder / run_name(own, seed))
                    run = self._fit(own, seed, "test", executor=executor)
                except Exception as error:
                    failures.append(f"{run_name(own, seed)}: {in_words(error)}")
                    continue
                runs[run_name(own, seed)]["metrics"] |= metrics_of(run)
                self.stored["final"][-1]["runs"] += 1
                write_study(self.folder, self.stored)
        if failures:
            raise InputError(f"{len(failures)} of {len(left)} runs could not be evaluated, the first is {failures[0]}")

    def _awaits_test(self, run: Mapping[str, Any]) -> bool:
        return run["status"] == FINISHED and "test_accuracy" not in run["metrics"]

    def comparison(self, metric: str = "validation_accuracy", detect: float | None = None) -> Comparison:
        """`compare` of the finished runs."""
        return compare(self.folder, metric=metric, detect=detect)


def run_name(arm: StudyArm, seed: int) -> str:
    """The folder of a run below that of the study."""
    return f"{arm.folder}/seed{seed}"


def in_words(error: Exception) -> str:
    """The first line of an error, with its class where it is none of ours."""
    text = (str(error).splitlines() or [""])[0][:300]
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"


def metrics_of(run: Run) -> dict[str, float]:
    """The figures of the last epoch's training and of the evaluation."""
    last, seen = run.history[-1], run.evaluation
    figures = {name: last[name] for name in ("train_loss", "train_accuracy") if last.get(name) is not None}
    if seen is not None:
        figures |= {f"{seen.split}_{name}": value for name, value in vars(seen).items() if isinstance(value, float)}
    return figures
