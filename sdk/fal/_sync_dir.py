"""``fal.sync_dir``: a local folder's files in a folder below ``/data``, sending only what changed.

Owns the choice of files and the memory of what was sent. Leaves transfers to ``fal._data_files``.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fal._ignore import Ignore
from fal._needed import needed
from fal._problem import Problem

if TYPE_CHECKING:
    from fal._data_files import DataFiles

#: In the remote folder: what was sent last, path by path.
_MANIFEST = ".fal_hash"
_NEVER = frozenset({".git", "__pycache__", ".DS_Store", _MANIFEST})


def sync_dir(local_dir: str | os.PathLike[str], remote_dir: str, force_upload: bool = False) -> str:
    """Put a folder's files where apps see them; those that were sent before and are the same are not sent again.

    Files that the folder's own ``.gitignore`` names stay here. What was deleted here stays there.

    Args:
        local_dir: the folder.
        remote_dir: below ``/data``, such as ``/data/models``.
        force_upload: send everything.

    Returns:
        The remote folder as apps see it.

    Raises:
        ValueError: ``local_dir`` is no folder, or ``remote_dir`` is not below ``/data``.
        Problem: the platform refused or does not answer.
    """
    needed("httpx", "fal.sync_dir", "httpx")
    from fal._data_files import DataFiles, remote_path
    from fal._platform import find_server
    from fal._server import ControlApi

    folder = Path(local_dir).expanduser()
    if not folder.is_dir():
        raise ValueError(f"{str(local_dir)!r} is not a folder of this machine")
    if not remote_dir.startswith("/data/") or remote_dir.strip("/") == "data":
        raise ValueError(f"remote_dir is {remote_dir!r}; give a folder below /data, such as '/data/models'")
    target = remote_path(remote_dir).rstrip("/")
    files = DataFiles(ControlApi(find_server()))
    sent = {} if force_upload else _sent_before(files, target)
    now = {path: _digest(folder / path) for path in _files_in(folder)}
    changed = [path for path, digest in now.items() if sent.get(path) != digest]
    for path in changed:
        files.upload(folder / path, f"{target}/{path}", _quietly)
    if changed or not sent:
        with tempfile.TemporaryDirectory() as scratch:
            manifest = Path(scratch) / _MANIFEST
            manifest.write_text(json.dumps({**sent, **now}), encoding="utf-8")
            files.upload(manifest, f"{target}/{_MANIFEST}", _quietly)
    print(f"{target}: sent {len(changed)} of {len(now)} files of {folder}")
    return target


def _quietly(size: int) -> None:
    """Nobody watches."""


def _files_in(folder: Path) -> Iterator[str]:
    ignore = Ignore.of(folder / ".gitignore")
    for root, folders, names in os.walk(folder):
        here = Path(root).relative_to(folder)
        folders[:] = sorted(n for n in folders if n not in _NEVER and not ignore.has((here / n).as_posix(), True))
        for name in sorted(names):
            path = (here / name).as_posix()
            if name not in _NEVER and not ignore.has(path, False) and (folder / path).is_file():
                yield path


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sent_before(files: DataFiles, target: str) -> dict[str, str]:
    """What the remote folder's memory says, as far as the files are still there."""
    there = {entry.path for entry in files.files_below(target)}
    if f"{target}/{_MANIFEST}" not in there:
        return {}
    with tempfile.TemporaryDirectory() as scratch, suppress(ValueError, Problem):
        manifest = Path(scratch) / _MANIFEST
        files.download(f"{target}/{_MANIFEST}", manifest, _quietly)
        said = json.loads(manifest.read_text(encoding="utf-8"))
        if isinstance(said, dict):
            return {path: str(digest) for path, digest in said.items() if f"{target}/{path}" in there}
    return {}
