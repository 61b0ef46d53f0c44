"""Hostile uploads among good ones, for serve.py."""

import asyncio
import io
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
from PIL import Image

AT_ONCE = 16  # hostile connections
SLOW = 64  # senders that send a byte a second, and are there all the time
FORM = b"multipart/form-data; boundary=x"


async def hostile_load(
    url: str, good: list[bytes], uploads: int, pause: float, memory: Callable[[], float] = lambda: 0.0
) -> dict[str, Any]:
    """So many hostile uploads, while a good request is sent every `pause` seconds; what became of both."""
    kinds = hostile_requests(good[0])
    statuses: dict[str, Counter[str]] = {name: Counter() for name in kinds}
    address = urlsplit(url)
    queue = iter([name for _, name in zip(range(uploads), endless(list(kinds)), strict=False)])
    stop = asyncio.Event()

    trace: list[float] = []

    async def attacker() -> None:
        for name in queue:
            if sum(map(Counter.total, statuses.values())) >= len(trace) * uploads / 10:
                trace.append(round(memory(), 1))
            head, body = kinds[name]
            statuses[name][await sent(address.hostname or "", address.port or 0, head, body)] += 1

    slow = [asyncio.create_task(slow_sender(address.hostname or "", address.port or 0, stop)) for _ in range(SLOW)]
    seconds: list[float] = []
    codes: Counter[int] = Counter()
    before, start = memory(), time.perf_counter()
    asking = asyncio.create_task(good_requests(url, good, pause, stop, seconds, codes))
    await asyncio.gather(*(attacker() for _ in range(AT_ONCE)))
    wall = time.perf_counter() - start
    stop.set()
    await asyncio.gather(asking, *slow)
    await asyncio.sleep(6)  # the service returns memory every 5 seconds
    ranked = sorted(seconds)
    return {
        "uploads": uploads,
        "seconds": round(wall, 1),
        "statuses": {name: dict(counts) for name, counts in statuses.items()},
        "server_errors": sum(n for counts in statuses.values() for code, n in counts.items() if code.startswith("5")),
        "good_requests": len(seconds),
        "good_statuses": {str(code): count for code, count in codes.items()},
        "good_ms": {
            "median": round(1000 * ranked[len(ranked) // 2], 1),
            "p99": round(1000 * ranked[int(len(ranked) * 0.99)], 1),
            "max": round(1000 * ranked[-1], 1),
        },
        "memory_mb": {"before": round(before, 1), "after": round(memory(), 1), "growth": round(memory() - before, 1)},
        "memory_mb_at_each_tenth": trace,
    }


def endless(names: list[str]) -> Any:
    random = np.random.RandomState(0)
    while True:
        yield names[random.randint(len(names))]


async def good_requests(
    url: str, good: list[bytes], pause: float, stop: asyncio.Event, seconds: list[float], codes: "Counter[int]"
) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        while not stop.is_set():
            start = time.perf_counter()
            answer = await client.post("/v1/predict", content=good[len(seconds) % len(good)])
            seconds.append(time.perf_counter() - start)
            codes[answer.status_code] += 1
            await asyncio.sleep(pause)


async def good_load(url: str, good: list[bytes], count: int) -> None:
    """So many good requests, 32 at a time."""
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        for start in range(0, count, 32):
            asks = (client.post("/v1/predict", content=good[number % len(good)]) for number in range(start, start + 32))
            assert all(answer.status_code == 200 for answer in await asyncio.gather(*asks))


async def sent(host: str, port: int, head: bytes, body: bytes) -> str:
    """The status of the answer, or how the connection ended."""
    try:
        async with asyncio.timeout(30):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(head + body)
                line = await reader.readline()
                return line.split(b" ")[1].decode() if line else "closed"
            finally:
                writer.close()
    except TimeoutError:
        return "no answer"
    except (ConnectionError, IndexError):
        return "closed"


async def slow_sender(host: str, port: int, stop: asyncio.Event) -> None:
    """Connections that send a byte now and then: half of them headers, half a body."""
    heads = (
        b"POST /v1/predict HTTP/1.1\r\nX: ",
        b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\n",
    )
    turn = 0
    while not stop.is_set():
        turn += 1
        try:
            _, writer = await asyncio.open_connection(host, port)
            writer.write(heads[turn % 2])
            for _ in range(30):
                if stop.is_set():
                    break
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(1)
            writer.close()
        except ConnectionError:
            continue


def hostile_requests(good: bytes) -> dict[str, tuple[bytes, bytes]]:
    """Name -> head and body."""
    photo = Image.fromarray(np.random.RandomState(0).randint(0, 256, (300, 400, 3), dtype=np.uint8))
    jpeg = encoded(photo, "JPEG")
    svg = b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'><rect width='1e9' height='1e9'/></svg>"
    part = b'--x\r\nContent-Disposition: form-data; name="a"; filename="../../etc/passwd"\r\n\r\n'
    bodies = {
        "truncated png": good[: len(good) // 2],
        "truncated jpeg": jpeg[: len(jpeg) // 2],
        "damaged png": good[:60] + bytes(40) + good[100:],
        "bomb": bomb(60_000, 60_000),
        "bomb within the limit": bomb(4_000, 4_000),
        "texts": good[:-12] + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(30_000_000))) * 3 + good[-12:],
        "wrong type": b"%PDF-1.7\n" + bytes(5_000),
        "executable": b"\x7fELF" + bytes(5_000),
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(%pipe%id) (w) file\n",
        "svg": svg,
        "polyglot": good + b"<script>alert(1)</script>",
        "gif and script": b"GIF89a/*" + bytes(50) + b"*/=alert(1)",
        "empty": b"",
    }
    requests = {name: (head(len(body)), body) for name, body in bodies.items()}
    return requests | {
        "too many bytes": (head(20 << 20), bytes(1 << 20)),
        "endless chunks": (head(None), (b"100000\r\n" + bytes(1 << 20) + b"\r\n") * 11),
        "form": (head(None, FORM, 300), (part + svg + b"\r\n--x--")[:300].ljust(300)),
        "many parts": (head(None, FORM, 20 * len(part + b"1\r\n")), (part + b"1\r\n") * 20),
        "broken form": (head(None, FORM, 100_000), (b"\r\n--" * 25_000)),
        "huge header": (b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000, b"\r\n\r\n"),
        "many headers": (b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 20_000, b"\r\n"),
        "no http": (bytes(range(256)), b""),
        "bad length": (b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", b"x"),
        "two lengths": (
            b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"0\r\n\r\n",
        ),
    }


def head(length: int | None, kind: bytes = b"image/png", fixed: int | None = None) -> bytes:
    size = length if length is not None else fixed
    told = b"Content-Length: %d" % size if size is not None else b"Transfer-Encoding: chunked"
    return b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: " + kind + b"\r\n" + told + b"\r\n\r\n"


def encoded(image: Any, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb(width: int, height: int) -> bytes:
    """A PNG of few bytes and so many pixels; beyond 4,000 rows only the first are there."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes((3 * width + 1) * min(height, 4_000 if width < 10_000 else 10)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
