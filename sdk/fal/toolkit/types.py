"""Inputs that are files: text that must be an https URL or a data URI, with what is behind it one call away.

What is wrong with the file becomes a 422 that names the field, wherever in the body it is: ``FalBaseModel`` tells each
value its place. Leaves fetching, and which addresses may be fetched from, to ``_fetching``.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn
from urllib.parse import urlsplit

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema
from typing_extensions import Self

from fal._context import runner
from fal.toolkit.exceptions import DownloadError
from fal.toolkit.file.file import name_in_url, read_url

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

MAX_HTTPS_URL_LENGTH = 2048
MAX_DATA_URI_LENGTH = 10 * 1024 * 1024
_DATA_URI = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(;[\w.+-]+=[^;,\s]*)*(;base64)?,", re.IGNORECASE)
_UNSAFE = re.compile(r"[^\w.-]")


class _Source(str):
    """Text that names a file. ``loc``: its place in the request's body, once a FalBaseModel holds it."""

    _longest: ClassVar[int] = MAX_DATA_URI_LENGTH
    _format: ClassVar[str] = "uri"

    loc: tuple[str | int, ...] = ()

    @classmethod
    def _parse(cls, text: str) -> Self:
        raise NotImplementedError

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        text = core_schema.str_schema(strip_whitespace=True, max_length=cls._longest)
        return core_schema.no_info_after_validator_function(cls._parse, text)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(schema), "format": cls._format, "minLength": 1}

    @contextmanager
    def as_temp_file(self) -> Iterator[Path]:
        """The content as a file with the URL's name, which is gone after the block.

        Raises:
            fastapi.HTTPException: 422 that names the field: it cannot be fetched.
        """
        data = self._read()
        with tempfile.TemporaryDirectory(prefix="fal-input-") as folder:
            name = "" if self[:5].lower() == "data:" else _UNSAFE.sub("_", name_in_url(self)).lstrip(".")[-100:]
            path = Path(folder) / (name or "file")
            path.write_bytes(data)
            yield path

    def _read(self, limit: int | None = None) -> bytes:
        try:
            return read_url(str(self), limit)[0]
        except DownloadError as error:
            self._refuse("file_download_error", f"Failed to download the file: {error}", error)

    def _refuse(self, kind: str, message: str, cause: Exception) -> NoReturn:
        from fastapi import HTTPException

        raise HTTPException(422, [{"loc": ["body", *self.loc], "msg": message, "type": kind}]) from cause


class HttpsUrl(_Source):
    """An https URL of at most 2048 characters. The platform's own files may come over http: it may have no TLS."""

    _longest = MAX_HTTPS_URL_LENGTH

    @classmethod
    def _parse(cls, text: str) -> Self:
        return cls(_https_url(text))


class DataUri(_Source):
    """A data URI of at most 10 MiB."""

    @classmethod
    def _parse(cls, text: str) -> Self:
        return cls(_data_uri(text))


class FileInput(_Source):
    """A file: an https URL, or a data URI."""

    @classmethod
    def _parse(cls, text: str) -> Self:
        return cls(_data_uri(text) if text[:5].lower() == "data:" else _https_url(text))


class ImageInput(FileInput):
    """A picture: an https URL, or a data URI."""

    def to_pil(self, convert_to_rgb: bool = True, fix_orientation: bool = True) -> PILImage:
        """The picture.

        Raises:
            fastapi.HTTPException: 422 that names the field: it cannot be fetched, is over 50 MiB, or is no picture.
        """
        from fal.toolkit.image.image import MAX_INPUT_BYTES, decode

        data = self._read(MAX_INPUT_BYTES)
        try:
            return decode(data, "RGB" if convert_to_rgb else None, fix_orientation=fix_orientation)
        except DownloadError as error:
            self._refuse("image_load_error", f"Failed to load the image: {error}", error)


def _https_url(text: str) -> str:
    if len(text) > MAX_HTTPS_URL_LENGTH:
        raise ValueError(f"a URL has at most {MAX_HTTPS_URL_LENGTH} characters, this one {len(text)}")
    try:
        parts = urlsplit(text)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError as error:
        raise ValueError(f"not a URL: {error}") from error
    around = runner()
    ours = around.storage_hosts if around is not None else frozenset()
    own = parts.scheme == "http" and (host in ours or f"{host}:{port}" in ours)
    if not host or any(character.isspace() for character in text) or not (parts.scheme == "https" or own):
        raise ValueError("must be an https URL (https://...) or a data URI (data:...)")
    return text


def _data_uri(text: str) -> str:
    if not _DATA_URI.match(text):
        raise ValueError("must be a data URI: data:<type>;base64,<data>")
    return text


def bind_places(value: Any, place: tuple[str | int, ...] = ()) -> None:
    """Tell every file in ``value`` where it is."""
    if isinstance(value, _Source):
        value.loc = place
    elif isinstance(value, dict):
        for key, item in value.items():
            bind_places(item, (*place, str(key)))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            bind_places(item, (*place, index))
    elif hasattr(type(value), "model_fields"):
        for name, field in type(value).model_fields.items():
            bind_places(getattr(value, name, None), (*place, field.alias or name))
