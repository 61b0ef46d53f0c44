"""tune: trials of a recipe with values from a search space, by Optuna, so that nothing that was trained is lost.

result = cj.tune("configs/cnn.py", "configs/spaces/cnn.py", trials=50)
"""

from pathlib import Path
from typing import Any

from cifar_jax.studies import tuned
from cifar_jax.studies.engines import take_engine
from cifar_jax.studies.search import Search


def tune(
    recipe: Any,
    space: Any,
    *,
    trials: int = 50,
    folder: str | Path | None = None,
    metric: str = "validation_accuracy",
    sampler: str = "tpe",
    pruner: str = "none",
    seeds: int = 1,
    storage: str | None = None,
    **options: Any,
) -> tuned.Tuned:
    """Searches the space for the recipe with the best validation accuracy, or the lowest validation loss.

    recipe: a recipe, or the file of one. space: a dict of fields (see `studies.space`), or the file of one. trials: of
    the study, all workers and earlier calls together. folder: of the study; only a recipe file has a default,
    studies/<recipe>-tune. seeds: runs of a trial, whose mean counts. sampler and pruner: see `studies.pruning`.
    storage: the address of a database; trials.db in the folder if not given. options are data_dir, data, context,
    light, max_hours, patience, retry and progress of `studies.options.SearchOptions`, and model=..., loss=... as for
    `fit`; and engine="local", processes=2 or engine="slurm", processes=8, partition="gpu", time_limit=60: see
    `studies.engines`. The first trial is the recipe as it is, where the space holds it.

    The same call continues a study that was interrupted; more trials extend it. A call beside it, in another process,
    is a second worker. Raises InputError on a mistake in any of these.
    """
    engine, more = take_engine(options)
    search = Search(recipe, space, folder, metric, sampler, pruner, seeds, storage, **more)
    if engine:
        search.work_with(engine, trials)
    else:
        search.work(trials)
    return search.result()
