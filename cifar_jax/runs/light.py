"""A complete run without the state of its optimiser: half to a third of the disk space, and everything but training."""

import os
import shutil
from pathlib import Path

from cifar_jax.runs.checkpoint import Checkpoints
from cifar_jax.runs.workdir import light, load_run, locked, read_record, update_record


def lighten(workdir: Path) -> None:
    """Replaces the checkpoints of a complete run by one without the optimiser's state: that which `load_run` returns.

    The run can no longer train on, if a callback stopped it. After a kill the next call finishes what was begun.
    """
    with locked(workdir):
        record = read_record(workdir)
        if record is None or record.get("light"):
            return
        if not list((workdir / "light" / "manifests").glob("*.json")):  # written last: the copy is whole
            _copy(workdir, record["recipe"])
        for name in ("checkpoints", "manifests"):
            if (workdir / "light" / name).exists():
                shutil.rmtree(workdir / name, ignore_errors=True)
                os.replace(workdir / "light" / name, workdir / name)
        update_record(workdir, light=True)
        shutil.rmtree(workdir / "light")


def _copy(workdir: Path, recipe: str) -> None:
    run = load_run(workdir)
    with Checkpoints(workdir / "light" / "checkpoints", identity={"recipe": recipe}) as checkpoints:
        checkpoints.save(int(run.state.step), light(run.state), 0.0 if run.recipe.early_stopping.patience else None)
