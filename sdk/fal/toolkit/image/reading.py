"""Reads a caller's picture; what is wrong with it becomes a 422 that names the field's problem."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fal.toolkit.exceptions import DownloadError
from fal.toolkit.file.file import read_url
from fal.toolkit.image.image import MAX_INPUT_BYTES, decode

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
        fix_orientation: accepted for compatibility; pictures always come the right way up.
        max_size: longest side in pixels; a larger picture is scaled down.

    Raises:
        fastapi.HTTPException: 422, the picture cannot be read.
    """
    from fastapi import HTTPException

    try:
        picture = decode(read_url(url, MAX_INPUT_BYTES)[0], "RGB" if convert_to_rgb else None)
    except DownloadError as error:
        raise HTTPException(422, f"Could not load the image: {error}") from error
    if max_size is not None and max(picture.size) > max_size:
        picture.thumbnail((max_size, max_size))
    return picture
