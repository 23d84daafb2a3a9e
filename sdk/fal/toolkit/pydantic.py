"""Fields and a base model that say how the playground should show them."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from typing_extensions import Self

from fal.toolkit.constraints import ImageSizeConstraints, ImageValidationConfig, to_xfal

__all__ = [
    "AudioField",
    "FalBaseModel",
    "Field",
    "FileField",
    "Hidden",
    "ImageField",
    "ImageSizeField",
    "VideoField",
]


def _with_ui(ui: dict[str, Any], limits: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    extra: dict[str, Any] = dict(kwargs.pop("json_schema_extra", None) or {})
    extra["ui"] = {**ui, **extra.get("ui", {})}
    given = {key: _stated(value) for key, value in limits.items() if value is not None}
    if given:
        extra["x-fal"] = {**extra.get("x-fal", {}), **given}
    return Field(*args, json_schema_extra=extra, **kwargs)


def _stated(limits: Any) -> Any:
    return to_xfal(limits) if isinstance(limits, ImageSizeConstraints | ImageValidationConfig) else limits


def FileField(*args: Any, **kwargs: Any) -> Any:  # noqa: N802 - fal's public name
    """``Field`` shown as a file input."""
    return _with_ui({"field": "file"}, {}, args, kwargs)


def ImageField(*args: Any, **kwargs: Any) -> Any:  # noqa: N802 - fal's public name
    """``Field`` shown as a picture input."""
    return _with_ui({"field": "image"}, {}, args, kwargs)


def AudioField(*args: Any, **kwargs: Any) -> Any:  # noqa: N802 - fal's public name
    """``Field`` shown as a sound input."""
    return _with_ui({"field": "audio"}, {}, args, kwargs)


def VideoField(*args: Any, constraints: Any = None, normalization: Any = None, **kwargs: Any) -> Any:  # noqa: N802
    """``Field`` shown as a video input; limits are documentation and not enforced."""
    return _with_ui({"field": "video"}, {"constraints": constraints, "normalization": normalization}, args, kwargs)


def ImageSizeField(*args: Any, constraints: Any = None, normalization: Any = None, **kwargs: Any) -> Any:  # noqa: N802
    """``Field`` for a picture's size; limits are documentation and not enforced."""
    return _with_ui({}, {"constraints": constraints, "normalization": normalization}, args, kwargs)


def Hidden(field: Any) -> Any:  # noqa: N802 - fal's public name
    """A field with a default that the playground does not show.

    Raises:
        ValueError: the field has no default.
    """
    if field.is_required():
        raise ValueError("a hidden field needs a default: Hidden(Field(default=...))")
    extra = dict(field.json_schema_extra or {})
    extra["ui"] = {**extra.get("ui", {}), "hidden": True}
    field.json_schema_extra = extra
    field._attributes_set["json_schema_extra"] = extra  # what pydantic copies when it builds the model
    return field


class FalBaseModel(BaseModel):
    """A model whose schema lists ``FIELD_ORDERS`` first and leaves ``SCHEMA_IGNORES`` out, and whose files know their
    place in it: a picture that cannot be read is a 422 that names the field.
    """

    FIELD_ORDERS: ClassVar[list[str]] = []
    SCHEMA_IGNORES: ClassVar[set[str]] = set()

    @model_validator(mode="after")
    def _bind_places(self) -> Self:
        from fal.toolkit.types import bind_places

        bind_places(self)  # of nested models the outermost is the last to do so, and knows the whole way
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(handler(core_schema))
        properties = schema.get("properties", {})
        first = [name for name in cls.FIELD_ORDERS if name in properties]
        order = [*first, *(name for name in properties if name not in first)]
        schema["properties"] = {name: properties[name] for name in order if name not in cls.SCHEMA_IGNORES}
        return schema
