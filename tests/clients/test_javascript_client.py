"""@fal-ai/client 1.10.1 from npm, unmodified, in Node: the tests in ``javascript/``, for each way to lead it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.platform import PlatformUnderTest, command_environ

FOLDER = Path(__file__).with_name("javascript")


@pytest.mark.debian
@pytest.mark.parametrize("way", ["middleware", "proxy", "fetch", "names"])
def test_in_node(secure: PlatformUnderTest, exports: dict[str, str], way: str) -> None:
    assert (FOLDER / "node_modules" / "@fal-ai").is_dir(), f"run npm install --prefix {FOLDER}, as .ci/run does"
    authority = str(secure.data / "tls" / "ca.crt")
    preload = {"NODE_OPTIONS": f"--require={FOLDER / 'names.cjs'}"} if way == "names" else {}
    shell = command_environ(secure.data, exports | {"NODE_EXTRA_CA_CERTS": authority, "WAY": way} | preload)
    done = subprocess.run(
        ["npm", "test", "--silent"], cwd=FOLDER, env=shell, capture_output=True, text=True, timeout=170, check=False
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "skipped 0" in done.stdout
