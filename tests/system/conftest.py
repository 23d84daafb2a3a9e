"""A user's empty home for the commands that start a platform for themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.waiting import wait_until
from tests.system.running import processes_of


@pytest.fixture
def home(tmp_path: Path, shared_builds: Path) -> Iterator[Path]:
    """An empty HOME whose data folder shares the session's built environments."""
    data = tmp_path / ".keepwarm"
    data.mkdir()
    for name in ("environments", "uv-cache"):
        (data / name).symlink_to(shared_builds / name)
    yield tmp_path
    try:
        # A run that joined another one's platform does not wait for it to be gone.
        wait_until(lambda: not processes_of(tmp_path), "nothing to be left running", timeout=30)
    finally:
        for process in processes_of(tmp_path):
            process.kill()
