"""What a repository takes and what it must be able to do; an app's own repositories subclass ``FileRepository``."""

from __future__ import annotations

import mimetypes
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

DEFAULT_TYPE = "application/octet-stream"

RepositoryId = Literal["fal_v3", "fal", "in_memory", "gcp_storage", "r2", "fal_v2", "cdn"]


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
            self.file_name = new_name(self.content_type)

    def as_bytes(self) -> bytes:
        """The bytes."""
        return self.data


class PendingFile:
    """A URL that is known before there is anything behind it.

    It may be answered at once; until ``complete`` it leads nowhere (404).

    Args:
        url: where the file will be.
        complete: stores the content there.
        abort: gives the place up; None where there is nothing to give up.
    """

    def __init__(
        self,
        url: str,
        content_type: str,
        file_name: str,
        complete: Callable[[bytes | Path], None],
        abort: Callable[[], None] | None = None,
    ) -> None:
        self.url = url
        self.content_type = content_type
        self.file_name = file_name
        self._complete = complete
        self._abort = abort
        self._over = ""

    def complete(self, data: bytes | str | Path) -> str:
        """Store the content, bytes or a file's path, and return the URL.

        Raises:
            ValueError: it was completed or aborted before.
        """
        self._end("completed")
        try:
            self._complete(Path(data) if isinstance(data, str) else data)
        except BaseException:
            self._over = ""  # a full disk may have room later
            raise
        return self.url

    def abort(self) -> None:
        """Nothing will come; does nothing when it was completed or aborted before."""
        if not self._over:
            self._end("aborted")
            if self._abort is not None:
                self._abort()

    def _end(self, how: str) -> None:
        if self._over:
            raise ValueError(f"the file at {self.url} was {self._over} before")
        self._over = how


class FileRepository:
    """Where files go. An app's own needs ``save``; the others have defaults or say that they are missing.

    Keyword arguments of all three are what the caller gave as ``save_kwargs``.
    """

    def save(self, data: FileData, **options: Any) -> str:
        """Store ``data`` and return its URL."""
        raise NotImplementedError(f"{type(self).__name__} does not define save()")

    def save_file(
        self, file_path: str | Path, content_type: str, multipart: bool | None = None, **options: Any
    ) -> str | tuple[str, FileData | None]:
        """Store a file and return its URL; ``save`` of all its bytes unless defined."""
        path = Path(file_path)
        return self.save(FileData(path.read_bytes(), content_type, path.name), **options)

    def reserve(self, content_type: str, file_name: str, **options: Any) -> PendingFile:
        """A URL whose content comes later."""
        raise NotImplementedError(f"{type(self).__name__} cannot reserve a URL before the content is there")


def new_name(content_type: str) -> str:
    """A name nobody else has, with the type's usual extension."""
    return uuid.uuid4().hex + (mimetypes.guess_extension(content_type) or "")
