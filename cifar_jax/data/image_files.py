"""Image files: which ones are meant by paths, folders and patterns, and their pixels, decoded in parallel."""

import glob
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from cifar_jax.data.decoding import SUFFIXES, decode, without_warnings
from cifar_jax.errors import InputError

AHEAD = 512  # files that are decoded before they are asked for
CHUNK = 16  # files that a thread takes at a time
CHANNELS = (1, 3)  # of an image that a file can become

Item = TypeVar("Item")
Result = TypeVar("Result")


def find_images(arguments: Iterable[str | os.PathLike[str]], listed: Sequence[str] = ()) -> list[str]:
    """The files that are meant, each once: the arguments in their order, and then those of a list.

    An argument is a file of any name, a folder, of which all image files at any depth are taken (hidden ones are not),
    or a pattern such as "photos/**/*.jpg". A name of the list may be missing: reading it tells why.

    Raises InputError where an argument is missing, or a folder or pattern holds no image.
    """
    found: dict[str, None] = {}
    for argument in arguments:
        found |= dict.fromkeys(_meant_by(os.fspath(argument)))
    for name in listed:
        found |= dict.fromkeys(_in_folder(name) if os.path.isdir(name) else [name])
    if listed and not any(os.path.exists(name) for name in listed):
        raise InputError(
            f"none of the {len(listed)} files of the list exists, the first is '{shown(listed[0])}'; give one path a"
            " line, relative to the current folder"
        )
    if not found:
        raise InputError("no images were named; give files, folders or patterns, or - for a list on standard input")
    return list(found)


def _meant_by(argument: str) -> list[str]:
    if os.path.isdir(argument):
        files = list(_in_folder(argument))
    elif os.path.exists(argument):
        return [argument]
    elif glob.has_magic(argument):
        matches = sorted(glob.glob(argument, recursive=True))
        parts = (_in_folder(match) if os.path.isdir(match) else [match] for match in matches)
        files = list(itertools.chain.from_iterable(parts))
    else:
        raise InputError(
            f"'{shown(argument)}' does not exist; name a file, a folder or a pattern such as 'photos/*.jpg'"
        )
    if not files:
        raise InputError(f"no images found in '{shown(argument)}'; files with these endings are: {', '.join(SUFFIXES)}")
    return files


def _in_folder(folder: str) -> Iterator[str]:
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield os.path.join(place, name)


def read_list(content: bytes) -> list[str]:
    """The paths of a list: one a line, or separated by NUL as `find -print0` writes them.

    Raises InputError where there are none.
    """
    separator = b"\0" if b"\0" in content else b"\n"
    names = [os.fsdecode(name.rstrip(b"\r") if separator == b"\n" else name) for name in content.split(separator)]
    if not any(names):
        raise InputError("the list on standard input is empty; give one path a line")
    return [name for name in names if name]


def read_images(paths: Iterable[str], shape: Sequence[int], mode: str = "stretch") -> Iterator[np.ndarray | str]:
    """uint8 [height, width, channels] of each file, in order, or the reason why it cannot be read.

    `shape` is that of each image, and `mode` one of `decoding.RESIZE_MODES`. Raises InputError where no file can become
    an image of so many channels.
    """
    height, width, channels = shape
    if channels not in CHANNELS:
        raise InputError(f"this model takes images of {channels} channels, and image files give 1 or 3")

    def read(path: str) -> np.ndarray | str:
        try:
            with open(path, "rb") as file:
                return decode(file.read(), (height, width), mode, channels)
        except Exception as error:  # each decoder of Pillow has its own
            return reason_of(error)

    return in_threads(read, paths)


def reason_of(error: Exception) -> str:
    """Why a file cannot be read, in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error)
    return "not an image" if text.startswith("cannot identify image file") else text or type(error).__name__


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """function(item) of each, in order; a thread for each core works at most `AHEAD` items ahead of the caller.

    Pillow's warnings are ignored while the iterator lives.
    """
    rest = iter(items)
    chunks: Iterator[list[Item]] = iter(lambda: list(itertools.islice(rest, CHUNK)), [])

    def of_chunk(chunk: list[Item]) -> list[Result]:
        return [function(item) for item in chunk]

    pool = ThreadPoolExecutor(os.cpu_count() or 1)
    try:
        with without_warnings():
            waiting: deque[Any] = deque(
                pool.submit(of_chunk, chunk) for chunk in itertools.islice(chunks, AHEAD // CHUNK)
            )
            while waiting:
                results = waiting.popleft().result()
                waiting.extend(pool.submit(of_chunk, chunk) for chunk in itertools.islice(chunks, 1))
                yield from results
    finally:
        pool.shutdown(cancel_futures=True)


def shown(path: str) -> str:
    """A path for people: control characters and undecodable bytes are escaped."""
    return path if path.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in path)
