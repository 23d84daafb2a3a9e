"""Reads a caller's picture; what is wrong with it becomes a 422 that names the field's problem."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fal.toolkit.exceptions import DownloadError
from fal.toolkit.file.file import read_url
from fal.toolkit.image.image import MAX_INPUT_BYTES, decode, preprocess

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage


def read_image_from_url(
    url: str,
    convert_to_rgb: bool = True,
    fix_orientation: bool = True,
    max_size: int | None = None,
) -> PILImage:
    """The picture behind an http, https or data URL.

    Args:
        convert_to_rgb: drop transparency and palettes.
        fix_orientation: turn it the way its camera was held.
        max_size: longest side in pixels; a larger picture is scaled down.

    Raises:
        fastapi.HTTPException: 422, the picture cannot be read.
    """
    from fastapi import HTTPException

    try:
        data, _ = read_url(url, MAX_INPUT_BYTES)
        picture = decode(data, "RGB" if convert_to_rgb else None, fix_orientation=fix_orientation)
    except DownloadError as error:
        raise HTTPException(422, f"Could not load the image: {error}") from error
    if max_size is not None and max(picture.size) > max_size:
        picture.thumbnail((max_size, max_size))
    return picture


def preprocess_image(image_pil: PILImage, convert_to_rgb: bool = True, fix_orientation: bool = True) -> PILImage:
    """The first frame of a picture, turned and converted as in ``read_image_from_url``."""
    return preprocess(image_pil, "RGB" if convert_to_rgb else None, fix_orientation=fix_orientation)


def filter_by(has_nsfw_concepts: Sequence[bool], images: Sequence[PILImage]) -> list[PILImage]:
    """The pictures, a black one of the same size in the place of each that is marked."""
    from PIL import Image as Pillow

    return [
        Pillow.new("RGB", image.size) if marked else image
        for image, marked in zip(images, has_nsfw_concepts, strict=True)
    ]
