"""The OpenAPI description of the service (OpenAPI 3.1)."""

from typing import Any

import cifar_jax

ERRORS = {
    "400": "the request is not well-formed, or holds no image",
    "401": "the token is missing or wrong",
    "403": "the name of the service is another one",
    "404": "the service has no such thing",
    "408": "the body did not arrive in time",
    "413": "too many bytes, images or pixels",
    "415": "the content is no image of the allowed formats",
    "422": "the image is damaged",
    "429": "too many requests at once; Retry-After says when to try again",
    "503": "the model is not compiled yet, or there was no answer in time",
}


def description(limits: Any) -> dict[str, Any]:
    """`limits` are those of `service_app`."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "cifar_jax",
            "version": cifar_jax.__version__,
            "description": "Classes of images, and the images that are most similar to them.",
        },
        "paths": {
            "/v1/predict": _upload("The classes of images", "Prediction", limits),
            "/v1/similar": _upload("The most similar images of the index", "Similar", limits),
            "/v1/model": {"get": _get("What is served", "Model", "401")},
            "/v1/images/{id}": {"get": _image()},
            "/healthz": {"get": _get("Whether the process is alive", "Status")},
            "/readyz": {"get": _get("Whether the model is compiled", "Status", "503")},
            "/metrics": {"get": {"summary": "Prometheus metrics", "responses": _text("text/plain") | _errors("401")}},
        },
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}, {}],
    }


def _upload(summary: str, schema: str, limits: Any) -> dict[str, Any]:
    files = {"type": "array", "items": {"type": "string", "format": "binary"}, "maxItems": limits.max_images}
    form = {"type": "object", "properties": {"image": files}}
    top = {"name": "top", "in": "query", "schema": {"type": "integer", "minimum": 1}}
    return {
        "post": {
            "summary": summary,
            "description": f"At most {limits.max_bytes} bytes, and {limits.max_pixels} pixels an image. Where some of"
            " several images cannot be read, their results have an error; where none can, the status is that of the"
            " first.",
            "parameters": [top],
            "requestBody": {
                "required": True,
                "content": {
                    "multipart/form-data": {"schema": form},
                    "image/*": {"schema": {"type": "string", "format": "binary"}},
                },
            },
            "responses": _answer(schema) | _errors(*ERRORS),
        }
    }


def _get(summary: str, schema: str, *errors: str) -> dict[str, Any]:
    return {"summary": summary, "responses": _answer(schema) | _errors(*errors)}


def _image() -> dict[str, Any]:
    parameter = {"name": "id", "in": "path", "required": True, "schema": {"type": "integer"}}
    responses = _text("image/png") | _errors("401", "404")
    return {"summary": "A picture of an image of the index", "parameters": [parameter], "responses": responses}


def _answer(schema: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"200": {"description": "the answer", "content": content}}


def _text(kind: str) -> dict[str, Any]:
    return {"200": {"description": "the answer", "content": {kind: {"schema": {"type": "string"}}}}}


def _errors(*names: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {name: {"description": ERRORS[name], "content": content} for name in names}


def _object(required: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": {**required, **more}}


def _schemas() -> dict[str, Any]:
    text, number, whole = {"type": "string"}, {"type": "number"}, {"type": "integer"}
    maybe = {"type": ["string", "null"]}
    ranked = _object({"class": text, "probability": number})
    neighbour = _object({"id": whole, "name": text, "label": maybe, "similarity": number})

    def results(**more: Any) -> dict[str, Any]:
        result = _object({"name": maybe, "error": maybe}, **more)
        return _object({"model": text, "results": {"type": "array", "items": result}})

    limits = _object({"bytes": whole, "pixels": whole, "images": whole, "formats": {"type": "array", "items": text}})
    return {
        "Prediction": results(**{"class": text, "top": {"type": "array", "items": ranked}}),
        "Similar": results(neighbours={"type": "array", "items": neighbour}),
        "Model": _object(
            {
                "model": text,
                "architecture": text,
                "image_shape": {"type": "array", "items": whole},
                "classes": {"type": "array", "items": text},
                "temperature": number,
                "predicts": {"type": "boolean"},
                "index": {"anyOf": [_object({"images": whole}), {"type": "null"}]},
                "limits": limits,
            }
        ),
        "Status": _object({"status": text}),
        "Error": _object({"error": text}),
    }
