"""A process that computes when it is told to, so that two programs of different environments can take turns.

Each message is one JSON object on one line: {"command": name, ...arguments} to the worker, its answer back.
"""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


class WorkerError(RuntimeError):
    """A worker ended before it answered; what it said stands on stderr."""


class Worker:
    """The driver's end: a worker that runs until it is closed."""

    def __init__(self, python: str, script: str, environment: Mapping[str, str] | None = None) -> None:
        self.name = script
        path = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
        variables = {**os.environ, "PYTHONPATH": path, **(environment or {})}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([python, str(HERE / script)], env=variables, **pipes)  # type: ignore[call-overload]

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Sends one command and waits for its answer. Raises WorkerError where the worker ended instead."""
        try:
            self.process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it ended before it read this: there is no answer either
        answer = self.process.stdout.readline()
        if not answer:
            raise WorkerError(f"the worker {self.name} ended with exit code {self.process.wait()} at '{command}'")
        return json.loads(answer)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def serve(commands: Mapping[str, Callable[..., dict[str, Any]]]) -> None:
    """The worker's end: answers commands until the pipe is closed."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not look like an answer
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(commands[request.pop("command")](**request)), file=answers, flush=True)


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usage() -> dict[str, float]:
    """What this process has used so far: its peak memory and its processor time."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return {"peak_rss_mib": round(used.ru_maxrss * unit / 2**20), "cpu_seconds": used.ru_utime + used.ru_stime}
