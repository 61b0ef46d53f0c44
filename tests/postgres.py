"""A PostgreSQL server of its own for a test, started as an ordinary user from the system's packages.

    python -m tests.postgres    # starts one, prints its address, and stops it after Enter

Debian and Ubuntu: apt install postgresql. The server listens on a socket in its folder only, and needs no password.
"""

import contextlib
import getpass
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ORDINARY = "nobody"  # who runs the server where root runs the tests: PostgreSQL refuses root


def programs() -> Path | None:
    """The folder of initdb and postgres; None where they are not installed."""
    found = [Path(path).resolve().parent for path in [shutil.which("initdb")] if path]
    found += sorted(path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return next((folder for folder in found if (folder / "postgres").exists()), None)


def reason_to_skip() -> str | None:
    """Why no server can be started here, in words; None where one can."""
    if programs() is None:
        return "PostgreSQL is not installed (initdb was not found); apt install postgresql"
    if os.geteuid() == 0 and ORDINARY not in {entry.pw_name for entry in pwd.getpwall()}:
        return f"PostgreSQL does not run as root, and there is no user '{ORDINARY}'"
    return None


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Yields the address of an empty database."""
    tools = programs()
    assert tools is not None
    user = ORDINARY if os.geteuid() == 0 else getpass.getuser()
    folder = Path(tempfile.mkdtemp(prefix="postgres", dir="/tmp"))  # the path of a socket has at most 107 characters
    shutil.chown(folder, user)
    run_as = {"user": user} if os.geteuid() == 0 else {}
    common = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT, **run_as}
    made = [tools / "initdb", "-D", folder / "data", "-U", "tester", "-A", "trust", "--no-sync"]
    try:
        subprocess.run(made, check=True, **common)
        settings = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={folder}", "-c", "fsync=off"]
        process = subprocess.Popen([tools / "postgres", "-D", folder / "data", *settings], **common)
        try:
            _wait(tools, folder, process)
            yield f"postgresql://tester@/postgres?host={folder}"
        finally:
            process.send_signal(signal.SIGINT)  # does not wait for clients to leave
            process.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait(tools: Path, folder: Path, process: subprocess.Popen) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise RuntimeError(f"postgres ended with code {process.returncode}")
        ready = subprocess.run([tools / "pg_isready", "-q", "-h", folder, "-U", "tester"])
        if ready.returncode == 0:
            return
        time.sleep(0.1)
    raise TimeoutError("postgres did not answer within a minute")


if __name__ == "__main__":
    with server() as address:
        input(f"{address}\nEnter stops it. ")
