"""Files that are whole or absent, and digests of files and values."""

import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cifar_jax.errors import InputError

HOLDERS = {  # a file of a folder -> what the folder then is
    "run.json": "the workdir of a run",
    "study.json": "the folder of a study",
    "tune.json": "the folder of a search by tune",
}


def check_free(folder: Path, own: str, wanted: str) -> None:
    """Raises InputError where the folder holds what another command began. `own` is our file among HOLDERS, and
    `wanted` what we need the folder for."""
    for name, holds in HOLDERS.items():
        if name != own and (folder / name).exists():
            raise InputError(f"'{folder}' is {holds}; name another folder for {wanted}")


def write_json(path: Path, value: Any) -> None:
    """Writes `value` so that a reader, or a kill, sees the old file or the new one and nothing between.

    Raises InputError, naming the file, where it cannot be written or `value` holds NaN or is not JSON.
    """
    try:
        text = json.dumps(value, indent=2, allow_nan=False)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} could not be written: {error}.") from error
    write_bytes(path, f"{text}\n".encode())


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """`write_json` of the value with its own digest, for `unsealed`."""
    write_json(path, {**value, "digest": digest_of_json(value)})


def unsealed(value: Any) -> dict[str, Any] | None:
    """What `write_sealed` was given, from what `read_json` reads; None where it is not as it was written."""
    if not isinstance(value, dict):
        return None
    content = {name: part for name, part in value.items() if name != "digest"}
    return content if value.get("digest") == digest_of_json(content) else None


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """An .npz file, compressed, as `write_json` writes."""
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **arrays)
    write_bytes(path, stream.getvalue())


def write_bytes(path: Path, content: bytes) -> None:
    """As `write_json` writes."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if temporary.exists():
            temporary.unlink()
        raise InputError(f"{path} could not be written: {error.strerror or error}") from error


def read_json(path: Path) -> Any:
    """What `write_json` wrote. Raises InputError, naming the file, where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise InputError(f"{path} is damaged, it is not JSON: {error}.") from error


def digest_of_file(path: Path, length: int | None = None) -> str:
    """sha256 of a file, or of its first `length` bytes. Raises OSError."""
    with path.open("rb") as file:
        if length is None:
            return hashlib.file_digest(file, "sha256").hexdigest()
        return hashlib.sha256(file.read(length)).hexdigest()


def digest_of_json(value: Any) -> str:
    """sha256 of a value's JSON with sorted keys: equal values have equal digests."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
