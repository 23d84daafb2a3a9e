"""Hands files of user code to the platform: bytes on disk first, then one message, never a wait.

Owns file ids and names in URLs. Leaves storing and serving to the supervisor and the gateway.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from pathlib import Path
from urllib.parse import quote

from fal._context import Place, Values, current_request
from fal._runner.channel import Channel
from fal._runner.protocol import FileSaved
from fal._runner.values import PlatformValues

#: Bytes of the disk that no output may take: the platform's own records usually lie on the same one.
DISK_FLOOR = 64 * 1024 * 1024
_UNSAFE = re.compile(r"[\x00-\x1f\x7f/\\]+")


class PlatformFiles:
    """The runner as the toolkit sees it (``fal._context.Runner``). ``floor``: bytes of the disk to leave."""

    def __init__(self, channel: Channel, files_dir: str, storage_hosts: list[str], floor: int = DISK_FLOOR) -> None:
        self.storage_hosts = frozenset(host.lower() for host in storage_hosts)
        self.values: Values | None = PlatformValues(channel)
        self._channel = channel
        self._files_dir = Path(files_dir)
        self._floor = floor
        #: address under which the latest caller sees the platform; for threads that no request started
        self.latest_base_url = ""

    def store(self, source: bytes | Path, name: str, content_type: str) -> str | None:
        """Leave ``source`` (bytes, or a file to copy) for the platform and return its public URL.

        Returns:
            None before the first request: no caller has said yet where it sees the platform.

        Raises:
            OSError: ``source`` cannot be read, or the disk has no room for it; nothing is left behind.
        """
        place = self.reserve(name)
        if place is None:
            return None
        self.fill(place, source, name, content_type)
        return place.url

    def reserve(self, name: str) -> Place | None:
        """Where a file will be; None as in ``store``."""
        request = current_request()
        base_url = (request.base_url if request is not None else self.latest_base_url).rstrip("/")
        if not base_url:
            return None
        file_id = secrets.token_hex(16)
        return Place(file_id, f"{base_url}/cdn/files/{file_id}/{quote(safe_name(name))}", request)

    def fill(self, place: Place, source: bytes | Path, name: str, content_type: str) -> None:
        """Leave the file of a reserved place for the platform.

        It is kept as the request that reserved it wants, for it may be filled by a thread that belongs to none.

        Raises:
            OSError: as in ``store``.
        """
        target = self._files_dir / place.file_id
        self._require_room(source.stat().st_size if isinstance(source, Path) else len(source), name)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
        try:
            with open(descriptor, "wb") as out:
                if isinstance(source, Path):
                    with source.open("rb") as original:
                        shutil.copyfileobj(original, out, 1024 * 1024)
                else:
                    out.write(source)
        except BaseException:
            target.unlink(missing_ok=True)  # half a file would keep the disk full for everybody
            raise
        saved = FileSaved(place.file_id, safe_name(name), content_type)
        request = place.request
        if request is not None:
            saved.request_id = request.request_id
            saved.lifecycle = request.headers.get("x-fal-object-lifecycle-preference")
            saved.caller = request.headers.get("x-fal-caller-user-id")
        self._channel.send(saved)

    def _require_room(self, size: int, name: str) -> None:
        disk = os.statvfs(self._files_dir)
        free = disk.f_bavail * disk.f_frsize
        if free - size < self._floor:
            raise OSError(
                errno.ENOSPC,
                f"the platform's disk is full: {size} bytes were not stored, for {free} bytes are free and "
                f"{self._floor} of them are kept for the platform's own work",
                name,
            )


def safe_name(name: str) -> str:
    """``name`` as the last segment of a URL: no separators, no control characters, at most 128 characters."""
    name = _UNSAFE.sub("_", name).strip(". ") or "file"
    if len(name) > 128:
        stem, dot, extension = name.rpartition(".")
        name = stem[: 127 - len(extension)] + dot + extension if dot and len(extension) < 16 else name[:128]
    return name
