"""Pictures in requests and answers."""

from __future__ import annotations

from fal.toolkit.image.image import Image, ImageFormat
from fal.toolkit.image.reading import filter_by, preprocess_image, read_image_from_url
from fal.toolkit.image.sizes import IMAGE_SIZE_PRESETS, ImageSize, ImageSizeInput, ImageSizePreset, get_image_size
from fal.toolkit.pydantic import ImageField, ImageSizeField

__all__ = [
    "IMAGE_SIZE_PRESETS",
    "Image",
    "ImageField",
    "ImageFormat",
    "ImageSize",
    "ImageSizeField",
    "ImageSizeInput",
    "ImageSizePreset",
    "filter_by",
    "get_image_size",
    "preprocess_image",
    "read_image_from_url",
]
