"""What a worker does, which knows the folder of a study alone: `cifar_jax work FOLDER`."""

import os
from pathlib import Path
from typing import Any

from cifar_jax.studies.engines import STORAGE
from cifar_jax.studies.options import Options
from cifar_jax.studies.search import Search
from cifar_jax.studies.study import Study


def load_worker(folder: Path, light: bool = False, **options: Any) -> Study | Search:
    """The study or the search in a folder, ready to `work`; options are data_dir, max_hours and progress.

    Raises InputError where the folder holds neither, or what only the script that began it can continue.
    """
    if (folder / "tune.json").exists():
        return Search.from_folder(folder, os.environ.get(STORAGE), light=light, **options)
    return Study.from_folder(folder, Options(light=light, **options))
