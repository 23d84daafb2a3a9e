"""Users' files in a bucket: ``ab/abcd…`` and ``ab/abcd….json``, which is written last, so that a file is there whole.

What expires has an empty object more, ``expiring/{second}.{id}``: a bucket lists names in order, so that what is due
comes first. Calls block on the network. Needs obstore (``pip install "keepwarm[s3]"``).
"""

from __future__ import annotations

import math
import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from .errors import StoreUnavailable
from .files import KEPT, Lifecycle, StoredFile, describe, described_file, is_file_id

#: Names the bucket, e.g. ``s3://models/files``; where it is and who we are there is told by the variables of AWS.
URL_VARIABLE = "KEEPWARM_FILES_URL"
_AWS = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION"),
    *("AWS_ENDPOINT_URL", "AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN"),
    *("AWS_ROLE_SESSION_NAME", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
    *("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",),
)
_BLOCK = 1024 * 1024
_DELETED_AT_ONCE = 500


def files_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Of the environment what says where files are kept; empty: in the data folder.

    Raises:
        ValueError: the URL is no bucket.
    """
    url = environ.get(URL_VARIABLE, "").strip()
    if not url:
        return {}
    if not url.startswith("s3://") or not url[5:].strip("/"):
        raise ValueError(f"{URL_VARIABLE}={url!r} is no bucket; give it as s3://BUCKET or s3://BUCKET/FOLDER")
    return {URL_VARIABLE: url} | {name: environ[name] for name in _AWS if name in environ}


class ObjectFileStore:
    """Files in the bucket that ``files_variables`` found.

    Raises:
        ValueError: obstore is not installed, or a variable cannot be used.
    """

    def __init__(self, variables: Mapping[str, str]) -> None:
        try:
            import obstore
            from obstore.store import S3Store
        except ImportError:
            raise ValueError(f'{URL_VARIABLE} is set, which needs obstore: pip install "keepwarm[s3]"') from None
        self._obstore = obstore
        config: Any = {name.lower(): variables[name] for name in _AWS if name in variables}
        plain = variables.get("AWS_ENDPOINT_URL", "").startswith("http://")
        try:
            self._bucket = S3Store.from_url(
                variables[URL_VARIABLE],
                config=config,
                client_options={"allow_http": plain, "connect_timeout": "5s"},
                retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=15)},
            )
        except (obstore.exceptions.BaseError, ValueError) as error:
            raise ValueError(f"the bucket of {URL_VARIABLE} cannot be used: {_short(error)}") from None

    def adopt(self, path: Path, file_id: str, name: str, content_type: str, lifecycle: Lifecycle = KEPT) -> None:
        """Takes over a file on this machine's disk; ``path`` is gone afterwards.

        Raises:
            ValueError: the id is malformed, or ``path`` is a link or no plain file. OSError: it cannot be read.
            StoreUnavailable: the bucket does not take it; ``path`` stays.
        """
        place = _place(file_id)
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            info = os.fstat(descriptor)
            # user code wrote it: a link could make us serve any file of the machine
            if not stat.S_ISREG(info.st_mode) or info.st_nlink != 1:
                raise ValueError(f"{path.name} is not a plain file of its own")
            self._store(place, file, info.st_size, name, content_type, lifecycle)
        path.unlink()

    def put(self, data: bytes, file_id: str, name: str, content_type: str, lifecycle: Lifecycle = KEPT) -> None:
        """Stores bytes under an id; whole or not at all.

        Raises:
            ValueError: the id is malformed. StoreUnavailable: the bucket does not take them.
        """
        self._store(_place(file_id), data, len(data), name, content_type, lifecycle)

    def open(self, file_id: str) -> StoredFile | None:
        """What is stored under the id and has not expired, or None.

        Raises:
            StoreUnavailable: the bucket does not answer.
        """
        if not is_file_id(file_id):
            return None
        try:
            with self._answering():
                described = bytes(self._obstore.get(self._bucket, f"{_place(file_id)}.json").bytes())
        except FileNotFoundError:
            return None
        return described_file(file_id, None, described)

    def blocks(self, file: StoredFile, start: int, end: int) -> Iterator[bytes]:
        """The bytes from ``start`` up to, not including, ``end``; fewer when the file is gone by then.

        Raises:
            StoreUnavailable: the bucket does not answer.
        """
        if start >= end:
            return
        try:
            with self._answering():
                found = self._obstore.get(self._bucket, _place(file.file_id), options={"range": (start, end)})
                for block in found.stream(min_chunk_size=_BLOCK):
                    yield bytes(block)
        except FileNotFoundError:
            return

    def sweep_expired(self) -> int:
        """Deletes files whose time is over; returns how many."""
        count = 0
        now = time.time()
        for path, _ in self._listed("expiring/"):
            due, _, file_id = path.rpartition("/")[2].partition(".")
            if int(due) > now:
                break
            # Stored again meanwhile with a longer life, it has a later mark.
            if self.open(file_id) is None:
                self._delete([_place(file_id), f"{_place(file_id)}.json"])
                count += 1
            self._delete([path])
        return count

    def sweep(self, older_than_s: float) -> int:
        """Deletes files stored longer ago than this; returns how many."""
        limit = datetime.fromtimestamp(time.time() - older_than_s, UTC)
        old = [path for path, at in self._listed("") if at < limit and not path.startswith("expiring/")]
        for start in range(0, len(old), _DELETED_AT_ONCE):
            self._delete(old[start : start + _DELETED_AT_ONCE])
        return sum(1 for path in old if not path.endswith(".json"))

    def _store(self, place: str, content: Any, size: int, name: str, content_type: str, lifecycle: Lifecycle) -> None:
        with self._answering(FileNotFoundError):
            if lifecycle.expires_in is not None:
                due = math.ceil(time.time() + lifecycle.expires_in)
                self._obstore.put(self._bucket, f"expiring/{due:012d}.{place.rpartition('/')[2]}", b"")
            self._obstore.put(self._bucket, place, content)
            self._obstore.put(self._bucket, f"{place}.json", describe(name, content_type, lifecycle, size))

    def _listed(self, prefix: str) -> Iterator[tuple[str, datetime]]:
        with self._answering():
            for page in self._obstore.list(self._bucket, prefix or None):
                for item in page:
                    yield item["path"], item["last_modified"]

    def _delete(self, paths: list[str]) -> None:
        with self._answering():
            for path in paths:
                try:
                    self._obstore.delete(self._bucket, path)
                except FileNotFoundError:
                    continue

    @contextmanager
    def _answering(self, *also: type[Exception]) -> Iterator[None]:
        """``also``: what is no answer here either, as that there is no such bucket where something is to be stored."""
        failures: tuple[type[Exception], ...] = (self._obstore.exceptions.BaseError, PermissionError, *also)
        try:
            yield
        except failures as error:
            raise StoreUnavailable(f"The bucket for files does not answer as it should: {_short(error)}") from error


def _place(file_id: str) -> str:
    if not is_file_id(file_id):
        raise ValueError(f"{file_id!r} is no file id")
    return f"{file_id[:2]}/{file_id}"


def _short(error: Exception) -> str:
    """The first line; what follows is the library's own view of it."""
    return (str(error).splitlines() or [""])[0][:300]
