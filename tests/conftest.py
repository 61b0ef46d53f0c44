"""One persistent compilation cache for the whole suite, kept between runs: most of its time is compilation."""

import contextlib
import gc
import os
import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMPILED = ROOT / ".pytest_cache" / "compiled"

# A job in the background of a shell ignores Ctrl-C, and so would the processes that the tests start and interrupt.
with contextlib.suppress(ValueError):  # not in the main thread
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)

# Compiling for speed takes longer, and few tests run long enough to gain from it: the small recipes take 132 s of the
# processor at level 1, and 104 at level 0 (benchmarks/results/suite.json).
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(COMPILED))  # for subprocesses too
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")


# The traces and programs of thousands of tests stay alive; walking through them in each full collection takes 3% of the
# suite's time.
gc.set_threshold(100_000, 50, 1000)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """The suite writes nothing to the user's cache folder: the digits are prepared in its own."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()
