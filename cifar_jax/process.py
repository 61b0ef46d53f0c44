"""What belongs to a whole process: settings made before jax is imported, and signals that end it."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

SAVE_SECONDS = 5.0  # how long a signal waits for a checkpoint that is being written

# What has to be finished before the process may end: a function that waits at most so many seconds.
before_exit: set[Callable[[float], None]] = set()


def cache_dir() -> Path:
    """`$XDG_CACHE_HOME/cifar_jax`, or `~/.cache/cifar_jax`: whatever can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cifar_jax"


def prepare_process() -> None:
    """The allocator's settings, the compilation cache, and short warnings. Call it before anything imports jax."""
    if sys.platform == "linux":
        if "jax" in sys.modules:
            warnings.warn(
                "prepare_process() came after the import of jax: too late for its allocator settings", stacklevel=2
            )
        # XLA returns its temporary buffers after each step, and page faults dominate small models (8 to 12% of a
        # step on two cores): M_MMAP_MAX 0, M_TRIM_THRESHOLD 2 GiB, M_TOP_PAD 256 MiB, M_ARENA_MAX 1.
        libc = ctypes.CDLL(None)
        for parameter, value in ((-4, 0), (-1, 2**31 - 1), (-2, 256 << 20), (-8, 1)):
            if hasattr(libc, "mallopt"):  # glibc has it, musl does not
                libc.mallopt(parameter, value)
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "10")  # a bar in a file: a line now and then, not ten a second
    warnings.formatwarning = lambda message, *details: f"warning: {message}\n"
    import jax

    # Compiled programs are kept for the next start: 5 s instead of 30 for a large model.
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def end_on_signals(message: Callable[[], str]) -> None:
    """Ends the process with 128 + number on Ctrl-C and SIGTERM, after one sentence; a second signal ends it at once.

    A thread waits for the signals. A handler of Python's would run in the main thread, where an exception that it
    raises inside a garbage-collection callback is swallowed: 8 of 32 signals in the first seconds were. Call it before
    other threads are started: they inherit the blocked signals.
    """
    numbers = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)

    def wait() -> None:
        number = signal.sigwait(numbers)
        threading.Thread(target=_end, args=(signal.sigwait, numbers), daemon=True).start()
        sentence = message()
        for finish in tuple(before_exit):
            with contextlib.suppress(Exception):
                finish(SAVE_SECONDS)
                sentence = message()
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os.write(2, f"\n{sentence}\n".encode())
        os._exit(128 + number)

    threading.Thread(target=wait, name="signals", daemon=True).start()


def _end(sigwait: Callable[[set[signal.Signals]], int], numbers: set[signal.Signals]) -> None:
    os._exit(128 + sigwait(numbers))
