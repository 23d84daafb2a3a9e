"""``fal files`` against a real gateway."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.gateway.commands import fal
from tests.gateway.platform import RunningGateway


def test_up_down_move_and_away(gateway: RunningGateway, tmp_path: Path) -> None:
    small, there = tmp_path / "a b.txt", gateway.settings.data_dir / "data"
    small.write_bytes(b"content")
    assert b"1 file (7 bytes) in /data/notes/a b.txt" in fal(gateway, "files", "upload", str(small), "notes/").stderr
    assert (there / "notes" / "a b.txt").read_bytes() == b"content"
    shown = fal(gateway, "files", "ls", "/data/notes").stdout.decode()
    assert "/data/notes/a b.txt" in shown
    assert "7 bytes" in shown
    [entry] = json.loads(fal(gateway, "files", "list", "notes", "--json").stdout)
    assert (entry["path"], entry["size"], entry["is_file"]) == ("/data/notes/a b.txt", 7, True)
    fal(gateway, "files", "mv", "notes/a b.txt", "notes/c.txt")
    fal(gateway, "files", "download", "notes/c.txt", str(tmp_path / "back.txt"))
    assert (tmp_path / "back.txt").read_bytes() == b"content"
    fal(gateway, "files", "rm", "notes")
    assert not (there / "notes").exists()
    assert b"Nothing there" in fal(gateway, "files", "list", "notes").stdout


def test_folders_and_large_files(gateway: RunningGateway, tmp_path: Path) -> None:
    """25 MB go in three parts; a folder keeps its shape both ways."""
    source = tmp_path / "model"
    (source / "deep").mkdir(parents=True)
    large = os.urandom(25 * 1024 * 1024)
    (source / "weights.bin").write_bytes(large)
    (source / "deep" / "config.json").write_text("{}")
    (source / "empty").write_bytes(b"")
    assert b"3 files (25.0 MiB) in /data/model" in fal(gateway, "files", "upload", str(source)).stderr
    out = tmp_path / "out"
    out.mkdir()
    fal(gateway, "files", "download", "/data/model", str(out))
    assert (out / "model" / "weights.bin").read_bytes() == large
    assert (out / "model" / "deep" / "config.json").read_text() == "{}"
    assert (out / "model" / "empty").read_bytes() == b""
    assert [p.name for p in out.rglob(".*")] == []
    left = {p.name for p in (gateway.settings.data_dir / "uploads").rglob("*") if p.is_file()}
    assert left <= {"upload.json"}, "no part stays on the disk"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("list", "/etc"), "'/etc' is not in /data"),
        (("download", "../secrets.key"), "is not in /data"),
        (("download", "never/was"), "no file in /data/never/was"),
        (("rm", "never/was"), 'no "/data/never/was"'),
        (("rm", "/data"), "is the folder itself"),
    ],
)
def test_what_is_refused(gateway: RunningGateway, arguments: tuple[str, ...], says: str) -> None:
    assert says in fal(gateway, "files", *arguments, code=1).stderr.decode()
