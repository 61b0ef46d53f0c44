"""The folder of a hyper-parameter search.

tune.json     format, "id", whether it is "begun" in the storage, "storage": its address without a password or null for
              trials.db, "definition" (see `definition`) and the search: "space", "metric", "sampler", "pruner"; and
              "digest" of all this
space.json    the same space, for those who have no file of it: the workers of an engine, and `load_search`
trials.db     the trials, where no other storage was asked for (see `storage`)
trials.csv    the same trials, for other programs
best.py       the recipe of the best trial
plots/        importance of the parameters, history and slices, where plotly is installed
trials/<n>/seed<s>/    the workdir of each run
"""

import uuid
from pathlib import Path
from typing import Any

from cifar_jax.errors import InputError
from cifar_jax.runs.files import read_json, unsealed, write_sealed
from cifar_jax.studies.definition import Definition, extended
from cifar_jax.studies.storage import connect, shown
from cifar_jax.studies.trials import GIVEN

FORMAT = 1
FILE = "tune.json"
SPACE = "space.json"
SEARCH = ("space", "metric", "sampler", "pruner")
IDENTITY = "cifar_jax"  # the attribute of Optuna's study that holds the id of the folder


def folder_of(recipe: Any, folder: Any) -> Path:
    """The folder of a search; only a recipe file has a default. Raises InputError where none follows."""
    if folder is None and not isinstance(recipe, str | Path):
        raise InputError("tune needs the folder of the study; give folder='studies/NAME'")
    if not isinstance(folder, str | Path | None) or folder == "":
        raise InputError(f"folder is {folder!r}; it is a path, such as 'studies/NAME'")
    return Path(folder or f"studies/{Path(recipe).stem}-tune")


def check_new(folder: Path) -> None:
    """Raises InputError where a search that begins in the folder would overwrite what is there."""
    if not (folder / FILE).exists():
        for name in (SPACE, "trials.db", "trials.csv", "best.py", "plots", "trials"):
            if (folder / name).exists():
                what = f"'{folder}' has '{name}', and no {FILE} that says which search it belongs to"
                raise InputError(f"{what}; name another folder, or restore {FILE}")


def read_tune(folder: Path) -> dict[str, Any] | None:
    """tune.json; None where there is none. Raises InputError where it is damaged or of another format."""
    path = folder / FILE
    if not path.exists():
        return None
    stored = read_json(path)
    if isinstance(stored, dict) and stored.get("format", FORMAT) != FORMAT:
        raise InputError(f"'{folder}' holds a search of format {stored['format']}, and this version reads {FORMAT}")
    if (tune := unsealed(stored)) is None:
        raise InputError(f"{path} is damaged, or was changed; restore it, or name another folder")
    return tune


def write_space(folder: Path, values: dict[str, Any]) -> None:
    """The search space, for those who have no file of it."""
    write_sealed(folder / SPACE, {"space": values})


def read_space(folder: Path) -> dict[str, Any]:
    """What `write_space` was given. Raises InputError where it is missing or damaged."""
    path = folder / SPACE
    if not path.exists():
        raise InputError(f"'{folder}' has no {SPACE}; the tune command that began the search writes it")
    if (stored := unsealed(read_json(path))) is None:
        raise InputError(f"{path} is damaged, or was changed; the tune command that began the search writes it again")
    return dict(stored["space"])


def check_same(folder: Path, stored: dict[str, Any], wanted: Definition, search: dict[str, Any], recipe: Any) -> None:
    """Raises InputError, naming what differs, where the folder holds another search."""
    refuse = lambda what: InputError(f"'{folder}' holds another study ({what}); name another folder")
    known = Definition.from_json(stored["definition"])
    if len(known.seeds) != len(wanted.seeds):
        raise refuse(f"seeds of a trial: {len(known.seeds)} -> {len(wanted.seeds)}")
    extended(known, wanted, folder, recipe)
    for name in SEARCH:
        if stored[name] != search[name]:
            raise refuse(f"{name}: {stored[name]} -> {search[name]}")


def check_address(folder: Path, stored: dict[str, Any], address: Any, given: str | None) -> None:
    """Raises InputError where the search in the folder is kept elsewhere."""
    if stored["storage"] != (shown(address) if given else None):
        where = f"--storage='{stored['storage']}'" if stored["storage"] else "its own folder, without --storage"
        raise InputError(f"the trials of the study in '{folder}' are kept in {where}; ask for the same")


def check_owner(storage: Any, address: Any, name: str, own: str | None) -> bool:
    """Whether the storage has the study of the folder whose id is `own`.

    Raises InputError where a study of that name belongs to another folder.
    """
    import optuna

    if name not in {study.study_name for study in storage.get_all_studies()}:
        return False
    study = optuna.load_study(study_name=name, storage=storage)
    owner = study.user_attrs.get(IDENTITY)
    # A kill between the two writes of `open_study` leaves a study that nobody owns, and that has no trials.
    if owner != own and (owner or study.trials):
        raise InputError(
            f"storage '{shown(address)}' holds a study '{name}' that belongs to another folder; choose another storage,"
            " or another name of the folder"
        )
    return True


def open_study(
    folder: Path,
    stored: dict[str, Any] | None,
    facts: dict[str, Any],
    address: Any,
    first: dict[str, Any] | None,
    **more: Any,
) -> Any:
    """Optuna's study of the folder, begun if it is new; call it inside `queue_lock`. `first` are the parameters of the
    first trial, None where they are drawn; `more` are the pruner and direction.

    Raises InputError where the storage cannot be reached, or has another study of that name, or has lost this one.
    """
    import optuna

    stored = stored or {"format": FORMAT, "id": uuid.uuid4().hex, "begun": False, **facts}
    if not stored["begun"]:
        write_sealed(folder / FILE, stored)  # before trials.db, which says nothing without it
    storage, name = _connect(folder, stored, address)
    there = check_owner(storage, address, name, stored["id"])
    if stored["begun"] and not there:
        raise _lost(folder, address)
    study = optuna.create_study(storage=storage, study_name=name, load_if_exists=True, **more)
    if not stored["begun"]:
        study.set_user_attr(IDENTITY, stored["id"])
        if first is not None and not study.trials:
            study.enqueue_trial(first, user_attrs={GIVEN: True})
        write_sealed(folder / FILE, {**stored, "begun": True})
    return study


def find_study(folder: Path, stored: dict[str, Any], address: Any) -> Any:
    """Optuna's study of the folder. Raises InputError where the storage cannot be reached, or does not have it."""
    import optuna

    storage, name = _connect(folder, stored, address)
    if not check_owner(storage, address, name, stored["id"]):
        raise _lost(folder, address)
    return optuna.load_study(study_name=name, storage=storage)


def _connect(folder: Path, stored: dict[str, Any], address: Any) -> tuple[Any, str]:
    """The storage, and the name that the folder's study has in it: in its own file the one that it began with, whatever
    became of the folder's name. Raises InputError where a file that the study began in is gone."""
    own = stored["storage"] is None
    is_file = address.get_backend_name() == "sqlite" and not address.query
    if stored["begun"] and is_file and not Path(address.database).exists():  # connecting would make an empty one
        remedy = "restore that file" if own else "correct the address, or restore that file"
        raise InputError(f"the trials of '{folder}' are not there ({address.database}); {remedy}")
    storage = connect(address)
    known = storage.get_all_studies() if own else []
    named = [study.study_name for study in known if study.user_attrs.get(IDENTITY) == stored["id"]]
    return storage, named[0] if named else study_name(folder)


def _lost(folder: Path, address: Any) -> InputError:
    where = f"storage '{shown(address)}' holds no study '{study_name(folder)}', which '{folder}' began in it"
    return InputError(f"{where}; correct the address, or restore the database")


def study_name(folder: Path) -> str:
    """The name of the folder's study in a storage."""
    return folder.resolve().name
