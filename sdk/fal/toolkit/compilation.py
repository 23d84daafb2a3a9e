"""Kernels that torch.compile made, shared by workers: one archive per GPU type and key under ``/data``.

Compiling takes minutes, unpacking seconds. Leaves compiling, and what an archive may be used for, to torch, whose file
names carry the hashes of what they were made from.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fal.toolkit.paths import FAL_PERSISTENT_DIR

UNKNOWN_GPU = "UNKNOWN"
_KEY = re.compile(r"[A-Za-z0-9_][\w.+-]*(/[A-Za-z0-9_][\w.+-]*)*")
#: Words of a card's name that do not tell its type.
_NOISE = frozenset({"NVIDIA", "GEFORCE", "TESLA", "QUADRO"})
_QUERY = ("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")


def get_gpu_type() -> str:
    """``H100``, ``A100``, ``RTX4090``: what the driver calls the worker's first card; ``UNKNOWN`` without one."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0].strip()
    try:
        done = subprocess.run(
            [*_QUERY, *(["-i", first] if first else [])], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN_GPU
    words = [word for word in re.split(r"[\s-]+", done.stdout.partition("\n")[0].upper()) if word not in _NOISE]
    if words[:1] == ["RTX"] and len(words) > 1:
        return words[1] if words[1][:1].isalpha() else f"RTX{words[1]}"
    return next((re.sub(r"\W", "", word) for word in words if word), UNKNOWN_GPU) or UNKNOWN_GPU


def load_inductor_cache(cache_key: str) -> str:
    """Have torch compile into a folder that holds what other workers compiled under this key.

    Args:
        cache_key: names the model and its version, such as ``"mymodel/v1"``.

    Returns:
        What ``sync_inductor_cache`` wants, to see whether anything was added.

    Raises:
        ValueError: the key is no relative path of plain names.
    """
    archive = _archive(cache_key)
    local = _local_folder()
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(local)
    # Triton's binaries are most of it, and lie below torch's folder only when that is said nowhere else.
    os.environ["TRITON_CACHE_DIR"] = str(local / "triton")
    if archive.is_file():
        try:
            with zipfile.ZipFile(archive) as opened:
                opened.extractall(local)
            print(f"compiled kernels: {archive} unpacked")
        except (OSError, zipfile.BadZipFile) as error:
            print(f"compiled kernels: {archive} cannot be used, they are made again: {error}")
    return _fingerprint(local)


def sync_inductor_cache(cache_key: str, unpacked_dir_hash: str) -> None:
    """Share what was compiled since ``load_inductor_cache``, which returned ``unpacked_dir_hash``.

    The archive appears whole or not at all; of two workers that compiled at the same time the later one's stays.

    Raises:
        ValueError: as ``load_inductor_cache``.
        OSError: it cannot be written.
    """
    archive = _archive(cache_key)
    local = _local_folder()
    if _fingerprint(local) == unpacked_dir_hash:
        return
    archive.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=archive.parent, prefix=f".{archive.name}.")
    try:
        with open(descriptor, "wb") as out, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
            for path in _files(local):
                packed.write(path, path.relative_to(local))
        os.chmod(temporary, 0o644)
        os.replace(temporary, archive)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    print(f"compiled kernels: shared as {archive}")


@contextmanager
def synchronized_inductor_cache(cache_key: str) -> Iterator[None]:
    """``load_inductor_cache`` before the block and ``sync_inductor_cache`` after it, even when it fails.

    Raises:
        ValueError: as ``load_inductor_cache``.
    """
    before = load_inductor_cache(cache_key)
    try:
        yield
    finally:
        try:
            sync_inductor_cache(cache_key, before)
        except OSError as error:  # a model that compiled is worth more than its archive
            print(f"compiled kernels: not shared: {error}")


def _archive(cache_key: str) -> Path:
    if not _KEY.fullmatch(cache_key) or ".." in cache_key.split("/"):
        raise ValueError(f"cache key {cache_key!r} must be a name such as 'mymodel/v1'")
    return Path(FAL_PERSISTENT_DIR) / "inductor-caches" / get_gpu_type() / f"{cache_key}.zip"


def _local_folder() -> Path:
    """This process's own, so that what its neighbours compile is not taken for its doing."""
    folder = Path(tempfile.gettempdir()) / "inductor-cache" / str(os.getpid())
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _fingerprint(folder: Path) -> str:
    listing = "\n".join(f"{path.relative_to(folder)} {path.stat().st_size}" for path in _files(folder))
    return hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest()
