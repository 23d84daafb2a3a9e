"""The folder that user code writes to, looked into from outside: no link leads out of it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from scheduler.store import DataFolder, NotFound


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    """A folder with a file in a folder, and what an app might leave to lead us out."""
    folder = DataFolder(tmp_path / "data")
    put(folder, tmp_path, "/data/models/a.bin", b"weights")
    (tmp_path / "secret").write_text("of the machine")
    (tmp_path / "data" / "file-link").symlink_to(tmp_path / "secret")
    (tmp_path / "data" / "folder-link").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "data" / "pipe")
    return folder


def put(folder: DataFolder, tmp_path: Path, path: str, content: bytes) -> None:
    source = tmp_path / "incoming"
    source.write_bytes(content)
    folder.take(source, path)


@pytest.fixture
def other_disk() -> Iterator[Path]:
    """A folder that a rename from ``tmp_path`` does not reach."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def test_the_folder_may_lie_on_another_disk(tmp_path: Path, other_disk: Path) -> None:
    data = DataFolder(other_disk / "apps" / "data")
    for content in (b"first", b"second"):
        put(data, tmp_path, "/data/a.txt", content)
        assert read(data, "/data/a.txt") == content
    assert os.listdir(other_disk / "apps" / "data") == ["a.txt"]
    assert not (tmp_path / "incoming").exists()


def read(folder: DataFolder, path: str) -> bytes:
    file, size = folder.open(path)
    with file:
        content = file.read()
    assert len(content) == size
    return content


def test_files_come_and_go(data: DataFolder, tmp_path: Path) -> None:
    assert [(entry.path, entry.is_file) for entry in data.entries("/data")] == [("/data/models", False)]
    [entry] = data.entries("/data/models/")
    assert data.entries("/data/models/a.bin") == [entry]
    assert (entry.path, entry.size, entry.is_file) == ("/data/models/a.bin", 7, True)
    assert read(data, "/data/models/a.bin") == b"weights"
    put(data, tmp_path, "/data/models/a.bin", b"new")
    data.rename("/data/models/a.bin", "/data/other/deep/b.bin")
    assert read(data, "/data/other/deep/b.bin") == b"new"
    data.delete("/data/other/deep/b.bin")
    data.delete("/data/other")
    assert [entry.path for entry in data.entries("/data")] == ["/data/models"]


@pytest.mark.parametrize("path", ["/data/file-link", "/data/folder-link/secret", "/data/folder-link/data/models/a.bin"])
def test_links_lead_nowhere(data: DataFolder, tmp_path: Path, path: str) -> None:
    with pytest.raises(ValueError, match=r"link|directory|symbolic"):
        data.open(path)
    assert (tmp_path / "secret").read_text() == "of the machine"


def test_links_are_replaced_and_deleted_themselves(data: DataFolder, tmp_path: Path) -> None:
    put(data, tmp_path, "/data/file-link", b"mine")
    assert read(data, "/data/file-link") == b"mine"
    data.delete("/data/folder-link")
    assert (tmp_path / "secret").read_text() == "of the machine"
    assert read(data, "/data/models/a.bin") == b"weights"


def test_nothing_is_written_through_a_link(data: DataFolder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="folder-link"):
        put(data, tmp_path, "/data/folder-link/new", b"x")
    with pytest.raises(ValueError, match="folder-link"):
        data.rename("/data/models/a.bin", "/data/folder-link/out")
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "out").exists()


def test_a_pipe_is_no_file_and_holds_nobody_up(data: DataFolder) -> None:
    with pytest.raises(NotFound):
        data.open("/data/pipe")


@pytest.mark.parametrize(
    "path", ["", "/", "/etc/passwd", "/data/../etc/passwd", "/data/a/../../x", "/data/a\0b", "/database/x", "data2"]
)
def test_only_what_is_in_the_folder(data: DataFolder, path: str) -> None:
    for act in (data.entries, data.open, data.delete):
        with pytest.raises(ValueError, match="/data"):
            act(path)


@pytest.mark.parametrize("path", ["/data", "/data/", "/data/."])
def test_the_folder_itself_stays(data: DataFolder, path: str) -> None:
    with pytest.raises(ValueError, match="folder itself"):
        data.delete(path)


def test_what_is_not_there(data: DataFolder) -> None:
    for act in (data.entries, data.open, data.delete):
        with pytest.raises(NotFound, match="nowhere"):
            act("/data/nowhere/x")
    with pytest.raises(ValueError, match="Not a directory"):
        data.entries("/data/models/a.bin/x")
