"""Uploads on their way in: what callers send, on this disk until it is whole, then handed to the file store.

Owns the folder ``uploads/``: files being received, and a folder for each upload in parts. Calls block on the disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from .disk import FLOOR_BYTES, require_room
from .files import Decision, Lifecycle

MOST_PARTS = 10_000
_ID = re.compile(r"[0-9a-f]{32}")
_PART = re.compile(r"(\d{5})\.([0-9a-f]{32})")


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that comes in parts, and what it will be called."""

    upload_id: str
    file_id: str
    name: str
    content_type: str
    lifecycle: Lifecycle


class Incoming:
    """A file being received; ``digest`` is that of what came so far."""

    def __init__(self, path: Path, floor: int) -> None:
        self.path = path
        self.size = 0
        self._floor = floor
        self._digest = hashlib.sha256()
        self._file = path.open("wb", buffering=0)

    @property
    def digest(self) -> str:
        return self._digest.hexdigest()[:32]

    def write(self, data: bytes) -> None:
        """Takes a piece.

        Raises:
            StoreFull: the disk has no room for it.
        """
        require_room(self.path.parent, len(data), self._floor)
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)

    def close(self, *, whole: bool) -> None:
        """Nothing more comes; what is ``whole`` is on the disk afterwards."""
        if whole:
            os.fdatasync(self._file.fileno())
        self._file.close()


class UploadStore:
    """Uploads below ``root``. ``floor``: bytes of the disk to leave."""

    def __init__(self, root: Path, floor: int = FLOOR_BYTES) -> None:
        self.root = root
        self._floor = floor

    @contextlib.contextmanager
    def receiving(self, size: int) -> Iterator[Incoming]:
        """A new file to write; whatever nobody has taken over when the block ends is deleted.

        Args:
            size: bytes that are to come, as far as known.

        Raises:
            StoreFull: the disk has no room for them.
        """
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        require_room(self.root, size, self._floor)
        incoming = Incoming(self.root / f"{secrets.token_hex(16)}.part", self._floor)
        try:
            yield incoming
        finally:
            incoming.close(whole=False)
            incoming.path.unlink(missing_ok=True)

    def begin(self, file_id: str, name: str, content_type: str, lifecycle: Lifecycle) -> Upload:
        """An upload in parts."""
        upload = Upload(secrets.token_hex(16), file_id, name, content_type, lifecycle)
        folder = self.root / upload.upload_id
        folder.mkdir(mode=0o700, parents=True)
        (folder / "upload.json").write_bytes(orjson.dumps(asdict(upload)))
        return upload

    def get(self, upload_id: str) -> Upload | None:
        """The upload that was begun under an id, or None."""
        if not _ID.fullmatch(upload_id):
            return None
        try:
            found = orjson.loads((self.root / upload_id / "upload.json").read_bytes())
        except FileNotFoundError:
            return None
        kept = found.pop("lifecycle")
        default: Decision = kept["default"]
        decisions = tuple((owner, decision) for owner, decision in kept["decisions"])
        return Upload(**found, lifecycle=Lifecycle(kept["expires_in"], kept["owner"], default, decisions))

    def keep_part(self, upload: Upload, number: int, incoming: Incoming) -> str:
        """Takes over one part, in place of an earlier one of that number; returns its tag."""
        incoming.close(whole=True)
        folder = self.root / upload.upload_id
        target = folder / f"{number:05d}.{incoming.digest}"
        incoming.path.rename(target)
        for other in folder.glob(f"{number:05d}.*"):
            if other != target:
                other.unlink(missing_ok=True)
        return incoming.digest

    def received(self, upload: Upload) -> int:
        """Bytes of all parts that are here."""
        return sum(path.stat().st_size for path in self._parts(upload).values())

    def assemble(self, upload: Upload, tags: Sequence[tuple[int, str]]) -> Path:
        """One file of the parts with these numbers and tags, in the order of the numbers.

        Raises:
            ValueError: a part is missing, was not sent with that tag or is named twice.
            StoreFull: the disk has no room for it.
        """
        parts = self._parts(upload)
        wanted = dict(tags)
        if not tags or len(wanted) != len(tags):
            raise ValueError("every part must be named once")
        for number, tag in tags:
            if number not in parts or parts[number].name.partition(".")[2] != tag:
                raise ValueError(f"part {number} was not received with the etag {tag[:80]!r}")
        with contextlib.ExitStack() as stack:
            whole = stack.enter_context(self.receiving(self.received(upload)))
            for number in sorted(wanted):
                with parts[number].open("rb") as part:
                    while block := part.read(1024 * 1024):
                        whole.write(block)
            whole.close(whole=True)
            # Under this name it is left alone when the block ends.
            kept = self.root / upload.upload_id / "whole"
            whole.path.rename(kept)
        return kept

    def finish(self, upload: Upload) -> None:
        """The file is stored: the parts go; what was uploaded stays known, for a caller who did not hear of it."""
        for path in self._parts(upload).values():
            path.unlink(missing_ok=True)

    def sweep(self, older_than_s: float) -> int:
        """Deletes what was begun longer ago than this; returns how many."""
        limit = time.time() - older_than_s
        old = [path for path in self.root.glob("*") if path.stat().st_mtime < limit]
        for path in old:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        return len(old)

    def _parts(self, upload: Upload) -> dict[int, Path]:
        found = {path: _PART.fullmatch(path.name) for path in (self.root / upload.upload_id).glob("*.*")}
        return {int(match[1]): path for path, match in found.items() if match}
