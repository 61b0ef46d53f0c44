"""A complete run without the state of its optimiser: half to a third of the disk space, and everything but training."""

import os
import shutil
from pathlib import Path
from typing import Any

from cifar_jax.runs.checkpoint import Checkpoints
from cifar_jax.runs.workdir import load_run, locked, read_record, update_record, without_optimizer


def lighten(workdir: Path, **functions: Any) -> None:
    """Replaces the checkpoints of a complete run by one without the optimiser's state: that which `load_run` returns.

    The run can no longer train on, if a callback stopped it. `functions` are those that `fit` was given.
    """
    finish_lightening(workdir)
    with locked(workdir):
        record = read_record(workdir)
        if record is None or record.get("light"):
            return
        run = load_run(workdir, **functions)
        state, score = without_optimizer(run.state), 0.0 if run.recipe.early_stopping.patience else None
        with Checkpoints(workdir / "light" / "checkpoints", identity={"recipe": record["recipe"]}) as checkpoints:
            checkpoints.save(int(run.state.step), state, score)
    finish_lightening(workdir)


def finish_lightening(workdir: Path) -> None:
    """Moves the copy without the optimiser's state into its place, where there is a whole one; does nothing otherwise.

    After a kill in the middle the run cannot be loaded before this was called again.
    """
    copy = workdir / "light"
    if not list((copy / "manifests").glob("*.json")):  # a manifest is written last: there is no whole copy
        shutil.rmtree(copy, ignore_errors=True)
        return
    with locked(workdir):
        update_record(workdir, light=True)
        if (copy / "checkpoints").exists():
            shutil.rmtree(workdir / "checkpoints", ignore_errors=True)
            os.replace(copy / "checkpoints", workdir / "checkpoints")
        for manifest in (workdir / "manifests").glob("*.json"):
            manifest.unlink()
        for manifest in (copy / "manifests").glob("*.json"):
            os.replace(manifest, workdir / "manifests" / manifest.name)
        shutil.rmtree(copy)
