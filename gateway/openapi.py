"""The OpenAPI document of the control API, made of the route table, what handlers say of themselves, and ``shapes``.

There is no second copy: a route that says nothing of itself keeps the document, and its test, from being made.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from fal._limits import NUMBERS, bounds
from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from . import shapes, wire
from .operations import Media, Operation, describe, operation_of

PREFIX = "/api/v1/"
PATH = f"{PREFIX}openapi.json"
Json = dict[str, Any]

_REF = "#/components/schemas/{model}"
_NAMES = re.compile(r"\{(\w+)\}")
#: The parameters of paths; each is a part of a path in all of its routes.
_IN_PATHS: Mapping[str, tuple[Json, str]] = {
    "owner": ({"type": "string", "minLength": 1}, "Whose app it is: the owner of the key."),
    "app": ({"type": "string", "minLength": 1}, "The app's name, without the owner."),
    "revision": ({"type": "string", "minLength": 1}, "The name of a revision."),
    "letter": ({"type": "string", "minLength": 1}, "The id of the request that was given up."),
    "request_id": ({"type": "string", "minLength": 1}, "The id of a request."),
    "worker_id": ({"type": "string", "minLength": 1}, "The id of a worker."),
    "name": ({"type": "string", "minLength": 1}, "The name of a secret or a named environment."),
    "key_id": ({"type": "string", "minLength": 1}, "The first half of a key."),
    "sha256": ({"type": "string", "pattern": "^[0-9a-f]{64}$"}, "SHA-256 of the file, in lower-case hex."),
}
_REFUSALS = {
    400: "Something that was sent cannot be understood or is out of bounds.",
    401: "No key, or one that is not valid.",
    403: "The key belongs to another owner, or its scope is too small.",
    404: "There is no such thing.",
    409: "Not as things are; the detail says why.",
    413: "The body is too large.",
    503: "Redis or the disk takes nothing, or too many callers wait; try again after Retry-After.",
}
_SECURITY: Mapping[str, Json] = {
    "key": {"type": "apiKey", "in": "header", "name": "Authorization", "description": "`Key <id>:<secret>`"},
    "bearer": {"type": "http", "scheme": "bearer", "description": "`<id>:<secret>`"},
    "basic": {"type": "http", "scheme": "basic", "description": "id and secret as user and password"},
}
_REQUEST_ID = {"x-fal-request-id": {"$ref": "#/components/headers/RequestId"}}


class OpenApi:
    """Route ``/api/v1/openapi.json``. ``routes``: the whole table, which may still grow."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._routes = routes
        self._document: bytes | None = None

    def routes(self) -> list[Route]:
        return [Route(PATH, self.show, methods=["GET"])]

    @describe(200, shapes.Document, needs_key=False)
    async def show(self, request: Request) -> Response:
        """This document. It needs no key."""
        if self._document is None:
            self._document = wire.dumps(document(self._routes))
        return Response(self._document, media_type="application/json")


def document(routes: Sequence[Route]) -> Json:
    """OpenAPI 3.1 for those of the routes that belong to the control API.

    Raises:
        LookupError: a handler or a parameter of a path is described nowhere.
    """
    found = [(route, operation_of(route.endpoint)) for route in routes if route.path.startswith(PREFIX)]
    schemas = _Schemas([operation for _, operation in found])
    paths: Json = {}
    for route, operation in found:
        for method in sorted((route.methods or set()) - {"HEAD"}):
            paths.setdefault(route.path, {})[method.lower()] = _operation(route, operation, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Keepwarm control API",
            "version": version("keepwarm"),
            "description": "Apps, their queues, logs and keys. Calls of apps are not here: each app has a document "
            "of its own at `/api/v1/apps/{owner}/{app}/openapi.json`.",
        },
        "servers": [{"url": "/"}],
        "security": [{name: []} for name in _SECURITY],
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "securitySchemes": dict(_SECURITY),
            "headers": {"RequestId": {"description": "Names the call in logs.", "schema": {"type": "string"}}},
            "responses": {str(status): _refusal(status, schemas) for status in _REFUSALS},
        },
    }


def _operation(route: Route, operation: Operation, schemas: _Schemas) -> Json:
    handler = route.endpoint
    noun = type(getattr(handler, "__self__", None)).__name__
    summary, _, more = _words(handler).partition("\n")
    statuses = {400, 503, *operation.refusals}
    names = _NAMES.findall(route.path)
    if operation.needs_key:
        statuses |= {401, 403}
    if "owner" in names:
        statuses.add(404)
    body: Json = {}
    if operation.body is not None:
        statuses.add(413)
        content = schemas.content((operation.body,), "validation")
        if operation.partial:
            content["application/json"]["schema"] = schemas.without_defaults(operation.body)
        body = {"requestBody": {"required": True, "content": content}}
    answer: Json = {"description": "Done.", "headers": _REQUEST_ID}
    if operation.answers:
        answer["content"] = schemas.content(operation.answers, "serialization")
    refused = {str(status): {"$ref": f"#/components/responses/{status}"} for status in sorted(statuses)}
    return {
        "operationId": f"{noun}.{handler.__name__}",
        "tags": [noun],
        "summary": summary.strip(),
        "description": more.strip(),
        "parameters": [
            *map(_in_path, names),
            *({**_parameter(p.schema, p.words), "name": p.name, "in": "query"} for p in operation.query),
        ],
        **body,
        "responses": {str(operation.status): answer, **refused},
        **({} if operation.needs_key else {"security": []}),
    }


def _words(handler: Any) -> str:
    """A handler's docstring without what it raises, which the statuses say."""
    return re.split(r"\n\s*Raises:", inspect.cleandoc(handler.__doc__ or ""))[0]


def _in_path(name: str) -> Json:
    if name not in _IN_PATHS:
        raise LookupError(f'{{{name}}} is part of a path of the control API: describe it in "gateway/openapi.py"')
    return {**_parameter(*_IN_PATHS[name]), "name": name, "in": "path", "required": True}


def _parameter(schema: Mapping[str, Any], words: str) -> Json:
    return {"schema": dict(schema), "description": words}


def _refusal(status: int, schemas: _Schemas) -> Json:
    headers: Json = dict(_REQUEST_ID)
    if status == 503:
        headers["retry-after"] = {"schema": {"type": "string"}}
    content = schemas.content((shapes.Error,), "serialization")
    return {"description": _REFUSALS[status], "headers": headers, "content": content}


class _Schemas:
    """JSON Schemas of all types that operations name, with what they share as components."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        wanted: list[tuple[Any, JsonSchemaMode]] = [(shapes.Error, "serialization")]
        for operation in operations:
            for answer in operation.answers:
                wanted += [(s, "serialization") for s in (answer.events if isinstance(answer, Media) else (answer,))]
            wanted.append((operation.body, "validation"))
        inputs = [
            (index, mode, TypeAdapter(shape))
            for index, (shape, mode) in enumerate(wanted)
            if shape is not None and not isinstance(shape, Media)
        ]
        self._wanted = wanted
        self._schemas, rest = TypeAdapter.json_schemas(inputs, ref_template=_REF)
        self.components: Json = rest["$defs"]
        for schema in self.components.values():
            _bound(schema)

    def content(self, kinds: tuple[Any, ...], mode: JsonSchemaMode) -> Json:
        """What the ``content`` of a body or an answer says."""
        found: Json = {}
        for kind in kinds:
            if not isinstance(kind, Media):
                found["application/json"] = {"schema": self._schema(kind, mode)}
            elif kind.events:
                # OpenAPI 3.1 has no word for what is inside a stream of events.
                found[kind.content_type] = {"x-event-data": {"oneOf": [self._schema(e, mode) for e in kind.events]}}
            else:
                found[kind.content_type] = {"schema": {"type": "string"}}
        return found

    def _schema(self, kind: Any, mode: JsonSchemaMode) -> Json:
        schema: Json = self._schemas[self._wanted.index((kind, mode)), mode]
        return schema

    def without_defaults(self, kind: type) -> Json:
        """The schema of a body whose fields stay as they are where they are left out."""
        schema: Json = copy.deepcopy(self.components[kind.__name__])
        for property_ in schema["properties"].values():
            property_.pop("default", None)
        return schema


def _bound(schema: Json) -> None:
    """The numbers that settings may have, which ``fal`` and the gateway check with the same table."""
    for name, property_ in schema.get("properties", {}).items():
        if name in NUMBERS:
            for choice in property_.get("anyOf", [property_]):
                if choice["type"] != "null":
                    choice.update(bounds(name))
