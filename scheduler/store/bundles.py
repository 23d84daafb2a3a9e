"""Source files of revisions: each stored once under its SHA-256, and laid out as a folder per bundle.

Calls block on the disk. What belongs into a bundle is the SDK's choice.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

from fal._spec import BundleFile

from .disk import FLOOR_BYTES, require_room, whole_file

_SHA256 = re.compile(r"^[0-9a-f]{64}$")


class BundleStore:
    """Objects and trees under ``root``. ``floor``: bytes of the disk to leave."""

    def __init__(self, root: Path, floor: int = FLOOR_BYTES) -> None:
        self.root = root
        self._floor = floor

    def missing(self, hashes: Iterable[str]) -> list[str]:
        """Those of the hashes that are not stored yet, in order, each once."""
        return [digest for digest in dict.fromkeys(hashes) if not self._object(digest).exists()]

    def put(self, sha256: str, data: bytes) -> None:
        """Stores one file's content.

        Raises:
            ValueError: the content has another hash. StoreFull: the disk has no room for it.
        """
        with self.writing(sha256, len(data)) as write:
            write(data)

    @contextlib.contextmanager
    def writing(self, sha256: str, size: int) -> Iterator[Callable[[bytes], None]]:
        """Stores one file's content piece by piece: yields what takes a piece. Nothing is kept of a broken upload.

        Args:
            size: bytes that are to come, as far as known.

        Raises:
            ValueError: the content has another hash. StoreFull: the disk has no room for it.
        """
        digest = hashlib.sha256()
        target = self._object(sha256)
        with whole_file(target, size, self._floor) as file:

            def write(data: bytes) -> None:
                require_room(target.parent, len(data), self._floor)
                digest.update(data)
                file.write(data)

            yield write
            if digest.hexdigest() != sha256:
                raise ValueError(f"the content does not have the SHA-256 {sha256}")

    def bundle_hash(self, files: Iterable[BundleFile]) -> str:
        """The identity of a set of files: paths, contents and which are executable; order does not matter.

        Raises:
            ValueError: a path leaves the bundle or occurs twice.
        """
        digest = hashlib.sha256()
        seen: set[str] = set()
        for file in sorted(files, key=lambda f: f.path):
            path = _inside(file.path)
            if path in seen:
                raise ValueError(f"{path} occurs twice in the bundle")
            seen.add(path)
            digest.update(f"{path}\0{file.sha256}\0{int(file.executable)}\n".encode())
        return digest.hexdigest()

    def materialise(self, bundle_hash: str, files: Iterable[BundleFile]) -> Path:
        """The folder that holds the files, made if it is not there; appears whole or not at all.

        Raises:
            ValueError: the files do not have this hash, or a path leaves the bundle.
            FileNotFoundError: a file's content was never stored. StoreFull: the disk has no room for the folder.
        """
        listed = list(files)
        if self.bundle_hash(listed) != bundle_hash:
            raise ValueError(f"the files listed are not bundle {bundle_hash}")
        trees = self.root / "trees"
        target = trees / bundle_hash
        if target.is_dir():
            return target
        trees.mkdir(parents=True, exist_ok=True)
        require_room(trees, sum(file.size for file in listed), self._floor)
        partial = Path(tempfile.mkdtemp(dir=trees, prefix="."))
        try:
            for file in listed:
                place = partial / _inside(file.path)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self._object(file.sha256), place)
                place.chmod(0o755 if file.executable else 0o644)
            partial.chmod(0o755)
            try:
                partial.rename(target)
            except OSError:
                if not target.is_dir():  # else another process was faster
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return target

    def _object(self, sha256: str) -> Path:
        if not _SHA256.match(sha256):
            raise ValueError(f"{sha256!r} is no SHA-256 in hex")
        return self.root / "objects" / sha256


def _inside(path: str) -> str:
    """The path, if it stays inside the bundle."""
    parts = PurePosixPath(path).parts
    if (
        not parts
        or path.startswith("/")
        or ".." in parts
        or "\0" in path
        or "\\" in path
        or str(PurePosixPath(path)) != path
    ):
        raise ValueError(f"{path!r} is no path inside a bundle")
    return path
