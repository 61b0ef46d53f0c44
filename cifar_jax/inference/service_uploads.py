"""The images of a request: raw bytes or a form, within limits on time, bytes and number."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import python_multipart
from python_multipart.multipart import parse_options_header

IN_THREAD = 1 << 16  # bytes of a form that is parsed in a thread: a hostile one takes a while
FORM = b"multipart/form-data"
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class Refused(Exception):
    """A request that is answered with an error, one sentence."""

    def __init__(self, status: int, sentence: str, retry: bool = False) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence
        self.retry = retry  # whether the same request may succeed in a second


@dataclass(frozen=True)
class Upload:
    name: str | None  # that the client gave
    content: bytes


@dataclass
class Body:
    """Of a request, as it comes."""

    parts: list[bytes] = field(default_factory=list)
    size: int = 0

    def taken(self) -> bytes:
        """All of it; the parts are no longer kept."""
        parts, self.parts = self.parts, []
        return b"".join(parts)


@dataclass
class Reader:
    """Reads the bodies of requests. `held` bytes are in memory, of all requests that are not answered yet."""

    max_bytes: int  # of a request
    max_images: int
    timeout: float  # seconds
    held: int = field(default=0, init=False)

    @property
    def capacity(self) -> int:
        """Bytes of all requests."""
        return max(4 * self.max_bytes, 32 << 20)

    @contextlib.asynccontextmanager
    async def read(self, headers: Any, receive: Receive) -> AsyncIterator[list[Upload]]:
        """The images of a request; within it their bytes count as held. Raises Refused."""
        body = Body()
        try:
            try:
                async with asyncio.timeout(self.timeout):
                    await self._read(headers, receive, body)
            except TimeoutError:
                raise Refused(408, f"the body did not arrive within {self.timeout:g} seconds") from None
            yield await self._uploads(headers, body.taken())
        finally:
            self.held -= body.size

    async def _read(self, headers: Any, receive: Receive, body: "Body") -> None:
        declared = headers.get("content-length")
        if declared is not None and int(declared) > self.max_bytes:  # h11 lets only digits pass
            raise self._too_long()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refused(400, "the client has gone")
            part, more = message.get("body", b""), message.get("more_body", False)
            body.parts.append(part)
            body.size += len(part)
            self.held += len(part)
            if body.size > self.max_bytes:
                raise self._too_long()
            if self.held > self.capacity:
                raise Refused(429, "too many large requests at once", retry=True)

    def _too_long(self) -> Refused:
        return Refused(413, f"the body has more than {self.max_bytes} bytes, which is the limit of a request")

    async def _uploads(self, headers: Any, body: bytes) -> list[Upload]:
        kind, options = parse_options_header(headers.get("content-type"))
        if kind != FORM:
            uploads = [Upload(None, body)] if body else []
        elif len(body) > IN_THREAD:
            uploads = await asyncio.to_thread(self._parse, options, body)
        else:
            uploads = self._parse(options, body)
        if not uploads:
            raise Refused(400, "the request has no image; send its bytes, or a form with files")
        return uploads

    def _parse(self, options: dict[bytes, bytes], body: bytes) -> list[Upload]:
        uploads: list[Upload] = []

        def on_file(file: Any) -> None:
            if len(uploads) == self.max_images:
                raise Refused(413, f"the form has more than {self.max_images} images, which is the limit of a request")
            file.file_object.seek(0)
            name = (file.file_name or b"").decode("utf-8", "replace")
            uploads.append(Upload(name[:200] or None, file.file_object.read()))
            file.close()

        config = {"MAX_MEMORY_FILE_SIZE": self.max_bytes + 1}  # nothing is written to the disk
        try:
            parser = python_multipart.FormParser(
                FORM.decode(), lambda field: None, on_file, boundary=options.get(b"boundary"), config=config
            )
            parser.write(body)
            parser.finalize()
        except ValueError as error:  # of its own, and of the codings of parts
            raise Refused(400, f"the form is not well-formed ({str(error)[:200]})") from error
        return uploads
