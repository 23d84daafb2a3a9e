"""What is kept on disk: blobs, files, bundles."""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from fal._spec import BundleFile

from scheduler.store import BlobStore, BundleStore, LocalFileStore, StoreFull

CODE = b"print('hello')\n"


def bundle_file(path: str, data: bytes = CODE, executable: bool = False) -> BundleFile:
    return BundleFile(path, hashlib.sha256(data).hexdigest(), len(data), executable)


def test_blobs(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "blobs")
    ref = blobs.put(b"large", app="alice/painter", request_id="q1")
    assert blobs.get(ref) == b"large"
    assert list(blobs.older_than(-1)) == [(ref, "alice/painter", "q1")]
    assert list(blobs.older_than(60)) == []
    blobs.delete(ref)
    blobs.delete(ref)
    with pytest.raises(FileNotFoundError):
        blobs.get(ref)


@pytest.mark.parametrize("ref", ["", "a/b", "../../etc", "a/../b", "/etc/passwd", "a/b/c/d", "a/b/\0"])
def test_a_blob_reference_cannot_leave_the_folder(tmp_path: Path, ref: str) -> None:
    with pytest.raises(ValueError, match="no blob reference"):
        BlobStore(tmp_path).get(ref)


def test_files(tmp_path: Path) -> None:
    store = LocalFileStore(tmp_path / "files")
    left = tmp_path / "left"
    left.write_bytes(b"png")
    store.adopt(left, "abcdefgh12", "a picture.png", "image/png")
    assert not left.exists()
    kept = store.open("abcdefgh12")
    assert kept is not None
    assert (kept.size, kept.name, kept.content_type, b"".join(store.blocks(kept, 0, kept.size))) == (
        3,
        "a picture.png",
        "image/png",
        b"png",
    )
    store.put(b"uploaded", "zyxwvuts98", "../evil", "text/html")
    uploaded = store.open("zyxwvuts98")
    assert uploaded is not None
    assert uploaded.name == "../evil"
    assert not list(tmp_path.rglob("evil*"))
    assert store.open("unknown-id") is None
    assert store.open("../../../etc/passwd") is None
    assert store.sweep(60) == 0
    assert store.sweep(-1) == 2
    assert store.open("abcdefgh12") is None
    with pytest.raises(ValueError, match="no file id"):
        store.put(b"", "../x", "x", "x")


def test_a_runner_cannot_have_us_serve_a_file_of_the_machine(tmp_path: Path) -> None:
    store = LocalFileStore(tmp_path / "files")
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    link, hard, pipe = tmp_path / "link", tmp_path / "hard", tmp_path / "pipe"
    link.symlink_to(secret)
    os.link(secret, hard)
    os.mkfifo(pipe)
    for path in (link, hard, pipe):
        with pytest.raises(ValueError, match="plain file"):
            store.adopt(path, "abcdefgh12", "x", "text/plain")
    assert store.open("abcdefgh12") is None


def test_a_file_from_another_file_system_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalFileStore(tmp_path / "files")
    left = tmp_path / "left"
    left.write_bytes(b"png")
    rename = Path.rename

    def across(self: Path, target: Path) -> Path:
        if self == left:
            raise OSError(18, "Invalid cross-device link")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", across)
    store.adopt(left, "abcdefgh12", "x", "image/png")
    kept = store.open("abcdefgh12")
    assert kept is not None
    assert b"".join(store.blocks(kept, 0, kept.size)) == b"png"
    assert not left.exists()


def test_bundles(tmp_path: Path) -> None:
    store = BundleStore(tmp_path / "bundles")
    listed = [bundle_file("app.py"), bundle_file("lib/tool.sh", b"#!/bin/sh\n", executable=True)]
    hashes = [file.sha256 for file in listed]
    assert store.missing([*hashes, *hashes]) == hashes
    store.put(hashes[0], CODE)
    store.put(hashes[1], b"#!/bin/sh\n")
    assert store.missing(hashes) == []
    identity = store.bundle_hash(listed)
    assert store.bundle_hash(reversed(listed)) == identity
    assert store.bundle_hash([bundle_file("other.py")]) != identity
    folder = store.materialise(identity, listed)
    assert store.materialise(identity, listed) == folder
    assert (folder / "app.py").read_bytes() == CODE
    assert stat.S_IMODE((folder / "lib/tool.sh").stat().st_mode) == 0o755
    assert [p.name for p in folder.parent.iterdir()] == [identity], "no half-made folder is left"
    with pytest.raises(ValueError, match="are not bundle"):
        store.materialise("f" * 64, listed)


def test_a_wrong_or_missing_object_is_refused(tmp_path: Path) -> None:
    store = BundleStore(tmp_path / "bundles")
    listed = [bundle_file("app.py")]
    with pytest.raises(ValueError, match="SHA-256"):
        store.put(listed[0].sha256, b"something else")
    with pytest.raises(ValueError, match="no SHA-256"):
        store.put("../../evil", CODE)
    with pytest.raises(FileNotFoundError):
        store.materialise(store.bundle_hash(listed), listed)
    assert list((tmp_path / "bundles" / "trees").iterdir()) == []


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../up.py", "a/../../b", "a//b", "./a", "a\\b", "a\0b", "."])
def test_a_bundle_path_cannot_leave_the_folder(tmp_path: Path, path: str) -> None:
    with pytest.raises(ValueError, match="no path inside"):
        BundleStore(tmp_path).bundle_hash([bundle_file(path)])


def test_a_path_occurs_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="twice"):
        BundleStore(tmp_path).bundle_hash([bundle_file("a.py"), bundle_file("a.py", b"other")])


@contextlib.contextmanager
def files_end_at(limit: int) -> Iterator[None]:
    """The kernel refuses to make any file of this process larger: a write fails half-way, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def plain_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def across_file_systems(self: Path, target: Path) -> Path:
    if self.name == "left":
        raise OSError(18, "Invalid cross-device link")
    os.rename(self, target)
    return target


def test_what_a_full_disk_did_not_take_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk filled up while a large payload was written: the half-written file stayed, so the disk stayed full,
    and Redis, which writes to the same one, refused every request of every app from then on."""
    large = b"x" * 1_000_000
    digest = hashlib.sha256(large).hexdigest()
    blobs, files, bundles = (
        BlobStore(tmp_path / "blobs"),
        LocalFileStore(tmp_path / "files"),
        BundleStore(tmp_path / "b"),
    )
    left = tmp_path / "left"
    left.write_bytes(large)
    with files_end_at(500_000):
        with pytest.raises(StoreFull, match="1000000 bytes: File too large"):
            blobs.put(large, app="alice/painter", request_id="q1")
        with pytest.raises(StoreFull):
            files.put(large, "abcdefgh12", "x", "image/png")
        with pytest.raises(StoreFull):
            bundles.put(digest, large)
        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", across_file_systems)
            with pytest.raises(StoreFull):
                files.adopt(left, "abcdefgh12", "x", "image/png")
    assert plain_files(tmp_path) == [left]
    assert bundles.missing([digest]) == [digest]


def test_the_last_of_the_disk_is_not_for_payloads(tmp_path: Path) -> None:
    """One output as large as the free space took all of it, and Redis, which syncs every write, went down with it."""
    floor = 1 << 60
    blobs, files = BlobStore(tmp_path / "blobs", floor), LocalFileStore(tmp_path / "f", floor)
    bundles = BundleStore(tmp_path / "b", floor)
    data = b"x" * 100_000
    digest = hashlib.sha256(data).hexdigest()
    with pytest.raises(StoreFull, match="disk is full: 100000 bytes were not stored"):
        blobs.put(data)
    with pytest.raises(StoreFull):
        files.put(data, "abcdefgh12", "x", "image/png")
    with pytest.raises(StoreFull):
        bundles.put(digest, data)
    BundleStore(tmp_path / "b").put(digest, data)
    listed = [bundle_file("large.bin", data)]
    with pytest.raises(StoreFull):
        bundles.materialise(bundles.bundle_hash(listed), listed)
    assert plain_files(tmp_path) == [tmp_path / "b" / "objects" / digest]
