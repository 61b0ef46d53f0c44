"""Where Optuna keeps the trials of a study: a SQLite file in the study's folder, or any database of SQLAlchemy.

Optuna's journal file is not offered: it has no heartbeat, so that nobody could see that a worker on another machine has
died, and it is not safe on NFS (optuna issues 5138, 5971).
"""

import contextlib
import importlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cifar_jax.errors import InputError
from cifar_jax.studies.study_file import waiting_lock

FILE = "trials.db"
HEARTBEAT, GRACE = 60, 180  # seconds between two signs of life; without one after which a trial is stale
TIMEOUT = 60.0  # seconds that a writer of a SQLite file waits for the others


def optuna_library() -> Any:
    """The module optuna. Raises InputError where it is missing."""
    try:
        return importlib.import_module("optuna")
    except ImportError as error:
        remedy = "install it with pip install -c constraints.txt -e '.[tune]'"
        raise InputError(f"tune needs optuna, which is not installed; {remedy}") from error


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Without Optuna's log lines and its warnings of experimental functions: we tell what becomes of a trial."""
    optuna = optuna_library()
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="optuna")
            warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


def database_errors() -> tuple[type[Exception], ...]:
    """What a database raises that is away, or too busy."""
    optuna, sqlalchemy = optuna_library(), importlib.import_module("sqlalchemy")
    return (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError)


def address_of(storage: str | None, folder: Path) -> Any:
    """The address as an object of SQLAlchemy, of `storage` or of the file in the folder.

    Raises InputError where it is none, or one of a database in the memory of a process.
    """
    optuna_library()
    from sqlalchemy import URL, make_url
    from sqlalchemy.exc import ArgumentError

    if storage is None:
        return URL.create("sqlite", database=str((folder / FILE).absolute()))
    form = "postgresql://USER@HOST/DATABASE, sqlite:///FILE or another address of SQLAlchemy"
    try:
        address = make_url(storage)
    except ArgumentError as error:
        reason = "a journal file is not offered, because it has no heartbeat"
        raise InputError(f"storage '{storage}' is no address of a database; give {form} ({reason})") from error
    if address.get_backend_name() == "sqlite" and address.database in (None, "", ":memory:"):
        raise InputError(f"storage '{storage}' is in the memory of this process and ends with it; give {form}")
    # SQLAlchemy before 2.1 takes the older driver by default, which the extra does not install.
    return address.set(drivername="postgresql+psycopg") if address.drivername == "postgresql" else address


def shown(address: Any) -> str:
    """The address without its password."""
    return address.render_as_string(hide_password=True)


def connect(address: Any) -> Any:
    """Optuna's storage at the address, with a heartbeat.

    Raises InputError where the database cannot be reached, or its driver is missing.
    """
    optuna = optuna_library()
    engine: dict[str, Any] = {"pool_pre_ping": True}
    if address.get_backend_name() == "sqlite":
        engine = {"connect_args": {"timeout": TIMEOUT}}
    # Optuna fills in braces as a template.
    text = address.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
    import sqlalchemy

    try:
        return optuna.storages.RDBStorage(text, engine_kwargs=engine, heartbeat_interval=HEARTBEAT, grace_period=GRACE)
    except (ImportError, sqlalchemy.exc.NoSuchModuleError) as error:
        known = {"postgresql": "pip install -c constraints.txt -e '.[tune]'"}
        remedy = known.get(address.get_backend_name(), "install the driver of that database for SQLAlchemy")
        raise InputError(f"storage '{shown(address)}' needs a driver that is not installed; {remedy}") from error
    except database_errors() as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        remedy = "start the database, or correct the address"
        if address.get_backend_name() == "sqlite":
            remedy = "restore that file, or correct the address"
        raise InputError(f"storage '{shown(address)}' cannot be reached ({reason}); {remedy}") from error
    except RuntimeError as error:  # tables of another version of Optuna
        raise InputError(f"storage '{shown(address)}' cannot be used: {str(error).splitlines()[0]}") from error


@contextlib.contextmanager
def queue_lock(folder: Path) -> Iterator[None]:
    """One process at a time takes a trial or puts one back; the others wait.

    This makes a number of trials exact for all workers together, and no trial is handed out twice, as SQLite has done
    (optuna issue 4002).
    """
    with waiting_lock(folder, ".queue"):
        yield
