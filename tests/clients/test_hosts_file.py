"""fal's own host names led to the platform by name resolution alone: no proxy, no variable but SSL_CERT_FILE and the
key. TLS is checked for the names, as the clients check it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from gateway.addresses import HOSTS
from tests.clients import resolved
from tests.support.platform import PlatformUnderTest, command_environ

FOLDER = Path(__file__).parent
HOSTS_FILE = resolved.documented_hosts()


def port(secure: PlatformUnderTest) -> int:
    found = urlsplit(secure.url).port
    assert found is not None
    return found


@pytest.fixture
def led(secure: PlatformUnderTest, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    """A client with the owner's key, in a process that resolves the documented names to the platform."""
    # What ``lead`` changes is put back.
    monkeypatch.setattr(socket, "getaddrinfo", socket.getaddrinfo)
    monkeypatch.setattr(asyncio.BaseEventLoop, "create_connection", asyncio.BaseEventLoop.create_connection)
    resolved.lead(port(secure))
    trust = ssl.create_default_context(cafile=str(secure.data / "tls" / "roots.pem"))
    with httpx.Client(headers={"authorization": f"Key {secure.key}"}, verify=trust, trust_env=False) as client:
        yield client


def test_the_documented_line_has_every_host_that_selects_a_service() -> None:
    assert sorted(HOSTS_FILE) == sorted(name.decode() for name in HOSTS)


@pytest.mark.parametrize("host", [host for host in HOSTS_FILE if HOSTS[host.encode()] == "run"])
def test_hosts_that_run(led: httpx.Client, host: str) -> None:
    for path in ("/tester/called", "/tester/called/"):
        assert led.post(f"https://{host}{path}", json={"text": host}).json() == {"text": host}
    assert led.get(f"https://{host}/tester/nobody").status_code == 404


@pytest.mark.parametrize("host", [host for host in HOSTS_FILE if HOSTS[host.encode()] == "queue"])
def test_hosts_that_queue(led: httpx.Client, host: str) -> None:
    """The addresses in the answers are the host's own, which the same hosts file leads here again."""
    submitted = led.post(f"https://{host}/tester/called/tries", json={"status": 0, "tag": "none"}).json()
    at = f"https://{host}/tester/called/requests/{submitted['request_id']}"
    assert [submitted[f"{kind}_url"] for kind in ("response", "status", "cancel")] == [
        at,
        f"{at}/status",
        f"{at}/cancel",
    ]
    with led.stream("GET", f"{at}/status/stream") as events:
        last = [line for line in events.iter_lines() if line.startswith("data: ")][-1]
    assert json.loads(last[6:])["status"] == "COMPLETED"
    assert led.get(submitted["response_url"]).json() == {"tries": 0}
    assert led.put(submitted["cancel_url"]).status_code == 400


@pytest.mark.parametrize("host", [host for host in HOSTS_FILE if HOSTS[host.encode()] == "rest"])
def test_hosts_that_give_tokens_and_take_files_in(led: httpx.Client, secure: PlatformUnderTest, host: str) -> None:
    """Uploads are sent where apps can fetch them too: an app's machine may have no such hosts file."""
    assert led.get(f"https://{host}/.well-known/jwks.json").json()["keys"]
    assert led.post(f"https://{host}/tokens/", json={"allowed_apps": ["called"]}).json().count(".") == 2
    assert led.get(f"https://{host}/users/current").json()["nickname"] == "tester"
    at = led.post(f"https://{host}/storage/upload/initiate", json={"file_name": "a.txt"}).json()
    assert at["upload_url"].startswith(f"{secure.url}/cdn/uploads/")
    assert led.put(at["upload_url"], content=b"bytes").status_code == 200
    assert led.get(at["file_url"]).content == b"bytes"


@pytest.mark.parametrize("host", [host for host in HOSTS_FILE if HOSTS[host.encode()] == "cdn"])
def test_hosts_that_keep_files(led: httpx.Client, host: str) -> None:
    told = {"content-type": "text/plain", "x-fal-file-name": "a.txt"}
    url = led.post(f"https://{host}/files/upload", content=b"by name", headers=told).json()["access_url"]
    assert led.get(url).content == b"by name"
    assert led.get(f"https://{host}{urlsplit(url).path.removeprefix('/cdn')}").content == b"by name"


def test_the_websocket_host_is_led_here_too(led: httpx.Client) -> None:
    assert led.get("https://ws.fal.run/tester/called").status_code < 500


@pytest.mark.parametrize("host", HOSTS_FILE)
def test_the_certificate_is_for_each_name(secure: PlatformUnderTest, host: str) -> None:
    trust = ssl.create_default_context(cafile=str(secure.data / "tls" / "roots.pem"))
    with (
        socket.create_connection(("127.0.0.1", port(secure)), 10) as plain,
        trust.wrap_socket(plain, server_hostname=host) as connection,
    ):
        assert connection.version() in ("TLSv1.2", "TLSv1.3")
    with socket.create_connection(("127.0.0.1", port(secure)), 10) as plain, pytest.raises(ssl.SSLError):
        trust.wrap_socket(plain, server_hostname="elsewhere.example")


@pytest.fixture
def script(secure: PlatformUnderTest, tmp_path: Path) -> Any:
    """Runs a function of a user's script with the unmodified client, which believes that it talks to fal."""

    def run(file: str, name: str) -> Any:
        environ = {"FAL_KEY": secure.key, "SSL_CERT_FILE": str(secure.data / "tls" / "roots.pem")}
        done = subprocess.run(
            [sys.executable, str(FOLDER / "resolved.py"), str(port(secure)), str(FOLDER / file), name],
            env=command_environ(tmp_path, environ),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    return run


def test_calls_of_the_python_client(script: Any) -> None:
    assert script("calling.py", "run") == {"text": "run"}
    queued = script("calling.py", "queue")
    assert queued.pop("url").startswith("https://queue.fal.run/tester/called/requests/")
    result = {"text": "queued"}
    assert queued == {"result": result, "again": result, "state": "Completed", "logs": ["line 0 of queued"]}
    assert script("calling.py", "cancelled") == "client_cancelled"
    assert script("calling.py", "stream") == [{"word": "one"}, {"word": "two"}]
    assert script("calling.py", "asynchronously") == [{"text": "a"}, {"text": "b"}]


def test_uploads_and_tokens_of_the_python_client(script: Any, secure: PlatformUnderTest) -> None:
    assert script("uploading.py", "given_to_the_app")["size"] == 5000
    assert script("uploading.py", "token").count(".") == 2
    parts = script("uploading.py", "in_parts")
    with secure.client() as client:
        assert hashlib.sha256(client.get(parts["url"]).content).hexdigest() == parts["sha256"]
        assert client.get(script("uploading.py", "older_repository")).text == "signed"
