"""Uploads and tokens of fal-client 1.0.3, whose hosts no variable changes: they reach the platform by ``keepwarm
proxy`` and HTTPS_PROXY."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.platform import PlatformUnderTest, command_environ

SCRIPT = Path(__file__).with_name("uploading.py")
CALLED = "tester/called"

Script = Callable[..., Any]


def ran(exports: dict[str, str], proxy: str, home: Path, name: str) -> subprocess.CompletedProcess[str]:
    shell = command_environ(home, exports | {"HTTPS_PROXY": proxy})
    return subprocess.run(
        [sys.executable, str(SCRIPT), name], env=shell, cwd=home, capture_output=True, text=True, check=False
    )


@pytest.fixture
def script(exports: dict[str, str], proxy: str, tmp_path: Path) -> Script:
    """Runs one function of ``uploading.py`` as a user does and returns what it printed."""

    def run(name: str) -> Any:
        done = ran(exports, proxy, tmp_path, name)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    return run


def fetched(secure: PlatformUnderTest, url: str) -> httpx.Response:
    """As anybody gets it, with no key and no proxy."""
    with secure.client() as client:
        del client.headers["Authorization"]
        return client.get(url)


def test_upload(script: Script, secure: PlatformUnderTest) -> None:
    url = script("text")
    assert url.startswith(f"{secure.url}/cdn/files/")
    assert url.endswith("/notes.txt")
    got = fetched(secure, url)
    assert (got.text, got.headers["content-type"]) == ("some text", "text/plain; charset=utf-8")


def test_upload_file_and_image(script: Script, secure: PlatformUnderTest) -> None:
    table, picture = script("files")
    assert fetched(secure, table).headers["content-type"].startswith("text/csv")
    assert fetched(secure, picture).headers["content-type"] == "image/png"


def test_what_was_uploaded_reaches_the_app(script: Script) -> None:
    """The app fetches the file from the platform, whose certificate it must trust."""
    assert script("given_to_the_app")["size"] == 5000


@pytest.mark.parametrize("how", ["in_parts", "in_parts_async"])
def test_a_large_file_goes_in_parts(script: Script, secure: PlatformUnderTest, how: str) -> None:
    sent = script(how)
    got = fetched(secure, sent["url"])
    assert hashlib.sha256(got.content).hexdigest() == sent["sha256"]
    assert got.headers["content-disposition"].startswith("attachment")
    assert not list((secure.data / "uploads").glob("*/0*"))


def test_async_uploads(script: Script, secure: PlatformUnderTest) -> None:
    assert [fetched(secure, url).text for url in script("many_async")] == ["0", "1", "2", "3", "4"]


def test_the_older_repository_uses_a_signed_url(script: Script, secure: PlatformUnderTest) -> None:
    assert fetched(secure, script("older_repository")).text == "signed"


def test_a_lifecycle_is_kept(script: Script, secure: PlatformUnderTest) -> None:
    url = script("hidden_and_for_an_hour")
    assert fetched(secure, url).status_code == 404
    with secure.client() as owner:
        assert owner.get(url).text == "mine"


def test_a_wrong_key_uploads_nothing(exports: dict[str, str], proxy: str, tmp_path: Path) -> None:
    done = ran(exports | {"FAL_KEY": "not:valid"}, proxy, tmp_path, "text")
    assert done.returncode != 0
    assert "401" in done.stderr


def test_a_token_stands_for_the_key(script: Script, secure: PlatformUnderTest) -> None:
    """What the client asks for before it opens a realtime connection, used for a call as a browser does."""
    token = script("token")
    with secure.client() as anybody:
        del anybody.headers["Authorization"]
        answer = anybody.post(f"/run/{CALLED}", params={"fal_jwt_token": token}, json={"text": "by token"})
        assert answer.json() == {"text": "by token"}
        streamed = anybody.post(f"/run/{CALLED}/stream", params={"fal_jwt_token": token}, json={"text": "x"})
        assert streamed.text == 'data: {"word": "x"}\n\n'
        assert anybody.post("/run/tester/single", params={"fal_jwt_token": token}, json={}).status_code == 403
