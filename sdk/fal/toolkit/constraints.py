"""Limits that a field states about its pictures: shown in the schema under ``x-fal``, never enforced."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, TypedDict


@dataclass(frozen=True)
class ImageSizeConstraints:
    """Sizes that a model can make, in pixels."""

    min_width: int | None = None
    min_height: int | None = None
    max_width: int | None = None
    max_height: int | None = None
    min_area: int | None = None
    max_area: int | None = None
    multiple_of: int | None = None
    min_aspect_ratio: float | None = None
    max_aspect_ratio: float | None = None


@dataclass(frozen=True)
class ImageValidationConfig:
    """Pictures that an input takes; sizes in bytes and pixels, ``timeout`` in seconds."""

    max_file_size: int | None = None
    min_width: int | None = None
    min_height: int | None = None
    max_width: int | None = None
    max_height: int | None = None
    min_aspect_ratio: float | None = None
    max_aspect_ratio: float | None = None
    timeout: float = 20.0


class ImageValidationOptions(TypedDict, total=False):
    """The same as keyword arguments."""

    max_file_size: int | None
    min_width: int | None
    min_height: int | None
    max_width: int | None
    max_height: int | None
    min_aspect_ratio: float | None
    max_aspect_ratio: float | None
    timeout: float | None


def to_xfal(config: ImageSizeConstraints | ImageValidationConfig) -> dict[str, Any]:
    """The limits that are set, as the schema shows them."""
    return {name: value for name, value in asdict(config).items() if value is not None}
