"""Settings of the process and signals, each in a process of its own."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import cifar_jax as cj
from cifar_jax import process

ROOT = Path(__file__).parent.parent


def python(code, **environment):
    """Runs `code` in a new process, in which no setting of jax is made."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_settings_can_be_made_before_jax_is_imported(tmp_path):
    done = python(
        """
        import sys, warnings
        import cifar_jax, cifar_jax.errors, cifar_jax.cli
        assert "jax" not in sys.modules
        cifar_jax.prepare_process()
        cifar_jax.prepare_process()
        import jax
        print(jax.config.jax_compilation_cache_dir)
        assert jax.config.jax_persistent_cache_min_compile_time_secs == 0.2
        assert jax.config.jax_persistent_cache_min_entry_size_bytes == 0
        warnings.warn("one line")
        """,
        XDG_CACHE_HOME=str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "cifar_jax" / "compiled")
    assert done.stderr == "warning: one line\n"


def test_what_the_user_has_set_stays(tmp_path):
    code = "import cifar_jax, jax; cifar_jax.prepare_process(); print(jax.config.jax_compilation_cache_dir)"
    assert python(code, JAX_COMPILATION_CACHE_DIR=str(tmp_path)).stdout.strip() == str(tmp_path)


def test_after_jax_the_rest_of_the_settings_is_made_with_one_warning(tmp_path):
    code = "import cifar_jax, jax; cifar_jax.prepare_process(); cifar_jax.prepare_process()\n"
    done = python(f"{code}print(jax.config.jax_compilation_cache_dir)", XDG_CACHE_HOME=str(tmp_path))
    assert done.stdout.strip() == str(tmp_path / "cifar_jax" / "compiled")
    (line,) = done.stderr.splitlines()
    assert line.startswith("warning: jax is already imported, so the memory allocator keeps its settings;")


def test_the_package_gives_its_names_when_they_are_used():
    assert set(cj.__all__) <= set(dir(cj))
    assert set(cj.__all__) == set(cj.MODULES)
    for name in cj.__all__:
        assert getattr(cj, name).__name__ == name
    with pytest.raises(AttributeError, match="'cifar_jax' has no attribute 'fitt'"):
        _ = cj.fitt
    with pytest.raises(ImportError, match="cannot import name 'fitt'"):
        exec("from cifar_jax import fitt")


def test_type_checkers_see_the_same_names():
    """Those that are imported for them, and those that __getattr__ imports."""
    import ast

    tree = ast.parse(Path(cj.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {name.name: node.module for node in block.body for name in node.names}
    assert seen == {name: f"cifar_jax.{module}" for name, module in cj.MODULES.items()}


# --- signals ---

HANDLED = "import os, signal, subprocess, sys, threading, time\nfrom cifar_jax import process\n"
HANDLED += "process.handle_signals(lambda: 'last words')\n"
KILL = "os.kill(os.getpid(), signal.SIGTERM)\n"


@pytest.mark.parametrize("number", process.SIGNALS)
def test_a_signal_is_not_lost_in_a_callback_that_cannot_raise(number):
    """An exception that a handler raises in a garbage-collection callback is printed and swallowed."""
    code = f"{HANDLED}import gc\ngc.callbacks.append(lambda *_: (os.kill(os.getpid(), {int(number)}), time.sleep(5)))\n"
    done = python(f"{code}gc.collect(); print('ignored')")
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", "last words\n")


def test_a_library_that_replaces_the_handler_does_not_lose_the_signal():
    code = "signal.signal(signal.SIGTERM, lambda *_: None); signal.set_wakeup_fd(-1)\n"
    assert python(f"{HANDLED}{code}{KILL}time.sleep(5)").returncode == 143


def test_the_process_waits_for_a_save():
    code = "from concurrent.futures import ThreadPoolExecutor\n"
    code += "def save(): time.sleep(0.5); print('saved', flush=True)\n"
    code += "process.finish_before_end(ThreadPoolExecutor(1).submit(save))\n"
    done = python(f"{HANDLED}{code}{KILL}time.sleep(5)")
    assert (done.returncode, done.stdout, done.stderr) == (143, "saved\n", "last words\n")


def test_but_not_for_ever_and_a_second_signal_does_not_wait():
    code = "from concurrent.futures import Future\nprocess.finish_before_end(Future())\n"
    limited = f"process.SAVE_SECONDS = 0.2\n{code}{KILL}time.sleep(5)"
    assert python(HANDLED + limited).stderr == "last words\n"
    second = f"{code}{KILL}time.sleep(0.5); os.kill(os.getpid(), signal.SIGINT); time.sleep(4)"
    done = python(HANDLED + second)
    assert (done.returncode, done.stderr) == (130, "")


def test_a_failing_last_word_still_ends_the_process():
    code = HANDLED.replace("lambda: 'last words'", "lambda: 1 / 0")
    assert python(f"{code}{KILL}time.sleep(5)").returncode == 143


SLEEP = "[sys.executable, '-c', 'import time; time.sleep(9)']"


def test_a_child_process_receives_signals():
    """A program started within `unblocked_signals`, and a forked child; both end by Python's own rules."""
    code = f"with process.unblocked_signals(): child = subprocess.Popen({SLEEP})\n"
    code += "time.sleep(0.5); child.terminate(); assert child.wait(5) == -signal.SIGTERM, 'subprocess'\n"
    code += "pid = os.fork()\nif not pid: time.sleep(9); os._exit(0)\n"
    code += "time.sleep(0.5); os.kill(pid, signal.SIGTERM)\n"
    code += "assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM\n"
    done = python(f"{HANDLED}{code}{KILL}time.sleep(5)", PYTHONWARNINGS="ignore")  # of a fork beside threads
    assert (done.returncode, done.stderr) == (143, "last words\n")


def test_a_signal_within_unblocked_signals_ends_the_process_too():
    done = python(f"{HANDLED}with process.unblocked_signals():\n    {KILL}    time.sleep(5)")
    assert (done.returncode, done.stderr) == (143, "last words\n")


def test_a_system_that_cannot_block_signals_has_handlers():
    code = "import signal\ndel signal.pthread_sigmask\n" + HANDLED
    done = python(f"{code}{KILL}time.sleep(5)")
    assert (done.returncode, done.stderr) == (143, "last words\n")


def test_a_signal_that_the_parent_ignores_stays_ignored():
    """As that of Ctrl-C for a job in the background of a shell script."""
    code = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n" + HANDLED
    done = python(f"{code}os.kill(os.getpid(), signal.SIGINT); time.sleep(0.2); print('alive'); {KILL}time.sleep(5)")
    assert (done.returncode, done.stdout) == (143, "alive\n")


def test_the_end_of_the_process_has_the_systems_own_behaviour():
    assert python(f"{HANDLED}process.release_signals()\n{KILL}time.sleep(5)").returncode == -signal.SIGTERM


def test_an_end_by_a_signal_is_not_overtaken_by_the_end_of_the_command():
    """The exit code is that of the signal, although the command returns while a save is awaited."""
    code = "from concurrent.futures import Future\nprocess.SAVE_SECONDS = 1\nprocess.finish_before_end(Future())\n"
    done = python(f"{HANDLED}{code}{KILL}time.sleep(0.3); process.release_signals()")
    assert (done.returncode, done.stderr) == (143, "last words\n")
