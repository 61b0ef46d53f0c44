"""What a study tells while it runs: runs done, the current run, the time left."""

import functools
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
from tqdm import tqdm

from cifar_jax.runs.events import Event
from cifar_jax.studies.plan import duration

SILENCE = 60.0  # seconds after which a run says how far it is, where the output is a file
COMPILED = "/jax/core/compile/backend_compile_duration"


class CompileClock:
    """Seconds that this process has spent compiling, or reading compiled programs from the disk."""

    def __init__(self) -> None:
        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._count)

    def _count(self, event: str, duration_secs: float, **details: str | int) -> None:
        if event == COMPILED:
            self.seconds += duration_secs


compile_clock = functools.cache(CompileClock)


class StudyProgress:
    """A bar that counts runs; in a file, a line for each run. `costs` are the multiply-adds of the runs that train."""

    def __init__(self, total: int, costs: Mapping[str, float], shown: bool) -> None:
        self.costs, self.left, self.shown = dict(costs), dict(costs), shown
        self.start, self.compiled = time.monotonic(), compile_clock().seconds
        self.total, self.before = total, total - len(costs)
        form = "{desc}: {n_fmt}/{total_fmt} runs |{bar}| [{elapsed}{postfix}]"
        self.in_file, self.told = not sys.stderr.isatty(), time.monotonic()
        self.last_status = ""
        hidden = not shown or self.in_file
        self.bar = tqdm(total=total, initial=self.before, desc="study", bar_format=form, disable=hidden)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()

    def follow(self, name: str) -> Callable[[Event], None]:
        """A callback that shows how far a run is."""

        def show(event: Event) -> None:
            steps = event.total_steps // event.recipe.epochs
            done = event.step / event.total_steps
            epoch = f"{short(name)}: epoch {event.step / steps:.4g}/{event.recipe.epochs}"
            self.left[name] = self.costs[name] * (1 - done)
            self.bar.set_postfix_str(f"{epoch}, {self.remaining()}")
            if self.in_file and time.monotonic() - self.told >= SILENCE:
                self.say(f"  {epoch} ({self.remaining()})")

        return show

    def at(self, name: str, fraction: float) -> None:
        """A run that another process trains is so far."""
        self.left[name] = self.costs[name] * (1 - fraction)

    def status(self, text: str) -> None:
        """What becomes of all runs that other processes train; in a file, now and then."""
        self.bar.set_postfix_str(f"{text}, {self.remaining()}")
        if self.in_file and (text != self.last_status) and time.monotonic() - self.told >= SILENCE:
            self.say(f"  {text} ({self.remaining()})")
            self.last_status = text

    def again(self, name: str) -> None:
        """A run is trained once more."""
        self.left[name] = self.costs[name]
        self.bar.update(-1)

    def done(self, name: str, entry: Mapping[str, Any]) -> None:
        """A run is finished, or has failed."""
        self.left.pop(name, None)
        self.bar.update()
        accuracy = entry["metrics"].get("validation_accuracy")
        outcome = f"failed: {entry['reason']}" if accuracy is None else f"validation accuracy {accuracy:.2%}"
        compiling = f", {entry['compile_seconds']:.0f} s to compile" if entry["compile_seconds"] >= 0.5 else ""
        number = self.before + len(self.costs) - len(self.left)
        took = f"{duration(entry['seconds'])}{compiling}"
        self.say(f"run {number}/{self.total}, {short(name)}: {outcome} ({took}; {self.remaining()})")

    def remaining(self) -> str:
        """ "about 12 min left", by the multiply-adds that are done."""
        whole, left = sum(self.costs.values()), sum(self.left.values())
        if not left:
            return "all done"
        if left == whole:
            return "time left unknown"
        return f"about {duration((time.monotonic() - self.start) * left / (whole - left))} left"

    def say(self, text: str) -> None:
        if self.shown:
            self.told = time.monotonic()
            tqdm.write(text, file=sys.stderr)
            sys.stderr.flush()


def short(name: str) -> str:
    """ "runs/flip=0/seed3" -> "flip=0/seed3"."""
    return name.removeprefix("runs/")
