"""Websocket and realtime endpoints in the OpenAPI document, which knows HTTP only: an extension, and a mirror ``post``
from which tools can make a form.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIWebSocketRoute
from pydantic.json_schema import models_json_schema

from fal._endpoints import RealtimeOptions
from fal._realtime_shape import Shape, is_model

_REF = "#/components/schemas/{model}"


def describe(app: FastAPI, document: dict[str, Any]) -> None:
    """Add ``app``'s websocket routes to its document."""
    paths = document.setdefault("paths", {})
    for route in app.routes:
        if isinstance(route, APIWebSocketRoute):
            found = getattr(route.endpoint, "fal_realtime", None)
            item = paths.setdefault(route.path, {})
            if found is None:
                item["x-fal-protocol"] = {"type": "websocket", "operationId": route.name}
            else:
                item["x-fal-protocol"] = _protocol(route.name, *found)
                if is_model(found[0].input_type):
                    item.setdefault("post", _mirror(route.name, found[0], document))


def _protocol(name: str, shape: Shape, options: RealtimeOptions) -> dict[str, Any]:
    return {
        "type": "realtime",
        "operationId": name,
        "realtimeMode": shape.mode,
        "contentType": options.content_type,
        "config": {
            "buffering": options.buffering,
            "sessionTimeout": options.session_timeout,
            "maxBatchSize": options.max_batch_size,
        },
    }


def _mirror(name: str, shape: Shape, document: dict[str, Any]) -> dict[str, Any]:
    models: list[tuple[Any, Any]] = [(shape.input_type, "validation")]
    if is_model(shape.output_type):
        models.append((shape.output_type, "serialization"))
    refs, definitions = models_json_schema(models, ref_template=_REF)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for model, schema in definitions.get("$defs", {}).items():
        schemas.setdefault(model, schema)
    answer: dict[str, Any] = {"description": "One frame"}
    if len(models) > 1:
        answer["content"] = {"application/json": {"schema": refs[models[1]]}}
    return {
        "operationId": name,
        "summary": name.replace("_", " ").title(),
        "requestBody": {"required": True, "content": {"application/json": {"schema": refs[models[0]]}}},
        "responses": {"200": answer},
    }
