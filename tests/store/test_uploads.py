"""Uploads in parts, and files that end by themselves."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from scheduler.store import Lifecycle, LocalFileStore, UploadStore
from scheduler.store.uploads import Upload

KEPT = Lifecycle(expires_in=3600, owner="tester", default="hide", decisions=(("friend", "allow"),))


def send(store: UploadStore, upload: Upload, number: int, data: bytes) -> str:
    with store.receiving(len(data)) as incoming:
        incoming.write(data)
        return store.keep_part(upload, number, incoming)


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_parts_in_any_order_become_one_file(tmp_path: Path) -> None:
    store, files = UploadStore(tmp_path / "uploads"), LocalFileStore(tmp_path / "files")
    upload = store.begin("f" * 32, "big.bin", "video/mp4", KEPT)
    assert store.get(upload.upload_id) == upload
    tags = [(number, send(store, upload, number, b"%d" % number * 3)) for number in (3, 1, 2)]
    assert store.received(upload) == 9
    files.adopt(store.assemble(upload, tags), upload.file_id, upload.name, upload.content_type, upload.lifecycle)
    store.finish(upload)
    stored = files.open(upload.file_id)
    assert stored is not None
    assert b"".join(files.blocks(stored, 0, stored.size)) == b"111222333"
    assert b"".join(files.blocks(stored, 2, 7)) == b"12223"
    assert left_in(tmp_path / "uploads") == {"upload.json"}


def test_a_part_sent_again_takes_the_place_of_the_first(tmp_path: Path) -> None:
    store = UploadStore(tmp_path)
    upload = store.begin("f" * 32, "x", "x/y", Lifecycle())
    old = send(store, upload, 1, b"old")
    new = send(store, upload, 1, b"new")
    assert store.received(upload) == 3
    with pytest.raises(ValueError, match="part 1 was not received"):
        store.assemble(upload, [(1, old)])
    assert store.assemble(upload, [(1, new)]).read_bytes() == b"new"


@pytest.mark.parametrize("tags", [[], [(2, "0" * 32)], [(1, "0" * 32)], [(1, "x"), (1, "x")]])
def test_parts_that_were_not_sent_make_no_file(tmp_path: Path, tags: list[tuple[int, str]]) -> None:
    store = UploadStore(tmp_path)
    upload = store.begin("f" * 32, "x", "x/y", Lifecycle())
    send(store, upload, 1, b"data")
    with pytest.raises(ValueError, match="part"):
        store.assemble(upload, tags)


@pytest.mark.parametrize("upload_id", ["", "..", "../files", "0" * 31, "0" * 32, "A" * 32])
def test_an_upload_id_is_never_a_path(tmp_path: Path, upload_id: str) -> None:
    (tmp_path / "upload.json").write_text("{}")
    assert UploadStore(tmp_path / "uploads").get(upload_id) is None


def test_what_is_received_and_not_wanted_is_gone(tmp_path: Path) -> None:
    store = UploadStore(tmp_path)
    with store.receiving(1) as incoming:
        incoming.write(b"x")
    assert left_in(tmp_path) == set()


def test_uploads_that_nobody_completes_are_given_up(tmp_path: Path) -> None:
    store = UploadStore(tmp_path)
    upload = store.begin("f" * 32, "x", "x/y", Lifecycle())
    send(store, upload, 1, b"data")
    (tmp_path / "left.part").write_bytes(b"of a process that was killed")
    assert store.sweep(60) == 0
    past = time.time() - 120
    for path in (tmp_path / upload.upload_id, tmp_path / "left.part"):
        os.utime(path, (past, past))
    assert store.sweep(60) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_file_ends_when_its_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = LocalFileStore(tmp_path)
    now = time.time()
    files.put(b"a", "a" * 32, "a", "x/y", Lifecycle(expires_in=60))
    files.put(b"b", "b" * 32, "b", "x/y", Lifecycle(expires_in=600))
    files.put(b"c", "c" * 32, "c", "x/y")
    assert files.sweep_expired() == 0
    monkeypatch.setattr(time, "time", lambda: now + 61)
    assert files.open("a" * 32) is None
    assert files.open("b" * 32) is not None
    monkeypatch.setattr(time, "time", lambda: now + 62)
    assert files.sweep_expired() == 1
    assert left_in(tmp_path / "aa") == set()
    assert files.open("c" * 32) is not None


def test_a_file_stored_again_for_longer_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = LocalFileStore(tmp_path)
    now = time.time()
    for seconds in (60, 6000):
        files.put(b"a", "a" * 32, "a", "x/y", Lifecycle(expires_in=seconds))
    monkeypatch.setattr(time, "time", lambda: now + 100)
    assert files.sweep_expired() == 0
    assert files.open("a" * 32) is not None


def test_who_may_have_a_file(tmp_path: Path) -> None:
    files = LocalFileStore(tmp_path)
    files.put(b"a", "a" * 32, "a", "x/y", KEPT)
    stored = files.open("a" * 32)
    assert stored is not None
    assert [stored.decision(owner) for owner in ("tester", "friend", "other", None)] == [
        "allow",
        "allow",
        "hide",
        "hide",
    ]
