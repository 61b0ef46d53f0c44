"""The application: what each path answers. `serve` runs it."""

import asyncio
import importlib.resources
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cifar_jax.inference.batching import Batcher, Busy, Failed, Unreadable
from cifar_jax.inference.service_http import Guard, Metrics
from cifar_jax.inference.service_images import FORMATS
from cifar_jax.inference.service_model import MOST_SIMILAR, Model
from cifar_jax.inference.service_openapi import description
from cifar_jax.inference.service_uploads import Reader, Refused, Upload

TOP = {"predict": 5, "similar": 10}  # entries of a result where the request does not say how many
PAGE = {"index.html": "text/html", "page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}


@dataclass(frozen=True)
class Limits:
    """What one request, and all of them together, may take."""

    max_bytes: int = 10 << 20  # of a request
    max_pixels: int = 16_000_000  # of an image
    max_images: int = 16  # of a request
    queue: int = 256  # images that are accepted and not answered
    batch: int = 32  # images that are computed together
    batch_delay: float = 10.0  # milliseconds that an image waits for others at most
    timeout: float = 10.0  # seconds, for the body to arrive, and again for the answer


class Service:
    """A model behind HTTP. `model` may be replaced at any time: requests keep the one that they came to."""

    def __init__(
        self, model: Model, limits: Limits, token: bytes | None, origins: list[str], hosts: list[str] | None = None
    ) -> None:
        """`origins` are those whose pages may ask, `hosts` the names that the service answers to, any if None."""
        self.model, self.limits = model, limits
        self.ready = False  # set when the model is compiled
        self.reader = Reader(limits.max_bytes, limits.max_images, limits.timeout)
        self.metrics = Metrics(lambda: self.batcher.pending, lambda: self.reader.held, lambda: self.ready)
        self.batcher = Batcher(
            self._decode,
            compute,
            limits.batch,
            limits.batch_delay / 1000,
            limits.queue,
            lambda key, count: key[0].best_count(key[1], count),
            self.metrics.batches.observe,
        )
        self.app = self._application(token, origins, hosts)

    def _application(self, token: bytes | None, origins: list[str], hosts: list[str] | None) -> Any:
        routes = [
            Route("/v1/predict", self.predict, methods=["POST"]),
            Route("/v1/similar", self.similar, methods=["POST"]),
            Route("/v1/model", self.about),
            Route("/v1/images/{id:int}", self.image),
            Route("/healthz", self.alive),
            Route("/readyz", self.readiness),
            Route("/metrics", self.measured),
            Route("/openapi.json", self.described),
            *(Route(f"/{name}" if name != "index.html" else "/", page(name)) for name in PAGE),
        ]
        handlers: dict[Any, Callable[..., Any]] = {Refused: refused, HTTPException: wrong, 500: broken}
        app = Starlette(routes=routes, exception_handlers=handlers)
        inner: Any = app
        if origins:
            headers = ["Authorization", "Content-Type"]
            inner = CORSMiddleware(app, origins, allow_methods=["GET", "POST"], allow_headers=headers)
        return Guard(inner, self.metrics, token, hosts, [route.path for route in routes])

    def _decode(self, key: tuple[Model, str], content: bytes, small: bool) -> Any:
        return key[0].decode(content, self.limits.max_pixels, small)

    async def predict(self, request: Request) -> Response:
        if not self.model.predicts:
            raise Refused(404, "this model makes no class predictions; ask /v1/similar")
        return await self._answer(request, "predict", "top", len(self.model.classifier.classes))

    async def similar(self, request: Request) -> Response:
        if self.model.index is None:
            raise Refused(404, "this service has no index; it is started with --index=DIR")
        return await self._answer(request, "similar", "neighbours", MOST_SIMILAR)

    async def _answer(self, request: Request, kind: str, name: str, most: int) -> Response:
        """`name` is the entry of a result that holds `top` things, of at most so many."""
        if not self.ready:
            raise Refused(503, "the model is not compiled yet; /readyz tells when it is", retry=True)
        top, model = top_of(request, kind, most), self.model
        async with self.reader.read(request.headers, request.receive) as uploads:
            results = await self._compute((model, kind), uploads)
        for result in results:
            if isinstance(result, Failed):
                raise result.error
        if all(isinstance(result, Unreadable) for result in results):
            raise Refused(results[0].status, sentence_of(uploads, results))
        answers = [
            {"name": upload.name, "error": result.reason}
            if isinstance(result, Unreadable)
            else {"name": upload.name, **result, name: result[name][:top], "error": None}
            for upload, result in zip(uploads, results, strict=True)
        ]
        return JSONResponse({"model": model.name, "results": answers}, headers={"cache-control": "no-store"})

    async def _compute(self, key: tuple[Model, str], uploads: list[Upload]) -> list[Any]:
        try:
            async with asyncio.timeout(self.limits.timeout):
                return await self.batcher.submit(key, [upload.content for upload in uploads])
        except Busy:
            raise Refused(429, "too many requests at once", retry=True) from None
        except TimeoutError:
            told = f"no answer within {self.limits.timeout:g} seconds"
            raise Refused(503, told, retry=True) from None

    async def about(self, request: Request) -> Response:
        model, limits = self.model, self.limits
        recipe, index = model.classifier.recipe, model.index
        return JSONResponse(
            {
                "model": model.name,
                "architecture": str(recipe.model.name),
                "image_shape": list(recipe.data.image_shape),
                "classes": list(model.classifier.classes),
                "temperature": model.classifier.temperature,
                "predicts": model.predicts,
                "index": {"images": len(index)} if index is not None else None,
                "limits": {
                    "bytes": limits.max_bytes,
                    "pixels": limits.max_pixels,
                    "images": limits.max_images,
                    "formats": list(FORMATS),
                },
            }
        )

    async def image(self, request: Request) -> Response:
        content = await asyncio.to_thread(self.model.picture, request.path_params["id"])
        if content is None:
            raise Refused(404, "the index has no such image, or its file is gone")
        return Response(content, 200, {"cache-control": "private, max-age=60"}, "image/png")

    async def alive(self, request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def measured(self, request: Request) -> Response:
        return Response(generate_latest(self.metrics.registry), 200, {"content-type": CONTENT_TYPE_LATEST})

    async def described(self, request: Request) -> Response:
        return JSONResponse(description(self.limits))

    async def readiness(self, request: Request) -> Response:
        if self.ready:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "compiling"}, 503, {"retry-after": "1"})


def compute(key: tuple[Model, str], images: list[np.ndarray]) -> list[dict[str, Any]]:
    """Runs in the thread of the batcher."""
    model, kind = key
    return model.compute(kind, np.stack(images))


def top_of(request: Request, kind: str, most: int) -> int:
    text = request.query_params.get("top")
    if text is None:
        return min(TOP[kind], most)
    if not (text.isascii() and text.isdigit() and len(text) < 5 and 1 <= int(text) <= most):
        raise Refused(400, f"top={json.dumps(text[:20])} is not possible; it is a number in 1..{most}")
    return int(text)


def sentence_of(uploads: list[Upload], results: list[Unreadable]) -> str:
    if len(uploads) == 1:
        return f"the image cannot be read: {results[0].reason}"
    return f"none of the {len(uploads)} images can be read, the first: {results[0].reason}"


def page(name: str) -> Callable[[Request], Awaitable[Response]]:
    """A file of the page, read once."""
    content = importlib.resources.files("cifar_jax.inference").joinpath("page", name).read_bytes()

    async def answer(request: Request) -> Response:
        return Response(content, 200, {"cache-control": "no-cache"}, PAGE[name])

    return answer


def refused(request: Request, error: Any) -> Response:
    headers = {"cache-control": "no-store"} | ({"retry-after": "1"} if error.retry else {})
    return JSONResponse({"error": error.sentence}, error.status, headers)


def wrong(request: Request, error: Any) -> Response:
    """Of Starlette: an unknown path, or a method that it does not take."""
    told = {404: "there is nothing at this path; /openapi.json describes the service", 405: "another method is needed"}
    return JSONResponse({"error": told.get(error.status_code, error.detail)}, error.status_code, error.headers)


def broken(request: Request, error: Any) -> Response:
    return JSONResponse({"error": "an error of the service; its log tells more"}, 500)
