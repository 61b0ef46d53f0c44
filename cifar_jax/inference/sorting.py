"""Image files sorted into a folder for each class, as copies or links. Nothing is moved, and nothing overwritten."""

import errno
import filecmp
import glob
import itertools
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from cifar_jax.data.image_files import shown
from cifar_jax.errors import InputError
from cifar_jax.inference.outputs import Row

WAYS = ("copy", "symlink", "hardlink")


def check_folder(folder: Path, arguments: Iterable[str], files: Iterable[str], force: bool) -> None:
    """Raises InputError where the folder holds something already, or stands in a source, or a source in it."""
    target = os.path.realpath(folder)
    for argument in arguments:
        source = _searched(argument)
        if source and _within(target, os.path.realpath(source)):
            raise InputError(
                f"--copy_to='{folder}' lies inside the source '{shown(argument)}', where the next call would find the"
                " copies; name a folder outside of it"
            )
    for file in files:
        if _within(os.path.realpath(os.path.dirname(file) or "."), target):
            raise InputError(f"the source '{shown(file)}' lies inside --copy_to='{folder}'; name another folder")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--copy_to='{folder}' is a file; name a folder")
    if folder.exists() and any(folder.iterdir()) and not force:
        raise InputError(f"--copy_to='{folder}' is not empty; name another folder, or add to it with --force")


def _searched(argument: str) -> str | None:
    """The folder that an argument searches to any depth; None where it names files."""
    if os.path.isdir(argument):
        return argument
    if glob.has_magic(argument) and not os.path.exists(argument):
        parts = Path(argument).parts
        fixed = itertools.takewhile(lambda part: not glob.has_magic(part), parts)
        # Only ** and folders that match are searched to any depth.
        if "**" in parts or any(os.path.isdir(match) for match in glob.iglob(argument)):
            return os.path.join(*fixed, "") or "."
    return None


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(os.path.join(folder, ""))


def check_names(names: Iterable[str]) -> None:
    """Raises InputError where a class cannot name a folder."""
    for name in names:
        if not name or name in (".", "..") or set(name) & {"/", "\\", "\0"}:
            raise InputError(f"class {name!r} cannot be the name of a folder, so --copy_to cannot sort by it")


def by_class(row: Row) -> list[str]:
    """The folders of a row: that of its class, or "unsure"."""
    return [row.name] if row.name else []


def by_outcome(row: Row) -> list[str]:
    """correct/CLASS; or wrong/ the class that was named and missed/ the true one. Without a true class, none."""
    if not row.outcome:
        return []
    if row.outcome == "correct":
        return [os.path.join("correct", row.label)]
    wrong = [os.path.join("wrong", row.name)] if row.outcome == "wrong" else []
    return [*wrong, os.path.join("missed", row.label)]


class Sorter:
    """Places files below a folder."""

    def __init__(self, folder: Path, way: str, by: Callable[[Row], Sequence[str]]) -> None:
        places: dict[str, Callable[[str, str], None]] = {"copy": _copy, "symlink": _symlink, "hardlink": os.link}
        self.folder, self.place, self.by = folder, places[way], by
        self.made: set[str] = set()

    def sort(self, row: Row) -> None:
        """Raises InputError where a file cannot be written."""
        for name in self.by(row):
            folder = os.path.join(self.folder, name)
            try:
                if folder not in self.made:
                    os.makedirs(folder, exist_ok=True)
                    self.made.add(folder)
                self._put(row.path, folder)
            except OSError as error:
                remedy = (
                    "; hard links need one file system, use --copy_as=symlink" if error.errno == errno.EXDEV else ""
                )
                reason = error.strerror or error
                raise InputError(f"'{shown(row.path)}' cannot be placed in '{folder}' ({reason}){remedy}") from error

    def _put(self, source: str, folder: str) -> None:
        """Under its own name; name_2 and so on where that is taken by another file."""
        stem, suffix = os.path.splitext(os.path.basename(source))
        for number in itertools.count(1):
            target = os.path.join(folder, f"{stem}_{number}{suffix}" if number > 1 else f"{stem}{suffix}")
            try:
                if not os.path.lexists(target):
                    return self.place(source, target)
            except FileExistsError:  # another process was faster
                pass
            if _same(source, target):
                return None
        return None


def _same(source: str, target: str) -> bool:
    """Whether the target is this file already, from an earlier call that was interrupted."""
    try:
        return os.path.samefile(source, target) or filecmp.cmp(source, target, shallow=False)
    except OSError:
        return False


def _symlink(source: str, target: str) -> None:
    os.symlink(os.path.abspath(source), target)


def _copy(source: str, target: str) -> None:
    """The target appears whole, with the times of the source. Raises FileExistsError where it exists."""
    folder, name = os.path.split(target)
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.tmp")
    try:
        shutil.copy2(source, temporary)
        try:
            os.link(temporary, target)
        except OSError as error:
            if isinstance(error, FileExistsError) or os.path.lexists(target):
                raise FileExistsError(target) from error
            os.rename(temporary, target)  # a file system without hard links
    finally:
        if os.path.lexists(temporary):
            os.unlink(temporary)
