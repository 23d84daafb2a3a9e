"""Where the bytes of a File go: the platform's store inside a runner, a data URI anywhere else, or a place of the
app's own; and what happens when the first choice fails. A caller's upload policy goes before all of them.
"""

from __future__ import annotations

import base64
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fal._context import runner
from fal._upload_policy import UploadPolicyInputError
from fal.toolkit.exceptions import FileUploadException
from fal.toolkit.file import policy_uploads
from fal.toolkit.file.types import DEFAULT_TYPE, FileData, FileRepository, PendingFile

#: Names that existing code uses for remote stores; here they all mean the platform's own.
PLATFORM_NAMES = frozenset({"fal", "fal_v2", "fal_v3", "cdn", "gcp_storage", "r2"})
DEPRECATED_NAMES = frozenset({"fal_v2", "cdn"})
IN_MEMORY = "in_memory"
DEFAULT_REPOSITORY = "fal_v3"
#: The same store once more, as in fal: its attempt is listed when the first one fails.
DEFAULT_FALLBACK = ("fal",)

Repository = str | FileRepository
Repositories = Repository | Sequence[Repository] | None
Options = dict[str, Any] | None
_T = TypeVar("_T")


class PlatformRepository(FileRepository):
    """The platform's store; a data URI while no platform or no caller is there."""

    def save(self, data: FileData, **options: Any) -> str:
        """Hand the bytes to the platform."""
        around = runner()
        url = around.store(data.data, data.file_name or "file", data.content_type or DEFAULT_TYPE) if around else None
        return url or InMemoryRepository().save(data)

    def save_file(self, file_path: str | Path, content_type: str, multipart: bool | None = None, **options: Any) -> str:
        """Hand a file to the platform without reading it into memory."""
        around, path = runner(), Path(file_path)
        url = around.store(path, path.name, content_type) if around else None
        return url or InMemoryRepository().save(FileData(path.read_bytes(), content_type, path.name))

    def reserve(self, content_type: str, file_name: str, **options: Any) -> PendingFile:
        """A URL of the platform."""
        around = runner()
        place = around.reserve(file_name) if around else None
        if around is None or place is None:
            raise OSError("no URL is known yet: reserve() works in an app on the platform, once it is being called")
        return PendingFile(
            place.url, content_type, file_name, lambda source: around.fill(place, source, file_name, content_type)
        )


class InMemoryRepository(FileRepository):
    """The bytes travel inside the answer."""

    def save(self, data: FileData, **options: Any) -> str:
        """A ``data:`` URI."""
        return f"data:{data.content_type};base64,{base64.b64encode(data.data).decode('ascii')}"


def repository_called(name: Repository) -> FileRepository:
    """The store that ``name`` means.

    Raises:
        ValueError: there is none of that name.
    """
    if not isinstance(name, str):
        return name
    if name in DEPRECATED_NAMES:
        warnings.warn(f"repository {name!r} is an old name of {DEFAULT_REPOSITORY!r}", DeprecationWarning, stacklevel=5)
    if name in PLATFORM_NAMES:
        return PlatformRepository()
    if name == IN_MEMORY:
        return InMemoryRepository()
    raise ValueError(f"unknown repository {name!r}; choose {IN_MEMORY!r}, {', '.join(sorted(PLATFORM_NAMES))}")


def save(
    data: FileData, repository: Repository, fallback: Repositories, options: Options, fallback_options: Options
) -> str:
    """Store ``data`` in the first repository that takes it and return the URL.

    Raises:
        FileUploadException: none took it; lists every attempt.
    """
    return _first(data.file_name or "file", repository, fallback, options, fallback_options, partial(_save, data))


def save_file(
    path: Path,
    content_type: str,
    multipart: bool | None,
    repository: Repository,
    fallback: Repositories,
    options: Options,
    fallback_options: Options,
) -> str:
    """The same for a file.

    Raises:
        FileUploadException: none took it; lists every attempt.
    """
    attempt = partial(_save_file, path, content_type, multipart)
    return _first(path.name, repository, fallback, options, fallback_options, attempt)


def reserve(
    content_type: str,
    file_name: str,
    repository: Repository,
    fallback: Repositories,
    options: Options,
    fallback_options: Options,
) -> PendingFile:
    """A URL of the first repository that gives one.

    Raises:
        FileUploadException: none did; lists every attempt.
    """
    attempt = partial(_reserve, content_type, file_name)
    return _first(file_name, repository, fallback, options, fallback_options, attempt)


def _save(data: FileData, store: FileRepository, options: dict[str, Any]) -> str:
    return store.save(data, **options)


def _save_file(
    path: Path, content_type: str, multipart: bool | None, store: FileRepository, options: dict[str, Any]
) -> str:
    if not hasattr(store, "save_file"):  # one that is no subclass of ours
        return store.save(FileData(path.read_bytes(), content_type, path.name), **options)
    saved = store.save_file(path, content_type, **({} if multipart is None else {"multipart": multipart}), **options)
    return saved[0] if isinstance(saved, tuple) else saved


def _reserve(content_type: str, file_name: str, store: FileRepository, options: dict[str, Any]) -> PendingFile:
    return store.reserve(content_type, file_name, **options)


def _first(
    file_name: str,
    repository: Repository,
    fallback: Repositories,
    options: Options,
    fallback_options: Options,
    attempt: Callable[[FileRepository, dict[str, Any]], _T],
) -> _T:
    if fallback is None:
        fallbacks: list[Repository] = []
    else:
        fallbacks = [fallback] if isinstance(fallback, str) or not isinstance(fallback, Sequence) else [*fallback]
    if (policy := policy_uploads.asked_for()) is not None:
        if not isinstance(repository, str) or repository not in PLATFORM_NAMES:
            raise UploadPolicyInputError(f"this app keeps {file_name} in a place of its own ({_name_of(repository)}).")
        return attempt(policy_uploads.PolicyRepository(policy), {})
    tried: list[str] = []
    for target in [repository, *fallbacks]:
        store = repository_called(target)
        try:
            return attempt(store, (fallback_options if tried else options) or {})
        except Exception as error:  # noqa: BLE001 - a user's own store may raise anything; the next one gets its chance
            said = str(error) or type(error).__name__
            tried.append(f"{_name_of(target)}: {said}")
    raise FileUploadException(f"{file_name} could not be stored; tried {'; '.join(tried)}")


def _name_of(repository: Repository) -> str:
    return repository if isinstance(repository, str) else type(repository).__name__
