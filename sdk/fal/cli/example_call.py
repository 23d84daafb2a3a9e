"""A call that can be copied: curl with a body that the endpoint's input model accepts in shape.

Reads annotations only. Where they say nothing, the body is ``{}``.
"""

from __future__ import annotations

import inspect
import json
import shlex
import typing
from typing import Any

#: Values by the name of a field, where the type alone would look odd.
_BY_NAME = {"prompt": "rhino", "text": "hello", "name": "Ada", "sentence": "hello"}


def curl_command(url: str, body: Any, *, with_key: bool) -> str:
    """One line for a shell."""
    key = '-H "Authorization: Key $FAL_KEY" ' if with_key else ""
    data = shlex.quote(json.dumps(body, ensure_ascii=False))
    return f'curl -X POST {url} -H "Content-Type: application/json" {key}-d {data}'


def example_body(cls: type, method: str) -> Any:
    """A body for one endpoint: examples of the model where it has them, else a value of each required field's type."""
    handler = getattr(cls, method, None)
    if handler is None:
        return {}
    try:
        hints = typing.get_type_hints(handler)
        names = [name for name in inspect.signature(handler).parameters if name != "self"]
        bodies = {name: _from_schema(hints[name].model_json_schema()) for name in names if _is_model(hints.get(name))}
    except Exception:  # noqa: BLE001 - annotations are user code of any kind, and this is only an example
        return {}
    # FastAPI embeds each model under its parameter's name once there are several.
    return next(iter(bodies.values())) if len(bodies) == 1 else bodies


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and hasattr(annotation, "model_json_schema")


def _from_schema(schema: dict[str, Any]) -> Any:
    if isinstance(schema.get("examples"), list) and schema["examples"]:
        return schema["examples"][0]
    definitions = schema.get("$defs", {})
    properties = schema.get("properties", {})
    # Where everything has a default, one field shows how they are given.
    names = schema.get("required") or list(properties)[:1]
    return {name: _value(name, properties.get(name, {}), definitions) for name in names}


def _value(name: str, schema: dict[str, Any], definitions: dict[str, Any]) -> Any:
    if "$ref" in schema:
        schema = definitions.get(str(schema["$ref"]).rsplit("/", 1)[-1], {})
    if isinstance(schema.get("examples"), list) and schema["examples"]:
        return schema["examples"][0]
    if "default" in schema:
        return schema["default"]
    if schema.get("enum"):
        return schema["enum"][0]
    for union in ("anyOf", "oneOf", "allOf"):
        if schema.get(union):
            return _value(name, schema[union][0], definitions)
    return _of_type(name, schema, definitions)


def _of_type(name: str, schema: dict[str, Any], definitions: dict[str, Any]) -> Any:
    kind = schema.get("type")
    if kind == "object" or "properties" in schema:
        return {
            key: _value(key, schema.get("properties", {}).get(key, {}), definitions)
            for key in schema.get("required", [])
        }
    if kind == "array":
        return [_value(name, schema.get("items", {}), definitions)]
    if kind in ("integer", "number"):
        return schema.get("minimum", 1)
    if kind == "boolean":
        return True
    if name == "url" or name.endswith("_url") or schema.get("format") == "uri":
        return "https://example.com/picture.png"
    return _BY_NAME.get(name, "text")
