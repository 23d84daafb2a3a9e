"""A real `fal` command, a server for it, and modules that leave with their test."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.control_server import KEY, ControlServer, serving

Fal = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def control() -> Iterator[ControlServer]:
    with serving(ControlServer()) as server:
        yield server


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """A user's environment with an empty HOME and none of our settings."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("KEEPWARM_", "FAL_"))}
    home = tmp_path / "home"
    home.mkdir()
    return kept | {"HOME": str(home), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"}


@pytest.fixture
def known(environ: dict[str, str], control: ControlServer) -> dict[str, str]:
    """The same, knowing the server and a key for it."""
    return environ | {"KEEPWARM_URL": control.url, "FAL_KEY": KEY}


@pytest.fixture
def fal(tmp_path: Path, known: dict[str, str]) -> Fal:
    """Run the command in ``tmp_path`` and collect what it says; ``environ`` replaces the usual one."""

    def run(*arguments: str, environ: dict[str, str] | None = None, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["fal", *arguments],
            env=known if environ is None else environ,
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, f"fal {arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run


@pytest.fixture
def fresh_modules() -> Iterator[None]:
    """Forget what loading an app's file imported and put on the path."""
    modules, path = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - modules:
        if not name.startswith(("fal.", "pydantic", "fastapi", "starlette")):
            del sys.modules[name]
    sys.path[:] = path
