"""The runner on each Python that this machine has, besides the one of the tests: apps choose theirs."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from envbuilder.errors import NoInterpreter
from envbuilder.interpreters import find_interpreter
from envbuilder.key import RUNTIME_REQUIREMENTS
from envbuilder.settings import BuildSettings
from tests.support.platform import BIN, ROOT

OWN = f"{sys.version_info[0]}.{sys.version_info[1]}"
OTHERS = [version for version in ("3.10", "3.11", "3.12", "3.13", "3.14") if version != OWN]
#: What drives real runner processes; the rest of the folder runs in the tests' own interpreter.
FILES = ("test_life", "test_answers", "test_streams", "test_logs", "test_saved_files", "test_gpu_faults")


@pytest.mark.timeout(400)
@pytest.mark.parametrize("version", OTHERS)
def test_the_runner_runs_on_it_or_a_build_says_that_it_is_missing(version: str, tmp_path: Path) -> None:
    settings = BuildSettings.from_env({**os.environ, "KEEPWARM_DATA": str(tmp_path)})
    try:
        python = asyncio.run(find_interpreter(version, settings))
    except NoInterpreter as error:
        said = str(error)
        python = None
    if python is None:
        assert re.search(rf"This machine has no Python {version}; it has .*{OWN}.*Next: install Python", said), said
        return
    own = tmp_path / "venv"
    uv = str(BIN / "uv")
    subprocess.run([uv, "venv", "--quiet", "--python", str(python), str(own)], check=True)
    install = [uv, "pip", "install", "--quiet", "--python", str(own / "bin" / "python")]
    subprocess.run([*install, *RUNTIME_REQUIREMENTS], check=True)
    files = [f"tests/runner/{name}.py" for name in FILES]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", *files],
        cwd=ROOT,
        env=environ | {"KEEPWARM_TEST_RUNNER_PYTHON": str(own / "bin" / "python")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
