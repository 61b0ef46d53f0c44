"""What is said about each image, as rows of text that are written as they come, and read again to continue."""

import csv
import io
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from cifar_jax.data.image_files import shown
from cifar_jax.errors import InputError
from cifar_jax.runs.files import read_json, unsealed, write_sealed

FORMATS = ("table", "jsonl", "csv")
WIDEST = 60  # characters of the path that a table aligns; longer ones are written whole
OUTCOMES = ("correct", "wrong", "missed")


@dataclass(frozen=True)
class Row:
    """One image. Either `top` or `error` is empty."""

    path: str
    name: str  # the most probable class, or "unsure"; "" where the file could not be read
    top: tuple[tuple[str, float], ...]  # the most probable classes and their probabilities, the first first
    error: str  # why the file could not be read
    label: str = ""  # the true class, where it is asked for and known
    outcome: str = ""  # of OUTCOMES, likewise


class Format:
    """How rows become text. `labelled` adds the true class and the outcome."""

    def __init__(self, name: str, top: int, labelled: bool, paths: Sequence[str]) -> None:
        self.name, self.labelled = name, labelled
        self.ranks = range(1, top + 1)
        self.width = min(WIDEST, max((len(shown(path)) for path in paths), default=0)) if name == "table" else 0

    @property
    def columns(self) -> list[str]:
        """Of a CSV file."""
        ranked = [f"{what}_{rank}" for rank in self.ranks for what in ("class", "probability")]
        return ["path", "class", *ranked, *(["label", "outcome"] if self.labelled else []), "error"]

    def header(self) -> str:
        return _csv([self.columns]) if self.name == "csv" else ""

    def text(self, rows: Iterable[Row]) -> str:
        """Whole lines."""
        if self.name == "csv":
            return _csv(self._cells(row) for row in rows)
        return "".join((_json(self._fields(row)) if self.name == "jsonl" else self._line(row)) + "\n" for row in rows)

    def _cells(self, row: Row) -> list[str]:
        ranked = [text for name, probability in row.top for text in (name, repr(probability))]
        ranked += [""] * (2 * len(self.ranks) - len(ranked))
        return [row.path, row.name, *ranked, *([row.label, row.outcome] if self.labelled else []), row.error]

    def _fields(self, row: Row) -> dict[str, Any]:
        top = [{"class": name, "probability": probability} for name, probability in row.top]
        labelled = {"label": row.label or None, "outcome": row.outcome or None} if self.labelled else {}
        return {"path": row.path, "class": row.name or None, "top": top, **labelled, "error": row.error or None}

    def _line(self, row: Row) -> str:
        """For people: percentages, and control characters escaped."""
        ranked = ", ".join(f"{name} {probability:.1%}" for name, probability in row.top)
        said = f"unreadable: {shown(row.error)}" if row.error else row.name
        parts = [f"{said:<12}" if ranked else said, ranked, *([f"[{row.outcome}]"] if row.outcome else [])]
        return f"{shown(row.path):<{self.width}}  {'  '.join(parts)}".rstrip()


def _csv(rows: Iterable[Sequence[str]]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()


def _json(value: Any) -> str:
    return json.dumps(value)


class Output:
    """Where rows go: standard output, or a file that the next call can continue.

    FILE.call.json beside the file says what it holds, so that a call that would say something else is refused.
    """

    def __init__(self, path: Path | None, form: Format, call: dict[str, Any], resume: bool, force: bool) -> None:
        """Opens the file. Raises InputError where it exists and is neither continued nor replaced, or is of another
        call."""
        self.path, self.form, self.done = path, form, 0
        self.paths: set[str] = set()  # of the rows that are there
        if path is None:
            self.stream: TextIO = sys.stdout
            if isinstance(sys.stdout, io.TextIOWrapper):
                sys.stdout.reconfigure(errors="surrogateescape")  # names of files may be any bytes
        else:
            self.stream = self._opened(path, call, resume, force)
        if not self.paths:
            self.stream.write(form.header())

    def _opened(self, path: Path, call: dict[str, Any], resume: bool, force: bool) -> TextIO:
        beside = path.with_name(f"{path.name}.call.json")
        exists = path.exists()
        if exists and not (resume or force):
            raise InputError(
                f"'{path}' exists; continue it with --resume, replace it with --force, or name another file"
            )
        if exists and resume:
            _check_call(path, beside, call)
            self.paths, size = _rows_of(path, self.form)
            os.truncate(path, size if self.paths else 0)
        write_sealed(beside, call)
        coding: Any = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
        try:
            return path.open("a", **coding) if exists and resume else path.open("w", **coding)
        except OSError as error:
            raise InputError(f"'{path}' cannot be written ({error.strerror}); name another file") from error

    def write(self, rows: Sequence[Row]) -> None:
        """The rows are on the disk, or with the next program, when this returns."""
        self.stream.write(self.form.text(rows))
        self.stream.flush()
        self.done += len(rows)

    def close(self) -> None:
        if self.path is not None:
            self.stream.close()


def _check_call(path: Path, beside: Path, call: dict[str, Any]) -> None:
    stored = unsealed(read_json(beside)) if beside.exists() else None
    if stored is None:
        raise InputError(f"'{path}' cannot be continued: {beside.name} is missing or damaged; replace it with --force")
    differing = [name for name in call if stored.get(name) != call[name]]
    if differing:
        told = ", ".join(f"{name} was {stored.get(name)!r} and is {call[name]!r}" for name in differing)
        raise InputError(f"'{path}' is of another call ({told}); replace it with --force, or name another file")


def _rows_of(path: Path, form: Format) -> tuple[set[str], int]:
    """The paths of the whole rows of a file, and the bytes that these take; what follows was cut off.

    Raises InputError where a row in the middle is damaged.
    """
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        lines = file.readlines()
    rows: list[tuple[int, Any]] = list(_csv_rows(lines) if form.name == "csv" else ((1, line) for line in lines))
    paths, size, place = set(), 0, 0
    for number, (count, row) in enumerate(rows):
        content = "".join(lines[place : place + count])
        name = _path_of(row, form) if content.endswith("\n") else None
        if name is None:
            if number < len(rows) - 1:
                raise InputError(f"line {place + 1} of '{path}' is damaged; restore it, or replace it with --force")
            break
        place += count
        size += len(content.encode("utf-8", "surrogateescape"))
        if form.name == "jsonl" or number:
            paths.add(name)
    return paths, size


def _csv_rows(lines: list[str]) -> Iterable[tuple[int, list[str]]]:
    """How many lines each row takes, and its cells; a last row within quotes has none."""
    reader = csv.reader(lines, strict=True)
    before = 0
    while before < len(lines):
        try:
            cells = next(reader)
        except csv.Error:
            cells = []
        yield reader.line_num - before, cells
        if not cells:
            return
        before = reader.line_num


def _path_of(row: Any, form: Format) -> str | None:
    """The path of a row; None where the row is not whole."""
    if form.name == "csv":
        return row[0] if len(row) == len(form.columns) else None
    try:
        return str(json.loads(row)["path"])
    except (ValueError, KeyError, TypeError):
        return None
