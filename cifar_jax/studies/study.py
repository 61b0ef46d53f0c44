"""Studies: many runs of one recipe, on disk, and their comparison. `ablate` and `sweep` differ only in their arms.

    table = cj.ablate(recipe, [{"augment.flip": 0}, {"model.dropout": 0}], seeds=8, folder="studies/regularisation")
    table = cj.sweep(recipe, {"optimizer.learning_rate": [0.01, 0.03, 0.1]}, seeds=5, folder="studies/rates")

A study trains with evaluate="validation": the test split is not used before `final`, which study.json counts.
"""

import datetime
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from cifar_jax.data import arrays
from cifar_jax.errors import InputError
from cifar_jax.recipe import to_json
from cifar_jax.runs.fingerprint import fingerprint
from cifar_jax.runs.fit import check, fit
from cifar_jax.runs.functions import with_functions
from cifar_jax.runs.light import lighten
from cifar_jax.runs.loop import Executor
from cifar_jax.runs.workdir import Run, locked
from cifar_jax.studies import execution, plan
from cifar_jax.studies.compare import Comparison, compare
from cifar_jax.studies.definition import Definition, StudyArm, extended, find_arms, seeds_of
from cifar_jax.studies.progress import StudyProgress, compile_clock
from cifar_jax.studies.study_file import FAILED, FINISHED, FORMAT, read_study, write_study

MAX_RUNS = 200
TOGETHER = 8


@dataclass(frozen=True)
class Options:
    """How a study is trained. None of it decides results, but for the precision of executions other than sequential."""

    data_dir: str | Path | None = None
    data: Mapping[str, Any] | None = None  # as for `fit`
    context: Any = None  # as for `fit`
    functions: Mapping[str, Any] = field(default_factory=dict)  # model=..., loss=...: as for `fit`
    light: bool = False  # keeps no optimiser states
    execution: str = "auto"  # see `execution`
    together: int = TOGETHER  # runs at once, where the execution computes several
    max_hours: float | None = None  # no run begins after so many hours
    max_runs: int = MAX_RUNS  # a study of more is refused
    retry: bool = False  # trains runs again that failed
    progress: bool = True


class Study:
    """A study and its folder. Making one checks all arms and writes nothing."""

    def __init__(
        self, command: str, folder: str | Path, recipe: Any, arms: Sequence[StudyArm], seeds: int, options: Options
    ) -> None:
        """Raises InputError where an arm cannot be trained, or the folder holds another study."""
        self.folder, self.recipe, self.options = Path(folder), recipe, options
        execution.check_execution(options.execution, options.together)
        if options.max_hours is not None and not options.max_hours > 0:
            raise InputError(f"max_hours is {options.max_hours}; it must be above 0")
        chosen = seeds_of(recipe, seeds)
        if (count := len(arms) * len(chosen)) > options.max_runs:
            what = f"{len(arms)} arms with {len(chosen)} seeds are {count} runs, and max_runs is {options.max_runs}"
            raise InputError(f"{what}; give fewer, or set max_runs to {count}")
        self.data = arrays.splits(options.data) if options.data else {"train": self._load("train")}
        if not recipe.data.validation and "validation" not in self.data:
            raise InputError(
                "a study compares its runs on a validation split, and data.validation is 0; set a number of images,"
                " for example --config.data.validation=5000"
            )
        self.resolved = {arm.folder: self._check(arm, chosen[-1]) for arm in arms}
        prints = {name: fingerprint(value) for name, value in options.functions.items()}
        digests = {name: split.digest for name, split in self.data.items() if name != "test"}
        wanted = Definition(
            command, to_json(with_functions(recipe, options.functions)), tuple(arms), chosen, prints, digests
        )
        self.stored = read_study(self.folder)
        self.definition = wanted
        if self.stored:
            self.definition = extended(Definition.from_json(self.stored), wanted, self.folder, recipe)
            self.resolved = {
                known.folder: self.resolved[arm.folder] for known, arm in zip(self.definition.arms, arms, strict=True)
            }
        self._writing = Lock()

    def _load(self, split: str) -> arrays.Split:
        return arrays.load(self.recipe.data.name, split, self.options.data_dir, self.options.progress)

    def _check(self, arm: StudyArm, seed: int) -> Any:
        """The arm's resolved recipe. Raises InputError, with the name of the arm, where it cannot be trained."""
        given = {"context": self.options.context, "evaluate": "validation", **self.options.functions}
        given["executor"] = Executor(execution.placements(self.options.execution)[0])
        try:
            return check(arm.recipe(self.recipe, seed), self.data, **given)
        except InputError as error:
            raise InputError(f"arm '{arm.name}': {error}") from error

    def record(self) -> dict[str, Any]:
        """study.json as it is, or as it begins."""
        base = [arm.folder for arm in self.definition.arms if not arm.key(self.recipe)]
        begun = {"runs": {}, "final": [], "execution": {}, "light": self.options.light}
        known = {**begun, **(self.stored or {}), **self.definition.to_json()}
        return {**known, "format": FORMAT, "base": base[0] if base else None}

    def missing(self) -> list[tuple[StudyArm, int]]:
        """The runs that are not trained yet, in their order: all arms with the first seed, then with the next."""
        known = {} if self.stored is None else self.stored["runs"]
        again = (FAILED,) if self.options.retry else ()
        done = {name for name, run in known.items() if run["status"] not in again}
        every = [(arm, seed) for seed in self.definition.seeds for arm in self.definition.arms]
        return [(arm, seed) for arm, seed in every if run_name(arm, seed) not in done]

    def plan(self) -> plan.Plan:
        """The runs that are missing, and what they will cost; measured, in a minute or two. Writes nothing."""
        missing = self.missing()
        runs = [(arm.name, seed) for arm, seed in missing]
        recipes = [self.resolved[arm.folder] for arm, _ in missing]
        total = len(self.definition.arms) * len(self.definition.seeds)
        train_set = execution.placements("sequential")[0].put((self.data["train"].images, self.data["train"].labels))
        return plan.estimate(runs, recipes, total - len(runs), train_set, self.options.light)

    def train(self) -> None:
        """Trains what is missing. A run that fails is recorded, and the others go on."""
        with locked(self.folder):
            self.stored = read_study(self.folder)  # as the process before left it
            self.stored = self.record()
            if self.stored["light"] != self.options.light:
                raise InputError(f"'{self.folder}' holds a study with light={self.stored['light']}; ask for the same")
            missing = self.missing()
            if not missing:
                return
            for arm, seed in missing:
                self.stored["runs"].pop(run_name(arm, seed), None)
            how = self._execution(missing)
            write_study(self.folder, self.stored)
            total = len(self.definition.arms) * len(self.definition.seeds)
            costs = {run_name(arm, seed): plan.work(self.resolved[arm.folder]) for arm, seed in missing}
            with StudyProgress(total, costs, self.options.progress) as self.progress:
                self._train_all(self._groups(missing, how), how)

    def _execution(self, missing: Sequence[Any]) -> str:
        """How runs are computed: as asked for, as it was measured before, or as a measurement says now."""
        assert self.stored is not None
        seconds: dict[str, float] = {}
        if self.options.execution != "auto":
            how = self.options.execution
        elif self.stored["execution"].get("seconds"):
            return str(self.stored["execution"]["how"])
        else:
            training_set, place = self.data["train"], execution.placements("sequential")[0]
            recipe = self.resolved[missing[0][0].folder]
            put = place.put((training_set.images[: recipe.data.train_count], training_set.labels))
            how, seconds = execution.choose(recipe, put, min(self.options.together, len(self.definition.seeds)))
        self.stored["execution"] = {"how": how, "seconds": seconds}
        if seconds and self.options.progress:
            shown = ", ".join(f"{name} {1e3 * value:.2f} ms" for name, value in seconds.items())
            print(f"execution: {how} (a step and run: {shown})")
        return how

    def _groups(self, missing: Sequence[tuple[StudyArm, int]], how: str) -> list[list[tuple[StudyArm, int]]]:
        """The runs that are computed at the same time."""
        size = execution.at_once(how, self.options.together)
        if how == "devices":
            return [list(missing[start : start + size]) for start in range(0, len(missing), size)]
        by_program: dict[Any, list[tuple[StudyArm, int]]] = {}
        for number, (arm, seed) in enumerate(missing):
            key = number if size == 1 else execution.group_key(self.resolved[arm.folder])
            by_program.setdefault(key, []).append((arm, seed))
        parts = [[runs[start : start + size] for start in range(0, len(runs), size)] for runs in by_program.values()]
        return [group for group_list in parts for group in group_list]

    def _train_all(self, groups: Sequence[Sequence[tuple[StudyArm, int]]], how: str) -> None:
        start, places = time.monotonic(), execution.placements(how)
        for number, group in enumerate(groups):
            if number and self.options.max_hours and time.monotonic() - start > 3600 * self.options.max_hours:
                self.progress.say(f"stopped after {self.options.max_hours} hours; the same command continues")
                return

            def task(executor: Executor, arm: StudyArm, seed: int) -> None:
                self._train_one(arm, seed, executor)

            execution.run_together([_bound(task, arm, seed) for arm, seed in group], how, places)

    def _train_one(self, arm: StudyArm, seed: int, executor: Executor) -> None:
        """Trains a run and records what became of it."""
        name, compiled = run_name(arm, seed), compile_clock().seconds
        entry: dict[str, Any] = {"arm": arm.name, "seed": seed, "status": FINISHED, "reason": "", "metrics": {}}
        begun = time.monotonic()
        try:
            run = self._fit(arm, seed, "validation", callbacks=[self.progress.follow(name)], executor=executor)
            if self.options.light:
                lighten(self.folder / name)
            entry |= {"reason": run.reason, "metrics": metrics_of(run)}
            seconds = sum(line["seconds"] for line in run.history)
        except Exception as error:  # whatever went wrong with this run, the others can still be trained
            reason = (str(error).splitlines() or [""])[0][:300]
            entry |= {
                "status": FAILED,
                "reason": reason if isinstance(error, InputError) else f"{type(error).__name__}: {reason}",
            }
            seconds = time.monotonic() - begun
        entry |= {"seconds": round(seconds, 2), "compile_seconds": round(compile_clock().seconds - compiled, 2)}
        with self._writing:
            assert self.stored is not None
            self.stored["runs"][name] = entry
            write_study(self.folder, self.stored)
            self.progress.done(name, entry)

    def _fit(self, arm: StudyArm, seed: int, split: str, **more: Any) -> Run:
        options = {"data": self.data, "context": self.options.context, "evaluate": split, "progress": False}
        recipe = arm.recipe(self.recipe, seed)
        return fit(recipe, self.folder / run_name(arm, seed), **{**options, **self.options.functions, **more})

    def final(self, arm: str | None = None) -> None:
        """Evaluates the finished runs of an arm, or of all, on the test split, and counts it in study.json.

        Raises InputError where runs are missing: the test split is for what is not changed any more.
        """
        arms = self.definition.arms if arm is None else find_arms(self.definition.arms, arm)
        with locked(self.folder):
            self.stored = read_study(self.folder)
            if self.stored is None or self.missing():
                count = f"{len(self.missing())} of {len(self.definition.arms) * len(self.definition.seeds)} runs"
                raise InputError(f"the study in '{self.folder}' is not finished, {count} are missing; train them first")
            runs = self.stored["runs"]
            chosen = [(arm, seed) for arm in arms for seed in self.definition.seeds]
            chosen = [(arm, seed) for arm, seed in chosen if runs[run_name(arm, seed)]["status"] == FINISHED]
            if all("test_accuracy" in runs[run_name(arm, seed)]["metrics"] for arm, seed in chosen):
                return
            self.data = self.data if "test" in self.data else {**self.data, "test": self._load("test")}
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            self.stored["final"].append({"time": now, "arms": [arm.name for arm in arms], "runs": len(chosen)})
            write_study(self.folder, self.stored)  # before the first look
            for arm_, seed in chosen:
                run = self._fit(arm_, seed, "test")
                runs[run_name(arm_, seed)]["metrics"] |= metrics_of(run)
                write_study(self.folder, self.stored)

    def comparison(self, metric: str = "validation_accuracy", detect: float | None = None) -> Comparison:
        """`compare` of the finished runs."""
        return compare(self.folder, metric=metric, detect=detect)


def _bound(task: Any, arm: StudyArm, seed: int) -> execution.Task:
    return lambda executor: task(executor, arm, seed)


def run_name(arm: StudyArm, seed: int) -> str:
    """The folder of a run below that of the study."""
    return f"{arm.folder}/seed{seed}"


def metrics_of(run: Run) -> dict[str, float]:
    """The figures of the last epoch's training and of the evaluation."""
    last, seen = run.history[-1], run.evaluation
    figures = {name: last[name] for name in ("train_loss", "train_accuracy") if last.get(name) is not None}
    if seen is not None:
        figures |= {f"{seen.split}_{name}": value for name, value in vars(seen).items() if isinstance(value, float)}
    return figures
