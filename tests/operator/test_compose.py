"""docker-compose.yml: the compose tool accepts it, and its service commands are the ones that exist."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from keepwarm.services import SERVICE_MODULES
from tests.support.platform import ROOT


@pytest.mark.debian
def test_the_compose_tool_accepts_it() -> None:
    done = subprocess.run(
        ["docker-compose", "-f", str(ROOT / "docker-compose.yml"), "config"],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "nvidia" in done.stdout


def test_services_are_the_commands_that_keepwarm_starts() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    for name in SERVICE_MODULES:
        assert f"command: service {name}\n" in text
        assert json.dumps(["CMD", "keepwarm", "health", name]) in text
