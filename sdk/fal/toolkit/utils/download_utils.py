"""Files, weights and git repositories that an app fetches and keeps under ``/data``."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from email.message import Message
from http.client import HTTPResponse
from pathlib import Path, PurePath

from fal.toolkit._fetching import open_url
from fal.toolkit.exceptions import DownloadError
from fal.toolkit.file.file import name_in_url
from fal.toolkit.paths import FAL_MODEL_WEIGHTS_DIR, FAL_PERSISTENT_DIR, FAL_REPOSITORY_DIR

_PIECE = 1024 * 1024
_USED = ".fal_used"
_DAY = 86_400.0
_UNSAFE = re.compile(r"[^\w.()+ -]")


def download_file(
    url: str,
    target_dir: str | PurePath,
    *,
    force: bool = False,
    request_headers: Mapping[str, str] | None = None,
    filesize_limit: int | None = None,
) -> Path:
    """Fetch ``url`` into ``target_dir`` and return the file's path.

    Args:
        target_dir: a relative one is under ``/data``.
        force: fetch even when a file of the same name and size is there.
        request_headers: sent along.
        filesize_limit: MiB.

    Raises:
        DownloadError: it cannot be fetched, leads to a private address, or is over the limit.
    """
    folder = Path(FAL_PERSISTENT_DIR) / target_dir  # an absolute target_dir replaces the left side
    limit = None if filesize_limit is None else filesize_limit * 1024 * 1024
    with open_url(url, request_headers) as answer:
        size = answer.length
        if limit is not None and size is not None and size > limit:
            raise DownloadError(f"{name_in_url(url)!r} has {size} bytes; the limit is {filesize_limit} MiB")
        target = folder / _file_name(url, answer)
        if not force and size is not None and target.is_file() and target.stat().st_size == size:
            return target
        folder.mkdir(parents=True, exist_ok=True)
        # Next to the target, so that the rename is atomic and no other runner sees half a file.
        descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=f".{target.name[:100]}.")
        try:
            with open(descriptor, "wb") as out:
                received = _copy(answer, out, limit)
            if size is not None and received != size:
                raise DownloadError(f"{target.name!r} broke off after {received} of {size} bytes")
            os.chmod(temporary, 0o644)
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    return target


def download_model_weights(url: str, force: bool = False, request_headers: Mapping[str, str] | None = None) -> Path:
    """Fetch weights once; later calls return the kept file without touching the network.

    Raises:
        DownloadError: as ``download_file``.
    """
    folder = Path(FAL_MODEL_WEIGHTS_DIR) / hashlib.sha256(url.encode()).hexdigest()
    kept = sorted(path for path in folder.glob("*") if not path.name.startswith(".")) if folder.is_dir() else []
    target = kept[0] if kept and not force else download_file(
        url, folder, force=force, request_headers=request_headers
    )  # fmt: skip
    _mark_used(folder)
    return target


def clone_repository(
    https_url: str,
    *,
    commit_hash: str | None = None,
    target_dir: str | PurePath | None = None,
    repo_name: str | None = None,
    force: bool = False,
    include_to_path: bool = False,
) -> Path:
    """Clone a git repository with its submodules, once, and return its folder.

    Args:
        commit_hash: at least 8 characters; the default branch when not given.
        target_dir: parent folder; a relative one is under ``/data``.
        repo_name: folder name; from the URL when not given.
        force: clone again although it is there.
        include_to_path: put the folder first on ``sys.path``.

    Raises:
        ValueError: ``commit_hash`` is too short, or the URL is not https.
        DownloadError: git is missing or failed.
    """
    if not https_url.startswith("https://"):
        raise ValueError(f"{https_url!r} is not an https URL")
    if commit_hash is not None and not re.fullmatch(r"[0-9a-fA-F]{8,64}", commit_hash):
        raise ValueError(f"commit hash {commit_hash!r} must be at least 8 hex digits")
    parent = Path(FAL_PERSISTENT_DIR) / (target_dir if target_dir is not None else FAL_REPOSITORY_DIR)
    name = repo_name or Path(name_in_url(https_url)).name.removesuffix(".git")
    if repo_name is None and commit_hash is not None:
        name = f"{name}-{commit_hash[:8]}"
    target = parent / name
    if force or not target.is_dir():
        parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=parent, prefix=f".{name}."))
        try:
            _git(work, "clone", "--recursive", https_url, "repo")
            if commit_hash is not None:
                _git(work / "repo", "checkout", "--recurse-submodules", commit_hash)
            if target.is_dir():
                os.replace(target, work / "old")
            os.replace(work / "repo", target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    if include_to_path and str(target) not in sys.path:
        sys.path.insert(0, str(target))
    return target


def _git(folder: Path, *arguments: str) -> None:
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    try:
        subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True, env=environment)
    except FileNotFoundError as error:
        raise DownloadError("git is not installed on this host") from error
    except subprocess.CalledProcessError as error:
        raise DownloadError(f"git {arguments[0]} failed: {error.stderr.strip()}") from error


def _copy(answer: HTTPResponse, out: object, limit: int | None) -> int:
    received = 0
    while piece := answer.read(_PIECE):
        received += len(piece)
        if limit is not None and received > limit:
            raise DownloadError(f"the file is over the limit of {limit // (1024 * 1024)} MiB")
        out.write(piece)  # type: ignore[attr-defined]
    return received


def _file_name(url: str, answer: HTTPResponse) -> str:
    name = ""
    if disposition := answer.getheader("Content-Disposition"):
        header = Message()
        header["Content-Disposition"] = disposition
        name = header.get_filename() or ""
    name = _UNSAFE.sub("_", (name or name_in_url(url)).rpartition("/")[2]).lstrip(".")[-150:]
    return name or hashlib.sha256(url.encode()).hexdigest()


def _mark_used(folder: Path) -> None:
    """Once a day, for whoever cleans up what nobody uses."""
    mark = folder / _USED
    try:
        if not mark.exists() or time.time() - mark.stat().st_mtime > _DAY:
            mark.touch()
    except OSError:
        pass  # a read-only /data is fine for reading
