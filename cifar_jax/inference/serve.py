"""`serve`: a trained model over HTTP, on one machine. Start reading here; service_app.py holds the answers.

batching.py collects requests; service_uploads.py reads them; service_images.py refuses hostile images; service_model.py
is what answers; service_http.py has limits on connections and headers; page/ is what a browser shows.
"""

import contextlib
import gc
import logging
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from cifar_jax import process
from cifar_jax.errors import InputError

CONNECTIONS = 512  # open ones; more are answered with 429
HEADER_SECONDS = 10.0  # in which the headers of a request must arrive
WATCH_SECONDS = 1.0  # between two looks at the workdir
MEMORY_LOOKS = 5  # after which freed memory goes back to the system
LOCAL = ("127.0.0.1", "localhost", "::1")
GRACE_SECONDS = 5.0  # beyond the timeouts of a request, before what is not finished is dropped


@dataclass(frozen=True)
class Options:
    """What is served, where and to whom; the numbers as in `service_app.Limits`."""

    workdir: Path
    index: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    token_file: Path | None = None
    cors_origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    watch: bool = False
    max_bytes: int = 10 << 20
    max_pixels: int = 16_000_000
    max_images: int = 16
    queue: int = 256
    batch: int = 32
    batch_delay: float = 10.0
    timeout: float = 10.0
    data_dir: str | None = None

    def check(self) -> None:
        """Raises InputError on values that make no sense."""
        for name in ("max_bytes", "max_pixels", "max_images", "queue", "batch"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name}={getattr(self, name)} would refuse every request; it must be at least 1")
        if not 0 < self.timeout < float("inf"):
            raise InputError(f"--timeout={self.timeout} is no number of seconds; it must be above 0")
        if not 0 <= self.batch_delay <= 1000:
            raise InputError(f"--batch_delay={self.batch_delay} is not possible; it must be in 0..1000 milliseconds")
        if not 0 <= self.port <= 65535:
            raise InputError(f"--port={self.port} is no port; it must be in 0..65535 (0: any that is free)")
        if self.max_images > self.queue:
            raise InputError(f"--max_images={self.max_images} is more than the --queue={self.queue} holds")
        for origin in self.cors_origins:
            if not origin.startswith(("http://", "https://")) or origin.count("/") != 2:
                raise InputError(f"--cors_origin='{origin}' is no origin; give one such as https://example.org")


def serve(options: Options) -> int:
    """Answers until the first SIGINT or SIGTERM, finishes what was accepted, and returns 0.

    Raises InputError, before anything is served, where an option makes no sense, a library is missing, the port is in
    use, the token cannot be read, the workdir holds no checkpoint, or the index is of another model.
    """
    options.check()
    check_libraries()
    import uvicorn

    token = read_token(options.token_file) if options.token_file is not None else None
    with bound(options.host, options.port) as listening:
        from cifar_jax.inference import service_app, service_http, service_images, service_model

        service_images.limit_decoders()
        logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it logs each hostile form
        process.return_memory()
        start = time.perf_counter()
        before = service_model.state_of(options.workdir, options.index)
        model = service_model.load_model(options.workdir, options.index, options.data_dir)
        names = {field.name for field in fields(service_app.Limits)}
        limits = service_app.Limits(**{name: value for name, value in vars(options).items() if name in names})
        service = service_app.Service(model, limits, token, list(options.cors_origins), hosts_of(options))
        config = uvicorn.Config(
            service.app,
            http=service_http.protocol(CONNECTIONS, HEADER_SECONDS),
            ws="none",
            lifespan="off",
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=service_http.HEADER_BYTES,
            timeout_graceful_shutdown=int(2 * options.timeout + GRACE_SECONDS),
        )
        server = uvicorn.Server(config)
        failures: list[BaseException] = []
        url = f"http://{f'[{options.host}]' if ':' in options.host else options.host}:{listening.getsockname()[1]}"
        background = threading.Thread(
            target=_prepare, args=(service, server, options, before, url, start, failures), daemon=True
        )
        with process.stop_by(lambda: setattr(server, "should_exit", True)):
            background.start()
            server.run(sockets=[listening])
            service.batcher.close()
        if failures:
            raise failures[0]
    return 0


def _prepare(
    service: Any, server: Any, options: Options, before: Any, url: str, start: float, failures: list[BaseException]
) -> None:
    """Compiles while /healthz is answered already; then looks after memory and new checkpoints. A thread of its own."""
    try:
        service.model.warm(options.batch)
    except BaseException as error:
        failures.append(error)
        server.should_exit = True
        return
    freeze_objects()
    service.ready = True
    name = service.model.classifier.recipe.model.name
    print(f"{name} is served at {url} (ready after {time.perf_counter() - start:.1f} s)", flush=True)
    turn = 0
    while not server.should_exit:
        if turn % MEMORY_LOOKS == 0:
            process.return_memory()
        turn += 1
        time.sleep(WATCH_SECONDS)
        if options.watch:
            before = reload(service, options, before)


def freeze_objects() -> None:
    """Leaves what is there now out of full garbage collections. Under load one came every 2 s, and nothing was answered
    for the 0.2 s that it took (benchmarks/results/serve_collections.json). What an earlier model left is collected
    first."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def reload(service: Any, options: Options, before: Any) -> Any:
    """Replaces the model where the files changed, and returns their state. What cannot be used is told, and the model
    that is there goes on."""
    from cifar_jax.inference.service_model import load_model, state_of

    seen = state_of(options.workdir, options.index)
    if seen == before:
        return before
    try:
        model = load_model(options.workdir, options.index, options.data_dir)
        if same(model, service.model):
            return seen
        model.warm(options.batch)
    except Exception as error:  # a model that cannot be used must not end a service that can
        service.metrics.reloads.labels("refused").inc()
        print(f"warning: the new files are not used: {error}", file=sys.stderr, flush=True)
        return seen
    service.model = model
    freeze_objects()
    service.metrics.reloads.labels("loaded").inc()
    print(f"now serving model {model.name}", flush=True)
    return seen


def same(one: Any, other: Any) -> bool:
    """Whether two models answer alike."""
    parts = [
        (
            model.name,
            model.classifier.temperature,
            dict(model.classifier.thresholds),
            model.index and model.index.record,
        )
        for model in (one, other)
    ]
    return bool(parts[0] == parts[1])


def hosts_of(options: Options) -> list[str] | None:
    """The names that a service without a token answers to, where only this machine reaches it; any if None.

    A web page could otherwise let its own name point to this machine, and read the answers (DNS rebinding).
    """
    if options.host not in LOCAL or options.token_file is not None:
        return None
    return [*LOCAL, *options.hosts]


def check_libraries() -> None:
    """Raises InputError, with the command that installs them, where those of the extra are missing."""
    try:
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        remedy = "install it with pip install -c constraints.txt -e '.[serve]'"
        raise InputError(f"serve needs {error.name}, which is not installed; {remedy}") from error


def read_token(path: Path) -> bytes:
    """The token of a file, one line. Raises InputError where it cannot be read, is short, or is no token."""
    try:
        token = path.read_bytes().strip()
    except OSError as error:
        raise InputError(
            f"--token_file='{path}' cannot be read ({error.strerror}); name a file with a token"
        ) from error
    if len(token) < 16 or not token.isascii() or not token.decode().isprintable() or b" " in token:
        raise InputError(
            f"--token_file='{path}' holds no token: it is one line of at least 16 printable characters without spaces;"
            ' make one with python -c "import secrets; print(secrets.token_urlsafe())"'
        )
    return token


@contextlib.contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that does not listen yet. Raises InputError where the port is in use, or the address is not ours."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind)
    except OSError as error:
        raise InputError(f"--host='{host}' is no address of this machine ({error.strerror or error})") from error
    with listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(address)
            listening.listen(2048)  # else a second process could bind the port too
        except OSError as error:
            raise InputError(
                f"--port={port} cannot be used at {host} ({error.strerror}); name another, or 0 for any that is free"
            ) from error
        if host not in LOCAL:
            warnings.warn(
                f"the service can be reached from other machines, at {host}, and is not encrypted", stacklevel=3
            )
        yield listening
