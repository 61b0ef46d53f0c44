"""Settings of the whole process: memory, the compilation cache, warnings, and signals that end it.

A program calls these functions; importing a module of this package changes no setting. This module imports neither
jax nor another module of the package.
"""

import concurrent.futures
import contextlib
import ctypes
import functools
import os
import shlex
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C, and what `kill`, `timeout` and job schedulers send
SAVE_SECONDS = 5.0  # how long the end of the process waits for a checkpoint that is being saved


def return_memory() -> None:
    """What was freed goes back to the system, which `prepare_process` prevents for the sake of training. For a service,
    which calls it now and then: one image of 16 million pixels takes 64 MB, once."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "malloc_trim"):  # of glibc
        # M_MMAP_THRESHOLD 1 MiB, M_MMAP_MAX 65536: larger buffers are no part of the heap, which they would tear apart.
        for parameter, value in ((-3, 1 << 20), (-4, 65536)):
            libc.mallopt(parameter, value)  # type: ignore[union-attr]
        libc.malloc_trim(0)  # type: ignore[union-attr]


def cache_dir() -> Path:
    """`$XDG_CACHE_HOME/cifar_jax`, or `~/.cache/cifar_jax`: whatever can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cifar_jax"


@functools.cache
def prepare_process() -> None:
    """Makes the settings that a program of this package runs with: allocator, compilation cache, one-line warnings.

    Call it before jax is imported; after that the settings of the allocator have no effect, and a warning says so. A
    second call does nothing.
    """
    late = "jax" in sys.modules
    warnings.formatwarning = lambda message, *details: f"warning: {message}\n"
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "10")  # seconds between two lines of a progress bar in a file
    if late:
        warnings.warn(
            "jax is already imported, so the memory allocator keeps its settings; call prepare_process() before jax is"
            " imported",
            stacklevel=2,
        )
    elif sys.platform == "linux":
        # XLA returns its temporary buffers after each step, and page faults dominate small models (8 to 12% of a
        # step on two cores): M_MMAP_MAX 0, M_TRIM_THRESHOLD 2 GiB, M_TOP_PAD 256 MiB, M_ARENA_MAX 1.
        libc = ctypes.CDLL(None)
        for parameter, value in ((-4, 0), (-1, 2**31 - 1), (-2, 256 << 20), (-8, 1)):
            if hasattr(libc, "mallopt"):  # glibc has it, musl does not
                libc.mallopt(parameter, value)
    # Compiled programs are kept for the next start: 5 s instead of 30 for a large model. What the user has set stays.
    settings: dict[str, str | float] = {
        "jax_compilation_cache_dir": str(cache_dir() / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0.2,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    for name, setting in settings.items():
        if name.upper() in os.environ:
            continue
        os.environ[name.upper()] = str(setting)  # jax reads it when it is imported
        if late:
            sys.modules["jax"].config.update(name, setting)


def command_line(*arguments: str) -> str:
    """A command of this program, quoted so that it can be pasted into a shell in the current folder."""
    started, python = Path(sys.argv[0]), Path(sys.executable)
    below = python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python
    if started.name == "launch.py":
        program = [str(below), str(started)]
    elif started.name == "cifar-jax":
        found = shutil.which("cifar-jax")
        program = ["cifar-jax" if found and Path(found).resolve() == started.resolve() else str(started)]
    else:
        program = [str(below), "-m", "cifar_jax"]
    return shlex.join([*program, *arguments])


# --- signals ---

# An exception raised by a Python signal handler is lost where the main thread runs a callback that cannot raise, such
# as those that JAX registers with the garbage collector. Libraries also replace signal handlers: uvloop within Orbax,
# and jax.distributed. Hence the signals are blocked in all threads, and a thread of its own waits for them.

_saves: set[concurrent.futures.Future[Any]] = set()
_ending = threading.Lock()  # held, and never released, by the thread that ends the process
_last_words: Callable[[], str] = lambda: "stopped"
_stop: Callable[[], None] | None = None  # see `stop_by`


def handle_signals(last_words: Callable[[], str]) -> None:
    """From now on SIGINT and SIGTERM end the process with exit code 128 + number, at once and wherever it is.

    Before that the process waits up to `SAVE_SECONDS` for saves (see `finish_before_end`) and prints the one sentence
    that `last_words` returns. A second signal does not wait. `last_words` is called in another thread; it must not
    import anything, because the main thread may hold the import lock.

    Call it in the main thread before other threads start: a thread inherits the blocked signals of the one that starts
    it. Programs that are started as child processes inherit them too, and would ignore Ctrl-C: start them within
    `unblocked_signals`. A forked child (os.fork, multiprocessing) has Python's own behaviour again. A signal that
    the parent process has set to be ignored, as shells do with SIGINT for background jobs, stays ignored.
    """
    global _last_words
    _last_words = last_words
    numbers = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    for number in numbers:
        signal.signal(number, _handle)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        threading.Thread(target=_wait, args=(numbers,), name="signals", daemon=True).start()
        os.register_at_fork(after_in_child=lambda: _restore(signal.default_int_handler))


@contextlib.contextmanager
def stop_by(stop: Callable[[], None]) -> Iterator[None]:
    """Within it the first signal calls `stop`, in another thread, and the program ends itself; a second one ends the
    process at once. For a service, which finishes what it has accepted. `stop` must not import anything."""
    global _stop
    _stop = stop
    try:
        yield
    finally:
        _stop = None


def release_signals() -> None:
    """The system's own behaviour again, for the end of the process, when its threads no longer run.

    It does not return where a signal is already ending the process.
    """
    with _ending:
        _restore(signal.SIG_DFL)


def _restore(interrupt: Any) -> None:
    """The handlers before `handle_signals`, that of SIGINT being `interrupt`."""
    for number, handler in zip(SIGNALS, (interrupt, signal.SIG_DFL), strict=True):
        if signal.getsignal(number) is _handle:
            signal.signal(number, handler)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


@contextlib.contextmanager
def unblocked_signals() -> Iterator[None]:
    """A child process that is started within it, by subprocess or multiprocessing, receives SIGINT and SIGTERM."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def finish_before_end(save: concurrent.futures.Future[Any]) -> None:
    """A signal that comes before `save` is done ends the process only after it, or after `SAVE_SECONDS`."""
    _saves.add(save)
    save.add_done_callback(_saves.discard)


def _wait(numbers: list[signal.Signals]) -> None:
    """Runs in a thread of its own: the first signal ends the process in order, the second at once."""
    first = signal.sigwait(numbers)
    if _stop is not None:
        _stop()
    else:
        threading.Thread(target=_end, args=(first,), daemon=True).start()
    os._exit(128 + signal.sigwait(numbers))


def _handle(number: int, frame: FrameType | None) -> None:
    """The handler where signals are not blocked: on systems that cannot block them, and in `unblocked_signals`."""
    if _ending.locked():
        os._exit(128 + number)
    _end(number)


def _end(number: int) -> None:
    _ending.acquire()
    try:
        concurrent.futures.wait(list(_saves), SAVE_SECONDS)
        # Not through sys.stderr, whose lock the main thread may hold. The line may follow a progress bar.
        os.write(2, f"{os.linesep if os.isatty(2) else ''}{_last_words()}{os.linesep}".encode())
    finally:
        os._exit(128 + number)
