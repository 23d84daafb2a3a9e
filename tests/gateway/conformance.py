"""Holds the control API's answers against its own document, in every test that asks for one.

Stricter than the document, which leaves room for more fields: an answer may hold those that are described, no others.
"""

from __future__ import annotations

import re
from typing import Any

import httpx
import jsonschema_rs

Json = dict[str, Any]


class Conformance:
    """The answers that a document allows."""

    def __init__(self, document: Json) -> None:
        self._components = closed(document["components"])
        self._paths = [
            (re.compile(re.sub(r"\{\w+\}", "[^/]+", path)), methods) for path, methods in document["paths"].items()
        ]

    def check(self, response: httpx.Response) -> None:
        """Fails when the answer is not one of its operation's. Fits as a hook of httpx."""
        request = response.request
        path = request.url.raw_path.partition(b"?")[0].decode().rstrip("/")
        methods: Json = next((methods for pattern, methods in self._paths if pattern.fullmatch(path)), {})
        operation = methods.get(request.method.lower())
        if operation is None:
            return
        said = f"{request.method} {path} answered {response.status_code}"
        assert "x-fal-request-id" in response.headers, said
        answer = operation["responses"].get(str(response.status_code))
        assert answer is not None, f"{said}, which its document does not know"
        if "$ref" in answer:
            answer = self._components["responses"][answer["$ref"].rpartition("/")[2]]
        if "content" not in answer:
            assert response.read() == b"", f"{said} with a body"
            return
        content_type = response.headers["content-type"].partition(";")[0]
        assert content_type in answer["content"], f"{said} with {content_type}"
        if content_type == "application/json":
            response.read()
            schema = {**closed(answer["content"][content_type]["schema"]), "components": self._components}
            faults = [error.message for error in jsonschema_rs.validator_for(schema).iter_errors(response.json())]
            assert not faults, f"{said}: {faults}"


def closed(schema: Any) -> Any:
    """The schema with no room for other fields, where it lists some."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict):
        inner.setdefault("additionalProperties", False)
    return inner
