"""How the next trial is chosen, and which trials end early: samplers and pruners of Optuna by name.

median      (Golovin et al. 2017) ends a trial whose best value so far is below the median of the finished trials at the
            same epoch; once five are finished, and a quarter of the epochs is over
hyperband   (Li et al. 2018) gives few epochs to many trials, and more to the best third of them
wilcoxon    for trials with several seeds: a signed-rank test against the best trial, seed by seed
"""

import importlib
from typing import Any

import numpy as np

from cifar_jax.errors import InputError, nearest
from cifar_jax.runs.events import Event
from cifar_jax.studies.space import searched_fields
from cifar_jax.studies.storage import optuna_library, quiet_optuna

SAMPLERS = {  # name -> class of optuna.samplers, a library that it needs beside Optuna
    "tpe": ("TPESampler", None),
    "random": ("RandomSampler", None),
    "qmc": ("QMCSampler", None),
    "nsgaii": ("NSGAIISampler", None),
    "gp": ("GPSampler", "torch"),
    "cmaes": ("CmaEsSampler", "cmaes"),
}
BY_EPOCH = ("median", "hyperband")
PRUNERS = ("none", *BY_EPOCH, "wilcoxon")
STARTUP = 5  # finished trials before the median prunes
P_VALUE = 0.1  # below which Wilcoxon prunes
WILCOXON_SEEDS = 5  # four seeds are the fewest that can give such a p; with four it would save nothing


def check_search(sampler: str, pruner: str, seeds: int, space: dict[str, Any]) -> None:
    """Raises InputError on an unknown sampler or pruner, a library that it misses, or a pruner that does not fit."""
    for what, name, known in (("sampler", sampler, tuple(SAMPLERS)), ("pruner", pruner, PRUNERS)):
        if not isinstance(name, str):
            raise InputError(f"{what} is {name!r}; give it by its name. Known: {', '.join(sorted(known))}")
        if name not in known:
            raise InputError(f"{what} is '{name}'{nearest(name, known)}")
    if library := SAMPLERS[sampler][1]:
        try:
            importlib.import_module(library)
        except ImportError as error:
            what = f"sampler '{sampler}' needs {library}, which is not installed; install it with pip install {library}"
            raise InputError(f"{what}, or choose another sampler") from error
    if pruner == "none":
        return
    if "epochs" in searched_fields(space):
        raise InputError(
            f"pruner '{pruner}' compares trials epoch by epoch, and the search space changes 'epochs', so that equal"
            " epochs are not equally far; fix epochs, or set pruner='none'"
        )
    if pruner == "wilcoxon" and seeds < WILCOXON_SEEDS:
        what = f"pruner 'wilcoxon' compares trials seed by seed, and cannot end one before its fourth of {seeds} seeds"
        raise InputError(f"{what}; ask for {WILCOXON_SEEDS} seeds or more, or choose another pruner")
    if pruner != "wilcoxon" and seeds > 1:
        what = f"pruner '{pruner}' compares trials epoch by epoch, and a trial has {seeds} seeds"
        raise InputError(f"{what}; ask for 1 seed, or set pruner='wilcoxon'")


def make_sampler(name: str, seeds: tuple[int, ...]) -> Any:
    """A sampler of Optuna that draws what the seeds decide. TPE takes the trials that other workers train as bad ones,
    so that it tries others."""
    optuna = optuna_library()
    more = {"constant_liar": True} if name == "tpe" else {}
    seed = int(np.random.SeedSequence(seeds).generate_state(1)[0])
    with quiet_optuna():
        return getattr(optuna.samplers, SAMPLERS[name][0])(seed=seed, **more)


def make_pruner(name: str, epochs: int) -> Any:
    """A pruner of Optuna, for runs of so many epochs."""
    optuna = optuna_library()
    with quiet_optuna():
        if name == "median":
            return optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=epochs // 4)
        if name == "hyperband":
            from cifar_jax.studies.hyperband import HyperbandByTrial

            return HyperbandByTrial(min_resource=1, max_resource=epochs, reduction_factor=3)
        if name == "wilcoxon":
            return optuna.pruners.WilcoxonPruner(p_threshold=P_VALUE)
        return optuna.pruners.NopPruner()


class Reports:
    """Reports values of a trial to Optuna, each step once, whatever attempt measured it."""

    def __init__(self, trial: Any, known: dict[int, float], metric: str) -> None:
        """`known` are the intermediate values of earlier attempts."""
        self.trial, self.known, self.metric = trial, dict(known), metric

    def report(self, step: int, value: float) -> None:
        if step not in self.known:
            self.trial.report(value, step)
            self.known[step] = value

    def __call__(self, event: Event) -> bool:
        """A callback of `fit`: reports each epoch, counted from 1, and asks whether the trial ends here."""
        for line in event.lines:
            self.report(line["epoch"], line[self.metric])
        return bool(event.lines) and event.step < event.total_steps and self.should_prune()

    def should_prune(self) -> bool:
        with quiet_optuna():
            return bool(self.trial.should_prune())
