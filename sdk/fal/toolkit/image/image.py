"""``Image``: a File that is a picture. Pillow is imported only when pixels are touched."""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, Field
from typing_extensions import Self

from fal.toolkit.exceptions import DownloadError
from fal.toolkit.file.file import File, read_url
from fal.toolkit.file.repositories import DEFAULT_FALLBACK, DEFAULT_REPOSITORY, Repositories, Repository
from fal.toolkit.image.sizes import ImageSize, ImageSizeInput, ImageSizePreset, get_image_size
from fal.toolkit.pydantic import ImageField

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

__all__ = [
    "Image",
    "ImageField",
    "ImageFormat",
    "ImageSize",
    "ImageSizeInput",
    "ImageSizePreset",
    "get_image_size",
]

ImageFormat = Literal["png", "jpeg", "jpg", "webp", "gif"]
MAX_INPUT_BYTES = 50 * 1024 * 1024


class Image(File):
    """A picture by its URL, with its size in pixels when known."""

    model_config = ConfigDict(json_schema_extra={"ui": {"field": "image"}})

    width: int | None = Field(default=None, description="The width of the image in pixels.", examples=[1024])
    height: int | None = Field(default=None, description="The height of the image in pixels.", examples=[1024])

    @classmethod
    def from_bytes(  # type: ignore[override]
        cls,
        data: bytes,
        format: ImageFormat = "png",
        size: ImageSize | None = None,
        file_name: str | None = None,
        repository: Repository = DEFAULT_REPOSITORY,
        fallback_repository: Repositories = DEFAULT_FALLBACK,
        request: Any = None,
        save_kwargs: dict[str, Any] | None = None,
        fallback_save_kwargs: dict[str, Any] | None = None,
    ) -> Self:
        """Store an encoded picture.

        Args:
            format: what ``data`` is encoded as.
            size: in pixels, when known.
            file_name, repository, fallback_repository, request: see ``File.from_bytes``.
        """
        kind = "jpeg" if format.lower() == "jpg" else format.lower()
        image = super().from_bytes(
            data,
            f"image/{kind}",
            file_name,
            repository,
            fallback_repository,
            request,
            save_kwargs,
            fallback_save_kwargs,
        )
        if size is not None:
            image.width, image.height = size.width, size.height
        return image

    @classmethod
    def from_pil(
        cls,
        pil_image: PILImage,
        format: ImageFormat | None = None,
        file_name: str | None = None,
        repository: Repository = DEFAULT_REPOSITORY,
        fallback_repository: Repositories = DEFAULT_FALLBACK,
        request: Any = None,
        save_kwargs: dict[str, Any] | None = None,
        fallback_save_kwargs: dict[str, Any] | None = None,
    ) -> Self:
        """Encode and store a Pillow picture.

        Args:
            format: the picture's own format, else png, when not given.
            file_name, repository, fallback_repository, request: see ``File.from_bytes``.
        """
        chosen: Any = (format or pil_image.format or "png").lower()
        options: dict[str, Any] = {}
        if chosen == "png":
            options = {"compress_level": 1}  # a quarter of the default's time for a few percent more bytes
        elif chosen in ("jpg", "jpeg"):
            chosen = "jpeg"
            options = {"quality": 95}
            if pil_image.mode not in ("RGB", "L", "CMYK"):
                pil_image = pil_image.convert("RGB")
        buffer = io.BytesIO()
        pil_image.save(buffer, format=chosen, **options)
        return cls.from_bytes(
            buffer.getvalue(),
            chosen,
            ImageSize.model_construct(width=pil_image.width, height=pil_image.height),
            file_name,
            repository,
            fallback_repository,
            request,
            save_kwargs,
            fallback_save_kwargs,
        )

    @classmethod
    async def from_pil_async(cls, pil_image: PILImage, *args: Any, **kwargs: Any) -> Self:
        """``from_pil`` off the event loop."""
        return await asyncio.to_thread(cls.from_pil, pil_image, *args, **kwargs)

    def to_pil(self, mode: str = "RGB") -> PILImage:
        """The picture's pixels, turned the way its camera was held.

        Raises:
            DownloadError: it cannot be fetched, is over 50 MiB, or is no picture.
        """
        data = self.file_data if self.file_data is not None else read_url(self.url, MAX_INPUT_BYTES)[0]
        return decode(data, mode)


def decode(data: bytes, mode: str | None = "RGB", *, fix_orientation: bool = True) -> PILImage:
    """Pixels of an encoded picture, turned as its EXIF says; ``mode`` None keeps the picture's own.

    Raises:
        DownloadError: it is no picture that Pillow can read.
    """
    from PIL import Image as Pillow
    from PIL import UnidentifiedImageError

    try:
        with Pillow.open(io.BytesIO(data)) as opened:
            return preprocess(opened, mode, fix_orientation=fix_orientation)
    except (UnidentifiedImageError, OSError, SyntaxError, Pillow.DecompressionBombError) as error:
        raise DownloadError(f"the file is no picture that can be read: {error}") from error


def preprocess(picture: PILImage, mode: str | None, *, fix_orientation: bool) -> PILImage:
    """A picture of its own, of the first frame: turned as its EXIF says, converted to ``mode`` unless that is None."""
    from PIL import ImageOps

    if fix_orientation:
        picture = ImageOps.exif_transpose(picture)
    return picture.convert(mode) if mode is not None else picture.copy()
