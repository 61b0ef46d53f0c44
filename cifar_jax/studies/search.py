"""A search in its folder: Optuna chooses the values and stores the trials, and a worker trains them, one after another.

Several workers with the same folder share a search. `trials` describes what becomes of a trial whose worker dies.
"""

import contextlib
import functools
import socket
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifar_jax.errors import InputError
from cifar_jax.recipe import freeze, override
from cifar_jax.recipe import from_json as recipe_from_json
from cifar_jax.runs.events import Event
from cifar_jax.runs.files import check_free
from cifar_jax.runs.fit import check, fit
from cifar_jax.runs.functions import check_replaced
from cifar_jax.runs.identity import with_later_fields
from cifar_jax.runs.light import finish_lightening, lighten
from cifar_jax.runs.loop import Executor
from cifar_jax.runs.recipes import load_recipe
from cifar_jax.runs.workdir import LockedError, Run, locked
from cifar_jax.studies import execution, plan, pruning, storage, trials, tune_file, tuned
from cifar_jax.studies.definition import Definition, effective, seeds_of
from cifar_jax.studies.engine_search import run_search
from cifar_jax.studies.engines import Engine, check_passed
from cifar_jax.studies.fields import typed
from cifar_jax.studies.options import define, load_data, search_options, with_dtype
from cifar_jax.studies.progress import SILENCE
from cifar_jax.studies.space import (
    check_space,
    describe,
    examples,
    from_json,
    load_space,
    parameters_of,
    searched_fields,
    suggest,
    to_json,
)
from cifar_jax.studies.study import in_words

FAILURES = 5  # a search whose first trials have all failed ends
METRICS = {"validation_accuracy": "maximize", "validation_loss": "minimize"}


class Search:
    """A search and its folder. Making one checks everything and writes nothing."""

    def __init__(
        self,
        recipe: Any,
        space: Any,
        folder: str | Path | None,
        metric: str,
        sampler: str,
        pruner: str,
        seeds: int,
        address: str | None,
        **options: Any,
    ) -> None:
        """Arguments as for `tune`."""
        storage.optuna_library()
        self.folder = tune_file.folder_of(recipe, folder)
        check_free(self.folder, tune_file.FILE, "the search")
        tune_file.check_new(self.folder)
        given = load_recipe(recipe) if isinstance(recipe, str | Path) else recipe
        self.space = load_space(space) if isinstance(space, str | Path) else space
        self.metric, self.sampler, self.pruner, self.options = metric, sampler, pruner, search_options(options)
        if metric not in METRICS:
            raise InputError(f"metric is '{metric}'; a search compares {' or '.join(map(repr, METRICS))}")
        check_space(given, self.space)
        check_replaced(searched_fields(self.space), self.options.functions)
        self.seeds = seeds_of(given, [], seeds)
        pruning.check_search(sampler, pruner, len(self.seeds), self.space)
        self.stored = tune_file.read_tune(self.folder)
        self.given = given
        self.recipe = with_dtype(given, self.stored["definition"] if self.stored else None)
        self.address = storage.address_of(address, self.folder)
        self.given_address = address
        self.data = load_data(given, self.options)
        self.definition = define("tune", self.recipe, (), self.seeds, self.data, self.options)
        self.facts = {"space": describe(self.space), "metric": metric, "sampler": sampler, "pruner": pruner}
        self._check_stored()
        if self.stored is None:
            self._check_recipes()
        self.study: Any = None
        self.number = -1  # of the last trial that this process took
        self.current: Path | None = None  # folder of the trial that this process trains
        self.trained = 0  # trials that this process took
        self.told = time.monotonic()

    def _check_stored(self) -> None:
        if self.stored:
            tune_file.check_same(self.folder, self.stored, self.definition, self.facts, self.recipe)
            tune_file.check_address(self.folder, self.stored, self.address, self.given_address)

    def _check_recipes(self) -> None:
        """Raises InputError where a value of the space makes a recipe that cannot be trained."""
        given = {"context": self.options.context, "evaluate": "validation", "executor": _executor()}
        checked = lambda changes: check(
            self._recipe(changes, self.seeds[0]), self.data, **given, **self.options.functions
        )
        for changes in examples(self.space):
            try:
                checked(changes)
            except InputError as error:
                checked({})  # a fault of the recipe is none of the space
                shown = ", ".join(f"{path}={value!r}" for path, value in changes.items())
                raise InputError(f"the search space has a recipe that cannot be trained ({shown}): {error}") from error

    def _recipe(self, changes: Mapping[str, Any], seed: int) -> Any:
        return freeze(override(self.recipe, {**typed(self.recipe, changes), "seed": seed}))

    @classmethod
    def from_folder(cls, folder: Path, address: str | None, **options: Any) -> "Search":
        """The search in a folder, for a worker; `address` is that of its database, None for trials.db.

        Raises InputError where the folder has none, or one that needs what was in the memory of another process.
        """
        stored = tune_file.read_tune(folder)
        if stored is None:
            raise InputError(f"'{folder}' holds no search (no tune.json); tune begins one")
        definition = Definition.from_json(stored["definition"])
        if definition.functions or definition.context:
            raise InputError(
                f"the search in '{folder}' has functions or a context of its script, which must continue it"
            )
        space = from_json(tune_file.read_space(folder))
        names = (stored["metric"], stored["sampler"], stored["pruner"], len(definition.seeds))
        return cls(with_later_fields(recipe_from_json(definition.recipe)), space, folder, *names, address, **options)

    def work_with(self, engine: Engine, count: int) -> int:
        """As `work`, by workers of the engine: 0, or an exit code where some did not end well."""
        self.check_count(count)
        passed = {"data": self.options.data, "context": self.options.context, **self.options.functions}
        check_passed(engine, passed, self.options.max_hours)
        self.open()
        self._retry_failed()
        options = {name: getattr(self.options, name) for name in ("light", "max_hours", "data_dir", "patience")}
        code = run_search(engine, self.folder, count, self.given_address, self._say, self._over, **options)
        with storage.queue_lock(self.folder):
            result = self._result()
            result.write(result.best.number if result.best else None)
        return code

    def plan(self, count: int) -> str:
        """What is searched, and what the trials that are missing will cost; measured, in a minute or two."""
        known = len(self.result().trials) if self.stored else 0
        given = {"context": self.options.context, "evaluate": "validation", "executor": _executor()}
        recipe, context = check(self._recipe({}, self.seeds[0]), self.data, **given, **self.options.functions)
        runs = max(0, count - known) * len(self.seeds)
        one = plan.estimate([("", 0)], [recipe], 0, *execution.sample(self.data, context), self.options.light)
        lines = [f"{path}: {values}" for path, values in describe(self.space).items()]
        lines.append(f"{max(0, count - known)} trials ({known} more are there already), {runs} runs")
        seconds = plan.duration(runs * one.seconds)
        lines.append(f"about {seconds} in one process, were each the given recipe and none pruned")
        return "\n".join([*lines, f"about {runs * one.bytes / 2**20:,.1f} MiB on the disk"])

    def _over(self) -> int:
        """The number of trials that are over."""
        return sum(record.is_over for record in self.result().trials)

    def check_count(self, count: Any) -> None:
        """Raises InputError on a number of trials that is none."""
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise InputError(f"trials is {count!r}; a search needs a whole number of them, at least 1")

    def open(self) -> None:
        """Connects with the storage, and begins the study where it is new."""
        if self.stored is None and self.given_address:  # before anything is written in the folder
            with storage.quiet_optuna():
                reached = storage.connect(self.address)
                tune_file.check_owner(reached, self.address, tune_file.study_name(self.folder), None)
        with storage.queue_lock(self.folder), storage.quiet_optuna():
            self.stored = tune_file.read_tune(self.folder)  # as another worker may have begun it since
            self._check_stored()
            where = storage.shown(self.address) if self.given_address else None
            facts = {"storage": where, "definition": self.definition.to_json(), **self.facts}
            more = {"direction": METRICS[self.metric], "pruner": pruning.make_pruner(self.pruner, self.recipe.epochs)}
            first = None if self.stored and self.stored["begun"] else self._given_trial()
            self.study = tune_file.open_study(self.folder, self.stored, facts, self.address, first, **more)
            tune_file.write_space(self.folder, to_json(self.space))

    def _given_trial(self) -> dict[str, Any] | None:
        """The parameters of the recipe that was given, which are the first trial; None where the space lacks them."""
        try:
            found = parameters_of(self.space, self.recipe)
            changes = typed(self.recipe, suggest(self.space, storage.optuna_library().trial.FixedTrial(found)))
            if effective(self.recipe, changes):
                raise InputError(", ".join(f"{path}={value!r}" for path, value in changes.items()))
        except InputError as error:
            self._say(f"the given recipe is none of the trials, because the search space does not hold it: {error}")
            return None
        return found

    def work(self, count: int) -> None:
        """Trains trials until the study has `count` of them, or the hours are over. Trials that this process cannot
        finish, because of a signal or a lock that is taken, are left for another worker."""
        self.check_count(count)
        if self.study is None:
            self.open()
            self._retry_failed()
        start, limit = time.monotonic(), self.options.max_hours
        with storage.quiet_optuna(), self._database():
            while not (limit and time.monotonic() - start > 3600 * limit):
                with contextlib.ExitStack() as queue:
                    queue.enter_context(storage.queue_lock(self.folder))
                    trials.requeue_lost(self.study, self.folder)
                    every = trials.attempts(self.study)
                    waiting = trials.waiting(every)
                    if not waiting and (len(every) >= count or self._is_pointless()):
                        break
                    # By the place of the trial, so that no two draw the same, and an attempt draws again what an
                    # earlier one of that trial drew.
                    place = sorted(every).index(waiting[0]) if waiting else len(every)
                    self.study.sampler = pruning.make_sampler(self.sampler, (self.recipe.seed, place))
                    self._attempt(queue, count)
                self.trained += 1
            else:
                self._say(f"stopped after {limit} hours; the same command continues")
        if self.trained:
            with storage.queue_lock(self.folder):
                self._result().write()

    def _is_pointless(self) -> bool:
        """Whether no further trial begins, and says why. Call it inside `queue_lock`."""
        result, patience = self._result(), self.options.patience
        if result.all_failed and len(result.trials) >= FAILURES:
            what = f"stopped: all {len(result.trials)} trials have failed"
            self._say(f"{what}; --retry trains them again, and another space needs another folder")
            return True
        if patience and (since := result.since_best()) >= patience:
            self._say(f"stopped: {since} trials have ended since the best one; a larger patience continues")
            return True
        return False

    def _retry_failed(self) -> None:
        """Queues failed trials again, where that is asked for."""
        if self.options.retry:
            with storage.queue_lock(self.folder), storage.quiet_optuna():
                trials.queue_failed(self.study, self.folder)

    @contextlib.contextmanager
    def _database(self) -> Any:
        """Raises InputError where the database is lost; a trial that runs then is continued by the next worker."""
        try:
            yield
        except storage.database_errors() as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            where = f"storage '{storage.shown(self.address)}' cannot be reached any more ({reason})"
            raise InputError(f"{where}; nothing is lost, and the same command continues") from error

    def _attempt(self, queue: contextlib.ExitStack, count: int) -> None:
        """Takes a trial from the queue, or a new one, trains it and tells the result; it may leave it untold."""
        try:
            self.study.optimize(functools.partial(self._objective, queue), n_trials=1, catch=(Exception,))
        except trials.UntoldError as untold:
            if isinstance(untold.__cause__, LockedError):
                self._say(f"a trial is left for later: {untold.__cause__}")
            elif untold.__cause__ is not None:
                raise untold.__cause__ from None
        else:
            self._tell(count)

    def _objective(self, queue: contextlib.ExitStack, trial: Any) -> float:
        """Called by Optuna: an attempt of a trial, from its lock to its value. Releases the queue once it has both."""
        optuna = storage.optuna_library()
        self.number = trials.number_of(trial)
        place = trials.trial_folder(self.folder, self.number)
        away = (LockedError, KeyboardInterrupt, optuna.exceptions.UpdateFinishedTrialError, *storage.database_errors())
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(locked(place))
                self.current = place
                trial.set_user_attr("host", socket.gethostname())
                changes = suggest(self.space, trial)
                queue.close()
                value = self._value(trial, place, changes)
                if _known(trial).state.name != "RUNNING":  # this process slept, and another took it for dead
                    raise trials.UntoldError
                return value
            except away as error:
                if isinstance(error, KeyboardInterrupt):
                    self.mark_interrupted()
                gone = isinstance(error, optuna.exceptions.UpdateFinishedTrialError)
                raise trials.UntoldError from (None if gone else error)
            except optuna.TrialPruned:
                raise
            except Exception as error:
                trial.set_user_attr("reason", in_words(error))
                raise
            finally:
                self.current = None
                queue.close()

    def _value(self, trial: Any, place: Path, changes: Mapping[str, Any]) -> float:
        """The metric, or its mean over the seeds. Raises TrialPruned where the pruner ends the trial."""
        optuna = storage.optuna_library()
        reports = pruning.Reports(trial, _known(trial).intermediate_values, self.metric)
        by_epoch = len(self.seeds) == 1
        values = []
        for index, seed in enumerate(self.seeds):
            callbacks = [self._follow(place), *([reports] if by_epoch else [])]
            run = self._fit(self._recipe(changes, seed), place / f"seed{seed}", callbacks)
            if run.reason == "stopped":
                raise optuna.TrialPruned
            assert run.evaluation is not None
            values.append(float(getattr(run.evaluation, self.metric.removeprefix("validation_"))))
            if not by_epoch:
                reports.report(index, values[-1])
            if self.pruner == "wilcoxon" and seed != self.seeds[-1] and reports.should_prune():
                raise optuna.TrialPruned
        return statistics.fmean(values)

    def _fit(self, recipe: Any, workdir: Path, callbacks: list[Any]) -> Run:
        finish_lightening(workdir)
        options = {"data": self.data, "context": self.options.context, "evaluate": "validation", "progress": False}
        options |= {"executor": _executor(), "callbacks": callbacks, "stoppable": self.pruner in pruning.BY_EPOCH}
        run = fit(recipe, workdir, **options, **self.options.functions)
        if self.options.light:
            lighten(workdir, **self.options.functions)
        return run

    def _follow(self, place: Path) -> Any:
        """A callback that says how far a long trial is."""

        def follow(event: Event) -> None:
            if time.monotonic() - self.told >= SILENCE:
                epoch = event.step * event.recipe.epochs / event.total_steps
                self._say(f"  trial {place.name}: epoch {epoch:.4g}/{event.recipe.epochs}")

        return follow

    def _tell(self, count: int) -> None:
        """Says what became of the trial, and writes the files that follow from all trials."""
        with storage.queue_lock(self.folder):
            result = self._result()
            result.write(self.number)
        over = [record for record in result.trials if record.is_over]
        best = f", the best {result.shown(result.best.value)} by trial {result.best.number}" if result.best else ""
        own = next(record for record in result.trials if record.number == self.number)
        outcome = own.reason or f"{self.metric.replace('_', ' ')} {result.shown(own.value)}"
        counted = f"{len(over)} of {max(count, len(result.trials))} trials are over{best}"
        self._say(f"trial {own.number} {own.status}: {outcome} ({plan.duration(own.seconds)}; {counted})")

    def _say(self, text: str) -> None:
        self.told = time.monotonic()
        if self.options.progress:
            print(text, file=sys.stderr, flush=True)

    def mark_interrupted(self) -> None:
        """Notes that a signal ends the trial of this process, so that the attempt does not count as a retry."""
        if self.current is not None:
            with contextlib.suppress(OSError):
                (self.current / trials.MARK).touch()

    def interrupted(self) -> str:
        """Notes that a signal ends this process; what it leaves of the search, in a sentence. Imports nothing."""
        self.mark_interrupted()
        if self.current is None:
            return "stopped between two trials; the same command continues"
        return f"stopped in trial {self.current.name}; the same command continues it"

    def result(self) -> tuned.Tuned:
        """What is known of the trials."""
        if self.study is None:
            self.open()
        with storage.queue_lock(self.folder):  # looking at a lock takes it for a moment, which no worker must meet
            return self._result()

    def _result(self) -> tuned.Tuned:
        """Call it inside `queue_lock`."""
        with storage.quiet_optuna():
            records = tuple(trials.read_trials(self.study, self.folder))
        given = (tuple(self.options.functions), self.options.data is not None)
        return tuned.Tuned(
            self.folder, self.given, dict(self.space), self.metric, len(self.seeds), records, self.study, *given
        )


def _executor() -> Executor:
    return Executor(execution.placements("sequential")[0])


def _known(trial: Any) -> Any:
    """A trial of Optuna as the storage has it."""
    return trial.study.get_trials(deepcopy=False)[trial.number]
