"""Hands files of user code to the platform: bytes on disk first, then one message, never a wait.

Owns file ids and names in URLs. Leaves storing and serving to the supervisor and the gateway.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from pathlib import Path
from urllib.parse import quote

from fal._context import current_request
from fal._runner.channel import Channel
from fal._runner.protocol import FileSaved

_UNSAFE = re.compile(r"[\x00-\x1f\x7f/\\]+")


class PlatformFiles:
    """The runner as the toolkit sees it (``fal._context.Runner``)."""

    def __init__(self, channel: Channel, files_dir: str, storage_hosts: list[str]) -> None:
        self.storage_hosts = frozenset(host.lower() for host in storage_hosts)
        self._channel = channel
        self._files_dir = Path(files_dir)
        #: address under which the latest caller sees the platform; for threads that no request started
        self.latest_base_url = ""

    def store(self, source: bytes | Path, name: str, content_type: str) -> str | None:
        """Leave ``source`` (bytes, or a file to copy) for the platform and return its public URL.

        Returns:
            None before the first request: no caller has said yet where it sees the platform.
        """
        request = current_request()
        base_url = (request.base_url if request is not None else self.latest_base_url).rstrip("/")
        if not base_url:
            return None
        file_id = secrets.token_hex(16)
        target = self._files_dir / file_id
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
        with open(descriptor, "wb") as out:
            if isinstance(source, Path):
                with source.open("rb") as original:
                    shutil.copyfileobj(original, out, 1024 * 1024)
            else:
                out.write(source)
        name = safe_name(name)
        self._channel.send(FileSaved(file_id, name, content_type, request.request_id if request else None))
        return f"{base_url}/cdn/files/{file_id}/{quote(name)}"


def safe_name(name: str) -> str:
    """``name`` as the last segment of a URL: no separators, no control characters, at most 128 characters."""
    name = _UNSAFE.sub("_", name).strip(". ") or "file"
    if len(name) > 128:
        stem, dot, extension = name.rpartition(".")
        name = stem[: 127 - len(extension)] + dot + extension if dot and len(extension) < 16 else name[:128]
    return name
