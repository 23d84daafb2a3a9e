"""Pictures in requests and answers."""

from __future__ import annotations

from fal.toolkit.image.image import Image, ImageFormat
from fal.toolkit.image.reading import read_image_from_url
from fal.toolkit.image.sizes import IMAGE_SIZE_PRESETS, ImageSize, ImageSizeInput, ImageSizePreset, get_image_size

__all__ = [
    "IMAGE_SIZE_PRESETS",
    "Image",
    "ImageFormat",
    "ImageSize",
    "ImageSizeInput",
    "ImageSizePreset",
    "get_image_size",
    "read_image_from_url",
]
