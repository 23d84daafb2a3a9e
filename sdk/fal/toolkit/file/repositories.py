"""Where the bytes of a File go: the platform's store inside a runner, a data URI anywhere else."""

from __future__ import annotations

import base64
import mimetypes
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from fal._context import runner
from fal.toolkit.exceptions import FileUploadException

DEFAULT_TYPE = "application/octet-stream"
#: Names that existing code uses for remote stores; here they all mean the platform's own.
PLATFORM_NAMES = frozenset({"fal", "fal_v2", "fal_v3", "cdn", "gcp_storage", "r2"})
IN_MEMORY = "in_memory"


@dataclass
class FileData:
    """Bytes with their type and name; both are filled in when missing."""

    data: bytes
    content_type: str | None = None
    file_name: str | None = None

    def __post_init__(self) -> None:
        if self.content_type is None:
            self.content_type = DEFAULT_TYPE
        if self.file_name is None:
            self.file_name = uuid.uuid4().hex + (mimetypes.guess_extension(self.content_type) or "")

    def as_bytes(self) -> bytes:
        """The bytes."""
        return self.data


@runtime_checkable
class FileRepository(Protocol):
    """Anything that can store a file and tell its URL; pass an instance as ``repository=``."""

    def save(self, data: FileData, **options: Any) -> str:
        """Store ``data`` and return its URL."""
        ...


class PlatformRepository:
    """The platform's store; a data URI while no platform or no caller is there."""

    def save(self, data: FileData, **options: Any) -> str:
        """Hand the bytes to the platform."""
        around = runner()
        url = around.store(data.data, data.file_name or "file", data.content_type or DEFAULT_TYPE) if around else None
        return url or InMemoryRepository().save(data)

    def save_path(self, path: Path, content_type: str, file_name: str) -> str:
        """Hand a file to the platform without reading it into memory."""
        around = runner()
        url = around.store(path, file_name, content_type) if around else None
        return url or InMemoryRepository().save(FileData(path.read_bytes(), content_type, file_name))


class InMemoryRepository:
    """The bytes travel inside the answer."""

    def save(self, data: FileData, **options: Any) -> str:
        """A ``data:`` URI."""
        return f"data:{data.content_type};base64,{base64.b64encode(data.data).decode('ascii')}"


def repository_called(name: str | FileRepository) -> FileRepository:
    """The store that ``name`` means.

    Raises:
        ValueError: there is none of that name.
    """
    if not isinstance(name, str):
        return name
    if name in PLATFORM_NAMES:
        return PlatformRepository()
    if name == IN_MEMORY:
        return InMemoryRepository()
    raise ValueError(f"unknown repository {name!r}; choose {IN_MEMORY!r}, {', '.join(sorted(PLATFORM_NAMES))}")


def save(
    data: FileData,
    repository: str | FileRepository,
    fallback: str | FileRepository | list[str | FileRepository] | None,
    options: dict[str, Any] | None,
    fallback_options: dict[str, Any] | None,
) -> str:
    """Store ``data`` in the first repository that takes it and return the URL.

    Raises:
        FileUploadException: none took it; lists every attempt.
    """
    fallbacks = fallback if isinstance(fallback, list) else [fallback] if fallback is not None else []
    attempts: list[str] = []
    for index, target in enumerate([repository, *fallbacks]):
        store = repository_called(target)
        try:
            return store.save(data, **((options if index == 0 else fallback_options) or {}))
        except Exception as error:  # noqa: BLE001 - a user's own store may raise anything; the next one gets its chance
            attempts.append(f"{target if isinstance(target, str) else type(target).__name__}: {error}")
    raise FileUploadException(f"{data.file_name} could not be stored; tried {'; '.join(attempts)}")
