"""Picture sizes: presets by name, or width and height."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

ImageSizePreset = Literal[
    "square_hd", "square", "portrait_4_3", "portrait_16_9", "landscape_4_3", "landscape_16_9"
]  # fmt: skip


class ImageSize(BaseModel):
    """Width and height in pixels."""

    width: int = Field(default=512, description="The width of the generated image.", gt=0, le=14142)
    height: int = Field(default=512, description="The height of the generated image.", gt=0, le=14142)


ImageSizeInput = ImageSize | ImageSizePreset

IMAGE_SIZE_PRESETS: dict[str, ImageSize] = {
    "square_hd": ImageSize(width=1024, height=1024),
    "square": ImageSize(width=512, height=512),
    "portrait_4_3": ImageSize(width=768, height=1024),
    "portrait_16_9": ImageSize(width=576, height=1024),
    "landscape_4_3": ImageSize(width=1024, height=768),
    "landscape_16_9": ImageSize(width=1024, height=576),
}


def get_image_size(source: ImageSizeInput) -> ImageSize:
    """The size that ``source`` means.

    Raises:
        TypeError: neither a size nor the name of a preset.
    """
    if isinstance(source, ImageSize):
        return source
    if isinstance(source, str) and source in IMAGE_SIZE_PRESETS:
        return IMAGE_SIZE_PRESETS[source].model_copy()
    raise TypeError(f"invalid value for ImageSize: {source!r}; presets are {', '.join(IMAGE_SIZE_PRESETS)}")
