"""Users' files in a bucket, on a real S3 server process, with the promises that the local folder makes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from scheduler.store import FileStore, Lifecycle, LocalFileStore, ObjectFileStore, files_variables
from scheduler.store.errors import StoreUnavailable

ID = "abcdefgh12"


@pytest.fixture(params=["folder", "bucket"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> FileStore:
    """Both backends."""
    if request.param == "folder":
        return LocalFileStore(tmp_path / "files")
    variables = request.getfixturevalue("s3")
    folder = f"{variables['KEEPWARM_FILES_URL']}/{tmp_path.name}"
    return ObjectFileStore(files_variables(variables | {"KEEPWARM_FILES_URL": folder}))


def content(files: FileStore, file_id: str) -> bytes | None:
    stored = files.open(file_id)
    return None if stored is None else b"".join(files.blocks(stored, 0, stored.size))


def test_what_is_put_is_there(files: FileStore) -> None:
    files.put(b"picture", ID, "../a cat.png", "image/png", Lifecycle(owner="tester", default="hide"))
    stored = files.open(ID)
    assert stored is not None
    assert (stored.size, stored.name, stored.content_type) == (7, "../a cat.png", "image/png")
    assert (stored.decision("tester"), stored.decision(None)) == ("allow", "hide")
    assert b"".join(files.blocks(stored, 2, 5)) == b"ctu"
    assert b"".join(files.blocks(stored, 3, 3)) == b""
    assert files.open("unknown-id") is None
    assert files.open("../../etc/passwd") is None
    with pytest.raises(ValueError, match="no file id"):
        files.put(b"", "../x", "x", "x")


def test_a_file_of_a_runner_is_taken_over(files: FileStore, tmp_path: Path) -> None:
    left = tmp_path / "left"
    left.write_bytes(os.urandom(20) * 600_000)  # above the size from which a bucket gets parts
    before = left.read_bytes()
    files.adopt(left, ID, "large.bin", "x/y")
    assert not left.exists()
    assert content(files, ID) == before


def test_a_file_of_the_machine_is_not(files: FileStore, tmp_path: Path) -> None:
    secret, link, hard = tmp_path / "secret", tmp_path / "link", tmp_path / "hard"
    secret.write_text("s3cret")
    link.symlink_to(secret)
    os.link(secret, hard)
    for path in (link, hard):
        with pytest.raises((ValueError, OSError)):
            files.adopt(path, ID, "x", "text/plain")
    assert files.open(ID) is None


def test_an_empty_file(files: FileStore) -> None:
    files.put(b"", ID, "empty", "x/y")
    assert content(files, ID) == b""


def test_files_end(files: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    files.put(b"a", "a" * 32, "a", "x/y", Lifecycle(expires_in=60))
    files.put(b"b", "b" * 32, "b", "x/y", Lifecycle(expires_in=600))
    files.put(b"c", "c" * 32, "c", "x/y")
    assert files.sweep_expired() == 0
    monkeypatch.setattr(time, "time", lambda: now + 62)
    assert (files.sweep_expired(), files.sweep_expired()) == (1, 0)
    assert [content(files, letter * 32) for letter in "abc"] == [None, b"b", b"c"]


def test_old_files_are_deleted(files: FileStore) -> None:
    for letter in "ab":
        files.put(b"x", letter * 32, letter, "x/y", Lifecycle(expires_in=60))
    assert files.sweep(60) == 0
    assert files.sweep(-60) == 2
    assert files.open("a" * 32) is None


def test_a_bucket_that_does_not_answer(s3: dict[str, str]) -> None:
    files = ObjectFileStore(files_variables(s3 | {"KEEPWARM_FILES_URL": "s3://nobody-made-this"}))
    with pytest.raises(StoreUnavailable, match="bucket for files"):
        files.put(b"x", ID, "x", "x/y")


@pytest.mark.parametrize("url", ["bucket", "https://bucket", "s3://", "s3:///"])
def test_what_names_no_bucket(url: str) -> None:
    with pytest.raises(ValueError, match="KEEPWARM_FILES_URL"):
        files_variables({"KEEPWARM_FILES_URL": url})


def test_only_what_the_bucket_needs_is_taken_from_the_environment(s3: dict[str, str]) -> None:
    assert files_variables(s3 | {"AWS_CA_BUNDLE": "/roots", "AWS_PAGER": "less", "HOME": "/root"}) == s3
    assert files_variables({"AWS_REGION": "eu"}) == {}
