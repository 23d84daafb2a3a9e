"""Files that an app saves, when the disk has no room for them."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from fal._runner.channel import Channel
from fal._runner.files import PlatformFiles

from tests.runner.harness import start

SOURCE = """
import resource

import fal
from fal.toolkit import File
from pydantic import BaseModel


class Input(BaseModel):
    size: int


class Output(BaseModel):
    file: File


class Demo(fal.App):
    def setup(self):
        # the kernel refuses to make any file larger: a write fails half-way, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    @fal.endpoint("/")
    def run(self, request: Input) -> Output:
        return Output(file=File.from_bytes(b"x" * request.size))
"""


def test_an_output_that_the_disk_does_not_take_fails_its_own_request_only(tmp_path: Path) -> None:
    """An app saved a file larger than the free space: half of it stayed, so that the disk stayed full and Redis, which
    writes to the same one, refused every request of every app."""
    with start(tmp_path, SOURCE) as runner:
        runner.ready()
        failed = runner.call(json.dumps({"size": 1_000_000}).encode(), id="large")
        assert failed.status == 500
        assert list(runner.files_dir.iterdir()) == []
        assert runner.call(json.dumps({"size": 1_000}).encode(), id="small").status == 200
        assert [path.stat().st_size for path in runner.files_dir.iterdir()] == [1_000]


@pytest.mark.parametrize("kind", ["bytes", "path"])
def test_the_last_of_the_disk_is_not_for_outputs(tmp_path: Path, kind: str) -> None:
    """One output as large as the free space took all of it, and Redis, which syncs every write, went down with it."""
    ours, theirs = socket.socketpair()
    channel = Channel(theirs, lambda message: None, lambda: None)
    folder = tmp_path / "files"
    folder.mkdir()
    large = tmp_path / "large.bin"
    large.write_bytes(b"x" * 100_000)
    files = PlatformFiles(channel, str(folder), [], floor=1 << 60)
    files.latest_base_url = "http://platform.test"
    with ours, theirs, pytest.raises(OSError, match="disk is full: 100000 bytes were not stored"):
        files.store(large if kind == "path" else large.read_bytes(), "large.bin", "application/octet-stream")
    assert list(folder.iterdir()) == []
