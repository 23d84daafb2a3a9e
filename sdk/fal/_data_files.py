"""The folder that apps see as ``/data``, through the server: list, fetch, send, move, delete.

Owns paths and transfers. Leaves what is shown to ``fal.cli.files``.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import httpx

from fal._problem import Problem
from fal._server import ControlApi, StreamBroken

ROOT = PurePosixPath("/data")
#: What travels in one request; the server holds it in memory.
PART_BYTES = 10 * 1024 * 1024
_TRANSFER = httpx.Timeout(600.0, connect=10.0)

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Remote:
    """Something below ``/data``; ``changed_at`` as ISO 8601."""

    path: str
    size: int
    is_file: bool
    changed_at: str


def remote_path(given: str) -> str:
    """``models/x`` and ``/data/models/x`` are the same.

    Raises:
        Problem: it leads out of ``/data``.
    """
    path = PurePosixPath(given) if given.startswith("/") else ROOT / given
    if ".." in path.parts or path.parts[:2] != ROOT.parts:
        raise Problem(f"{given!r} is not in {ROOT}.", next_step=f"write it as {ROOT}/folder/file, or folder/file.")
    return str(path)


class DataFiles:
    """Every method raises Problem when the server refuses or breaks off."""

    def __init__(self, api: ControlApi) -> None:
        self._api = api

    def list(self, path: str) -> list[Remote]:
        """What a folder holds, by name; a file as itself; nothing when it is not there."""
        entries = self._api.json("GET", f"/rest/files/list/{quote(path)}")
        return [Remote(e["path"], int(e["size"]), bool(e["is_file"]), str(e["updated_time"])) for e in entries]

    def files_below(self, path: str) -> Iterator[Remote]:
        """All files of a folder and its folders, or the file itself."""
        for entry in self.list(path):
            if entry.is_file:
                yield entry
            else:
                yield from self.files_below(entry.path)

    def download(self, path: str, target: Path, advance: Advance) -> None:
        """Fetch a file; ``target`` is whole or not touched."""
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name[:60]}-", dir=target.parent)
        try:
            with (
                os.fdopen(descriptor, "wb") as file,
                self._api.stream("GET", f"/rest/files/file/{quote(path)}") as response,
            ):
                for block in response.iter_bytes(1 << 20):
                    file.write(block)
                    advance(len(block))
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, target)
        except StreamBroken as error:
            raise Problem(f"The download of {path} broke off: {error}.", next_step="try it again.") from error
        finally:
            Path(name).unlink(missing_ok=True)

    def upload(self, source: Path, path: str, advance: Advance) -> None:
        """Send a file; it is there whole or not at all."""
        try:
            with source.open("rb") as file:
                first = file.read(PART_BYTES)
                if len(first) < PART_BYTES:
                    self._send("POST", f"/rest/files/file/local/{quote(path)}", first)
                    advance(len(first))
                else:
                    self._in_parts(path, first, file, advance)
        except OSError as error:
            raise Problem(f"{source} cannot be read.", why=str(error)) from error

    def _in_parts(self, path: str, part: bytes, file: Any, advance: Advance) -> None:
        at = f"/rest/files/file/multipart/{quote(path)}"
        upload = f"{at}/{quote(str(self._api.json('POST', f'{at}/initiate')['upload_id']), safe='')}"
        try:
            parts: list[Any] = []
            while part:
                parts.append(self._send("PUT", f"{upload}/{len(parts) + 1}", part))
                advance(len(part))
                part = file.read(PART_BYTES)
            self._api.json("POST", f"{upload}/complete", json={"parts": parts}, timeout=_TRANSFER)
        except BaseException:
            self._api.request("POST", f"{upload}/cancel", allow=(400, 404))
            raise

    def _send(self, method: str, path: str, data: bytes) -> Any:
        files = {"file_upload": ("part", data, "application/octet-stream")}
        return self._api.json(method, path, files=files, timeout=_TRANSFER)

    def upload_url(self, url: str, path: str) -> None:
        """Have the server fetch a file; it is there whole or not at all."""
        self._api.json("POST", f"/rest/files/file/url/{quote(path)}", json={"url": url}, timeout=_TRANSFER)

    def move(self, path: str, destination: str) -> None:
        """Give a file or folder another place."""
        self._api.json("POST", f"/rest/files/rename/{quote(path)}", json={"destination": destination})

    def delete(self, path: str) -> None:
        """Delete a file, or a folder with all that is in it."""
        self._api.json("DELETE", f"/rest/files/file/{quote(path)}")


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
