"""HTTP around the application: connections and headers within limits, headers of security, the token, the metrics."""

import asyncio
import hmac
import re
import time
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.process_collector import ProcessCollector
from starlette.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_BYTES = 16 << 10  # of a request's first lines; h11 refuses more
DRAIN_SECONDS = 1.0  # in which the rest of a refused body is read and dropped, so that the client reads the answer
OPEN_PATHS = re.compile(r"/(healthz|readyz|openapi\.json|page\.(css|js)|icon\.svg)?")  # that need no token
PORT = re.compile(rb":\d+$")
CROWDED = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
SECURITY = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self';"
        b" base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


def protocol(connections: int, seconds: float) -> type[H11Protocol]:
    """uvicorn's protocol for at most so many connections, each of which must send a request's headers, and take its
    answer, in so many seconds."""

    class Bounded(H11Protocol):
        timer: asyncio.TimerHandle | None = None
        writing: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > connections:
                transport.write(CROWDED)
                transport.close()
            else:
                self.timer = self.loop.call_later(seconds, self._late)

        def connection_lost(self, error: Exception | None) -> None:
            self._stop_timer()
            self.resume_writing()
            super().connection_lost(error)

        def pause_writing(self) -> None:
            super().pause_writing()
            self.writing = self.loop.call_later(seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self.writing is not None:
                self.writing.cancel()
                self.writing = None

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop_timer()
            elif self.timer is None:
                self.timer = self.loop.call_later(seconds, self._late)

        def _late(self) -> None:
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

        def _stop_timer(self) -> None:
            if self.timer is not None:
                self.timer.cancel()
                self.timer = None

    return Bounded


class Metrics:
    """What /metrics shows."""

    def __init__(self, pending: Callable[[], int], held: Callable[[], int], ready: Callable[[], bool]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        with_registry = {"namespace": "cifar_jax", "registry": self.registry}
        self.requests = Counter("requests", "Answers, by path and status.", ["path", "status"], **with_registry)  # type: ignore[arg-type]
        self.seconds = Histogram(
            "request_seconds",
            "From the headers of a request to those of its answer.",
            ["path"],
            buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
            **with_registry,  # type: ignore[arg-type]
        )
        self.batches = Histogram(
            "batch_images",
            "Images that were computed together.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            **with_registry,  # type: ignore[arg-type]
        )
        self.reloads = Counter("reloads", "Checkpoints that --watch loaded, or refused.", ["result"], **with_registry)  # type: ignore[arg-type]
        gauges = (
            ("pending_images", "Images that are accepted and not answered.", pending),
            ("held_bytes", "Bytes of the bodies in memory.", held),
            ("ready", "1 when the model is compiled.", ready),
        )
        for name, text, value in gauges:
            Gauge(name, text, **with_registry).set_function(value)  # type: ignore[arg-type]


class Guard:
    """Around the application: token, headers, metrics; and the rest of the body of a request that is refused."""

    def __init__(
        self, app: Any, metrics: Metrics, token: bytes | None, hosts: Iterable[str] | None, paths: Iterable[str]
    ) -> None:
        """`hosts` are the names that the service answers to, any if None."""
        self.app, self.metrics, self.paths = app, metrics, set(paths)
        self.hosts = None if hosts is None else {host.lower().encode() for host in hosts}
        self.expected = b"Bearer " + token if token is not None else None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, headers, path = time.perf_counter(), dict(scope["headers"]), scope["path"]
        shown = path if path in self.paths else "/v1/images/{id}" if path.startswith("/v1/images/") else "other"
        body_left = b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"

        async def tracked() -> Any:
            nonlocal body_left
            message = await receive()
            body_left = body_left and message.get("more_body", False)
            return message

        async def answered(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *SECURITY]
                if body_left:
                    if b"expect" not in headers:
                        await drain(tracked)
                    message["headers"].append((b"connection", b"close"))
                self.metrics.requests.labels(shown, message["status"]).inc()
                self.metrics.seconds.labels(shown).observe(time.perf_counter() - start)
            await send(message)

        app = self.app if self.allowed(scope, path, headers) else unauthorised
        if self.hosts is not None and PORT.sub(b"", headers.get(b"host", b"")).lower().strip(b"[]") not in self.hosts:
            app = misdirected
        await app(scope, tracked, answered)

    def allowed(self, scope: Any, path: str, headers: dict[bytes, bytes]) -> bool:
        """Compared in constant time. A browser's question before a request from another origin carries no token."""
        if self.expected is None or OPEN_PATHS.fullmatch(path) or scope["method"] == "OPTIONS":
            return True
        return hmac.compare_digest(headers.get(b"authorization", b""), self.expected)


unauthorised = JSONResponse(
    {"error": "this service needs a token: send the header 'Authorization: Bearer TOKEN'"},
    401,
    {"www-authenticate": "Bearer"},
)
misdirected = JSONResponse({"error": "this service does not answer to this name; --allow_host=NAME lets it"}, 403)


async def drain(receive: Any) -> None:
    """Reads the rest of a body for a while, and keeps nothing of it."""
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while (await receive()).get("more_body", False):
                pass
    except TimeoutError:
        pass
