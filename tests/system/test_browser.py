"""A picture that an app returns opens in a browser, from the URL in the JSON and nothing else."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.support.platform import PlatformUnderTest

#: A browser that talks to nobody but the page.
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--no-proxy-server",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip


@pytest.mark.debian
def test_the_painting_opens_in_a_browser(platform: PlatformUnderTest, tmp_path: Path) -> None:
    url = platform.deploy("examples/painting.py", "Painting")
    answer = httpx.post(url, json={}, trust_env=False, timeout=120)
    assert answer.status_code == 200, answer.text
    picture = answer.json()["image"]
    assert picture["url"].startswith(platform.url)
    browser = shutil.which("chromium")
    assert browser, "chromium is not installed; .ci/run installs it"
    shot = tmp_path / "shot.png"
    done = subprocess.run(
        [
            *(browser, *QUIET, f"--user-data-dir={tmp_path / 'profile'}"),
            *(f"--screenshot={shot}", "--window-size=800,800", picture["url"]),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert shot.exists(), done.stderr[-2000:]
    colours = Image.open(shot).convert("RGB").resize((64, 64)).getcolors(64 * 64)
    assert colours is not None
    # A painting has hundreds of colours; an error page or a download prompt has a handful.
    assert len(colours) > 200
