"""What a platform leaves on disk for commands to find."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from keepwarm import state


@pytest.mark.parametrize("name", ["queue", "api", "Team", "a_b", "-a", "", "x" * 65])
def test_owners_that_cannot_be(name: str) -> None:
    with pytest.raises(ValueError, match="owner"):
        state.checked_owner(name)


def test_a_user_named_like_a_path_still_gets_an_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "queue")
    assert state.default_owner({}) == "queue-user"


def test_the_admin_key_is_private(tmp_path: Path) -> None:
    state.write_admin_key(tmp_path, "id:secret")
    assert stat.S_IMODE((tmp_path / "admin.key").stat().st_mode) == 0o600
    assert state.read_admin_key(tmp_path) == "id:secret"


def test_a_damaged_platform_file_is_no_platform(tmp_path: Path) -> None:
    (tmp_path / "platform.json").write_text('{"url": ')
    assert state.read_platform_file(tmp_path) is None


def test_the_injected_sdk_is_complete_and_alone(tmp_path: Path) -> None:
    """Runners see our fal package and nothing of what lies beside it in site-packages."""
    folder = state.install_sdk(tmp_path)
    assert [entry.name for entry in folder.iterdir()] == ["fal"]
    assert state.install_sdk(tmp_path) == folder
    done = subprocess.run(
        [sys.executable, "-c", "import fal, fal._runner.protocol; print(fal.__file__)"],
        env={"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(str(folder))
