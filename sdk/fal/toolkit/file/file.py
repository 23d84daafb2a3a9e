"""``File``: a URL with a type, a name and a size, in requests and in answers."""

from __future__ import annotations

import asyncio
import base64
import binascii
import tempfile
import weakref
import zipfile
from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree
from typing import Any
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from pydantic import BaseModel, Field, PrivateAttr, model_validator
from typing_extensions import Self

from fal.toolkit._fetching import fetch
from fal.toolkit.exceptions import DownloadError
from fal.toolkit.file import repositories
from fal.toolkit.file.repositories import DEFAULT_FALLBACK, DEFAULT_REPOSITORY, Repositories, Repository
from fal.toolkit.file.types import DEFAULT_TYPE, FileData, PendingFile, new_name


class File(BaseModel):
    """A file by its URL. In requests a plain URL string (http, https or data) is accepted too."""

    url: str = Field(description="The URL where the file can be downloaded from.")
    content_type: str | None = Field(default=None, description="The mime type of the file.", examples=["image/png"])
    file_name: str | None = Field(
        default=None,
        description="The name of the file. It will be auto-generated if not provided.",
        examples=["z9RV14K95DvU.png"],
    )
    file_size: int | None = Field(default=None, description="The size of the file in bytes.", examples=[4404019])
    file_data: bytes | None = Field(default=None, exclude=True, repr=False)

    @model_validator(mode="before")
    @classmethod
    def _from_url(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value.partition(":")[0].lower() not in ("http", "https", "data"):
            raise ValueError("value must be an http, https or data URL")
        return {"url": value}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> Any:
        schema = handler.resolve_ref_schema(handler(core_schema))
        schema.get("properties", {}).pop("file_data", None)
        return schema

    @classmethod
    def from_bytes(
        cls,
        data: bytes,
        content_type: str | None = None,
        file_name: str | None = None,
        repository: Repository = DEFAULT_REPOSITORY,
        fallback_repository: Repositories = DEFAULT_FALLBACK,
        request: Any = None,
        save_kwargs: dict[str, Any] | None = None,
        fallback_save_kwargs: dict[str, Any] | None = None,
    ) -> Self:
        """Store ``data``.

        Args:
            content_type: ``application/octet-stream`` when not given.
            file_name: last part of the URL; made up when not given.
            repository: where to; a name, or an object with ``save(FileData)``.
            fallback_repository: one or several, tried in order when that fails.
            request: accepted for compatibility.
            save_kwargs, fallback_save_kwargs: keyword arguments for the first repository, and for the others.

        Raises:
            FileUploadException: nowhere to store it; lists every attempt.
        """
        file = FileData(data, content_type, file_name)
        url = repositories.save(file, repository, fallback_repository, save_kwargs, fallback_save_kwargs)
        return cls(
            url=url,
            content_type=file.content_type,
            file_name=file.file_name,
            file_size=len(data),
            file_data=data,
        )

    @classmethod
    def from_path(
        cls,
        path: str | Path,
        content_type: str | None = None,
        repository: Repository = DEFAULT_REPOSITORY,
        multipart: bool | None = None,
        fallback_repository: Repositories = DEFAULT_FALLBACK,
        request: Any = None,
        save_kwargs: dict[str, Any] | None = None,
        fallback_save_kwargs: dict[str, Any] | None = None,
    ) -> Self:
        """Store a file; see ``from_bytes``. The type is not guessed from the name.

        Raises:
            FileNotFoundError: there is no such file.
            FileUploadException: nowhere to store it; lists every attempt.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"File {path} does not exist")
        content_type = content_type or DEFAULT_TYPE
        size = path.stat().st_size
        url = repositories.save_file(
            path, content_type, multipart, repository, fallback_repository, save_kwargs, fallback_save_kwargs
        )
        return cls(url=url, content_type=content_type, file_name=path.name, file_size=size)

    @classmethod
    def reserve(
        cls,
        content_type: str | None = None,
        file_name: str | None = None,
        repository: Repository = DEFAULT_REPOSITORY,
        fallback_repository: Repositories = DEFAULT_FALLBACK,
        request: Any = None,
        save_kwargs: dict[str, Any] | None = None,
        fallback_save_kwargs: dict[str, Any] | None = None,
    ) -> PendingFile:
        """A URL now, its content later: ``complete(data)`` stores it, ``abort()`` gives it up. See ``from_bytes``.

        Raises:
            FileUploadException: nobody gives a URL in advance; lists every attempt.
        """
        content_type = content_type or DEFAULT_TYPE
        name = file_name or new_name(content_type)
        return repositories.reserve(
            content_type, name, repository, fallback_repository, save_kwargs, fallback_save_kwargs
        )

    @classmethod
    async def from_bytes_async(cls, data: bytes, *args: Any, **kwargs: Any) -> Self:
        """``from_bytes`` off the event loop."""
        return await asyncio.to_thread(cls.from_bytes, data, *args, **kwargs)

    @classmethod
    async def from_path_async(cls, path: str | Path, *args: Any, **kwargs: Any) -> Self:
        """``from_path`` off the event loop."""
        return await asyncio.to_thread(cls.from_path, path, *args, **kwargs)

    @classmethod
    async def reserve_async(cls, *args: Any, **kwargs: Any) -> PendingFile:
        """``reserve`` off the event loop."""
        return await asyncio.to_thread(cls.reserve, *args, **kwargs)

    def as_bytes(self) -> bytes:
        """The content, fetched once.

        Raises:
            DownloadError: it cannot be fetched.
        """
        if self.file_data is None:
            self.file_data = read_url(self.url)[0]
        return self.file_data

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write the content to ``path``.

        Raises:
            FileExistsError: ``path`` exists and ``overwrite`` is False.
        """
        path = Path(path)
        if path.exists() and not overwrite:
            raise FileExistsError(f"File {path} already exists")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.as_bytes())
        return path

    async def save_async(self, path: str | Path, overwrite: bool = False) -> Path:
        """``save`` off the event loop."""
        return await asyncio.to_thread(self.save, path, overwrite)


class CompressedFile(File):
    """A zip archive whose files can be iterated; they are extracted into a folder that goes away with this object."""

    _folder: Path | None = PrivateAttr(default=None)

    def _extracted(self) -> Path:
        if self._folder is None:
            folder = Path(tempfile.mkdtemp(prefix="fal-archive-"))
            weakref.finalize(self, rmtree, folder, ignore_errors=True)
            archive = folder / ".archive.zip"
            archive.write_bytes(self.as_bytes())
            with zipfile.ZipFile(archive) as opened:
                for entry in opened.infolist():
                    # zipfile strips ".." and absolute paths itself and never makes links.
                    opened.extract(entry, folder)
            archive.unlink()
            self._folder = folder
        return self._folder

    @property
    def extract_dir(self) -> str | None:
        """The folder, once something was asked of it."""
        return None if self._folder is None else str(self._folder)

    def __iter__(self) -> Iterator[Path]:  # type: ignore[override]
        return (path for path in sorted(self._extracted().rglob("*")) if path.is_file())

    def glob(self, pattern: str) -> Iterator[Path]:
        """Extracted files that match ``pattern``."""
        return iter(sorted(self._extracted().glob(pattern)))


def read_url(url: str, limit: int | None = None) -> tuple[bytes, str | None]:
    """Content and type of an http, https or data URL.

    Raises:
        DownloadError: it cannot be read, or has more than ``limit`` bytes.
    """
    if url[:5].lower() != "data:":
        return fetch(url, limit=limit)
    head, comma, payload = url[5:].partition(",")
    if not comma:
        raise DownloadError("a data URI without a comma holds no data")
    try:
        data = base64.b64decode(unquote(payload)) if head.endswith(";base64") else unquote_to_bytes(payload)
    except binascii.Error as error:
        raise DownloadError(f"the data URI is not valid base64: {error}") from error
    if limit is not None and len(data) > limit:
        raise DownloadError(f"the data URI holds {len(data)} bytes; the limit is {limit}")
    return data, head.removesuffix(";base64") or None


def name_in_url(url: str) -> str:
    """The last part of the URL's path; may be empty."""
    return unquote(urlsplit(url).path.rpartition("/")[2])
