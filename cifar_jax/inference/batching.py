"""Requests are decoded by threads, collected into batches, and computed by one thread.

The event loop hears of a batch once, when all of it is computed: a wake-up for each image would cost as much as a small
model.
"""

import asyncio
import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

LEAST_WAIT = 0.002  # seconds that a batch waits for images where its computation is short
WAIT_SHARE = 0.25  # of the seconds that the last batch took: longer batches may wait longer
SMALL_PIXELS = 1 << 18  # images of more are decoded one at a time, apart from the small ones, which would wait for them


class Busy(Exception):
    """The queue is full."""


class Postponed(Exception):
    """Raised by `decode` for a large image when it is asked for small ones."""


@dataclass(frozen=True)
class Unreadable:
    """Why a content could not be decoded."""

    status: int  # of HTTP
    reason: str


@dataclass(frozen=True)
class Failed:
    """A program error while a batch was computed."""

    error: Exception


@dataclass(eq=False)
class Ticket:
    """A request: its contents and what became of them."""

    key: Hashable
    future: asyncio.Future[list[Any]]
    results: list[Any]
    left: int


@dataclass(eq=False)
class Work:
    """One image of a request."""

    ticket: Ticket
    place: int
    content: bytes
    image: Any = None


@dataclass
class Batcher:
    """`decode(key, content, small)` returns an image or raises Postponed; `compute(key, images)` a result for each.

    Images of equal keys are computed together. Both run in threads. A batch waits, `delay` seconds at most, while other
    accepted images are being decoded, or fewer have come than the last time: who was answered is likely to ask again.
    A client that asks alone waits once, when the others have gone, and not again.
    """

    decode: Callable[[Any, bytes, bool], Any]  # an image, or Unreadable
    compute: Callable[[Any, list[Any]], Sequence[Any]]
    batch: int = 32  # images that are computed together
    delay: float = 0.01  # seconds
    capacity: int = 256  # images that are accepted and not answered yet
    choose: Callable[[Any, int], int] = lambda key, count: count  # how many of those that wait are computed now
    observe: Callable[[int], None] = lambda count: None  # told the size of each batch
    pending: int = field(default=0, init=False)  # touched by the event loop alone

    def __post_init__(self) -> None:
        self._decoding, self._lock = 0, threading.Lock()
        self._expected = 1  # images of the next batch
        self._wait = min(self.delay, LEAST_WAIT)  # seconds that it waits for them
        self._ready: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._small = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="decode")
        self._large = ThreadPoolExecutor(1, thread_name_prefix="decode-large")
        self._thread = threading.Thread(target=self._run, name="compute", daemon=True)
        self._thread.start()

    async def submit(self, key: Hashable, contents: Sequence[bytes]) -> list[Any]:
        """A result for each content: that of `compute`, Unreadable or Failed. Raises Busy where the queue is full.

        When the caller is cancelled, what is not computed yet is dropped.
        """
        if self.pending + len(contents) > self.capacity:
            raise Busy
        loop = asyncio.get_running_loop()
        ticket = Ticket(key, loop.create_future(), [None] * len(contents), len(contents))
        self.pending += len(contents)
        with self._lock:
            self._decoding += len(contents)
        for place, content in enumerate(contents):
            self._small.submit(self._decode, loop, Work(ticket, place, content), True)
        return await ticket.future

    def close(self) -> None:
        """Waits for the threads."""
        for pool in (self._small, self._large):
            pool.shutdown()
        self._ready.put(None)
        self._thread.join()

    def _decode(self, loop: asyncio.AbstractEventLoop, work: Work, small: bool) -> None:
        """Runs in the threads that decode."""
        try:
            found = None if work.ticket.future.done() else self.decode(work.ticket.key, work.content, small)
        except Postponed:
            self._large.submit(self._decode, loop, work, False)
            return
        except Exception as error:
            found = Failed(error)
        work.content = b""
        with self._lock:
            self._decoding -= 1
        if found is None or isinstance(found, Unreadable | Failed):
            self._answer(loop, [(work, found)])
        else:
            work.image = found
            self._ready.put(work)

    def _run(self) -> None:
        """The thread that computes."""
        waiting: list[Work] = []
        last = False
        while waiting or not last:
            last = self._collect(waiting) or last
            if not waiting:
                continue
            key = waiting[0].ticket.key
            group = [work for work in waiting if work.ticket.key == key][: self.batch]
            group = group[: self.choose(key, len(group))]
            waiting = [work for work in waiting if work not in group]
            start = time.perf_counter()
            try:
                self.observe(len(group))
                results = self.compute(key, [work.image for work in group])
            except Exception as error:
                results = [Failed(error)] * len(group)
            self._wait = min(self.delay, max(LEAST_WAIT, WAIT_SHARE * (time.perf_counter() - start)))
            self._expected = min(self.batch, len(group) + len(waiting))
            self._answer(group[0].ticket.future.get_loop(), list(zip(group, results, strict=True)))
            del key, group, results  # a thread that waits would keep images, and a model

    def _collect(self, waiting: list[Work]) -> bool:
        """Adds what is ready, up to a batch, to what is left of before; whether there is no more to come."""
        end = time.perf_counter() + self._wait if waiting else None
        while len(waiting) < self.batch:
            try:
                if not waiting:
                    work = self._ready.get()
                elif (
                    (self._decoding or len(waiting) < self._expected)
                    and end is not None
                    and (left := end - time.perf_counter()) > 0
                ):
                    work = self._ready.get(timeout=left)
                else:
                    work = self._ready.get_nowait()
            except queue.Empty:
                return False
            if work is None:
                return True
            end = end or time.perf_counter() + self._wait
            waiting.append(work)
        return False

    def _answer(self, loop: asyncio.AbstractEventLoop, pairs: list[tuple[Work, Any]]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any longer
            loop.call_soon_threadsafe(self._finish, pairs)

    def _finish(self, pairs: list[tuple[Work, Any]]) -> None:
        """Runs in the event loop."""
        self.pending -= len(pairs)
        for work, result in pairs:
            ticket = work.ticket
            ticket.results[work.place] = result
            ticket.left -= 1
            if not ticket.left and not ticket.future.done():
                ticket.future.set_result(ticket.results)
