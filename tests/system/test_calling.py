"""The three ways to call a deployed app, and what callers see when something is wrong."""

from __future__ import annotations

import base64
import hashlib
import http.server
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tests.support.platform import PlatformUnderTest
from tests.support.waiting import wait_until

APPS = "tests/system/apps/basic.py"


@pytest.fixture(scope="module")
def counting(platform: PlatformUnderTest) -> str:
    """URL of a private app."""
    return platform.deploy(APPS, "Counting", auth="private")


def test_wait_for_the_result(platform: PlatformUnderTest, counting: str) -> None:
    """setup() ran once, and its state stays in memory from one call to the next."""
    with platform.client() as client:
        first = client.post(counting, json={"text": "a"})
        second = client.post(counting, json={"text": "b"})
    assert first.status_code == second.status_code == 200, first.text
    assert (first.json()["setups"], second.json()["setups"]) == (1, 1)
    assert second.json()["born"] == first.json()["born"]
    assert second.json()["calls"] == first.json()["calls"] + 1
    assert first.headers["x-fal-request-id"]


def test_submit_and_poll(platform: PlatformUnderTest, counting: str) -> None:
    path = counting.removeprefix(platform.url)
    with platform.client() as client:
        submitted = client.post(f"/queue{path}", json={"text": "queued"}).raise_for_status().json()
        assert submitted["status"] == "IN_QUEUE"

        def completed() -> bool:
            answer = client.get(submitted["status_url"], params={"logs": "1"})
            return bool(answer.status_code == 200 and answer.json()["status"] == "COMPLETED")

        wait_until(completed, "the request to complete", timeout=60)
        shown = client.get(submitted["status_url"], params={"logs": "1"}).json()
        assert any("queued" in line["message"] for line in shown["logs"])
        result = client.get(submitted["response_url"])
        assert result.status_code == 200
        assert result.json()["text"] == "queued"
        again = client.put(submitted["cancel_url"])
        assert (again.status_code, again.json()["status"]) == (400, "ALREADY_COMPLETED")


def test_cancel_while_queued(platform: PlatformUnderTest, counting: str) -> None:
    path = counting.removeprefix(platform.url)
    with platform.client() as client:
        holding = client.post(f"/queue{path}", json={"seconds": 2}).json()
        waiting = client.post(f"/queue{path}", json={"text": "never"}).json()
        cancelled = client.put(waiting["cancel_url"])
        assert cancelled.status_code == 202
        result = client.get(waiting["response_url"])
        assert (result.status_code, result.json()["error_type"]) == (499, "client_cancelled")
        wait_until(lambda: client.get(holding["status_url"]).status_code == 200, "the other request to complete")


class Receiver(http.server.BaseHTTPRequestHandler):
    """Takes webhooks; the first delivery is refused, so that the retry is seen too."""

    got: ClassVar[list[tuple[dict[str, str], bytes]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        Receiver.got.append(({k.lower(): v for k, v in self.headers.items()}, body))
        self.send_response(500 if len(Receiver.got) == 1 else 200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/hook"
    server.shutdown()
    server.server_close()


def test_webhook_is_signed_and_retried(platform: PlatformUnderTest, counting: str, receiver: str) -> None:
    path = counting.removeprefix(platform.url)
    with platform.client() as client:
        submitted = client.post(f"/queue{path}", params={"fal_webhook": receiver}, json={"text": "call me"}).json()
        wait_until(lambda: len(Receiver.got) >= 2, "the refused delivery to be tried again", timeout=60)
        keys = client.get("/rest/.well-known/jwks.json").json()["keys"]
    for headers, body in Receiver.got[:2]:
        message = "\n".join(
            [
                headers["x-fal-webhook-request-id"],
                headers["x-fal-webhook-user-id"],
                headers["x-fal-webhook-timestamp"],
                hashlib.sha256(body).hexdigest(),
            ]
        ).encode()
        signature = bytes.fromhex(headers["x-fal-webhook-signature"])
        public = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(keys[0]["x"]))
        public.verify(signature, message)
        assert headers["x-fal-webhook-request-id"] == submitted["request_id"]
        assert b'"status"' in body
        assert b"call me" in body


@pytest.mark.parametrize(
    ("send", "status", "says"),
    [
        ({"content": b"{not json", "headers": {"Content-Type": "application/json"}}, 422, "json"),
        ({"json": {"seconds": "long"}}, 422, "seconds"),
        ({"content": b"x" * (65 * 1024 * 1024)}, 413, "limit"),
    ],
    ids=["not JSON", "fails validation", "too large"],
)
def test_bad_bodies(platform: PlatformUnderTest, counting: str, send: dict[str, Any], status: int, says: str) -> None:
    with platform.client() as client:
        answer = client.post(counting, **send)
    assert answer.status_code == status, answer.text[:500]
    assert says in answer.text.lower()


def test_unknown_app_and_keys(platform: PlatformUnderTest, counting: str) -> None:
    with platform.client() as client:
        unknown = client.post("/tester/countin", json={})
    assert unknown.status_code == 404
    assert "counting" in unknown.json()["detail"]
    missing = httpx.post(counting, json={}, trust_env=False)
    wrong = httpx.post(counting, json={}, headers={"Authorization": "Key a:b"}, trust_env=False)
    assert (missing.status_code, wrong.status_code) == (401, 401)
    assert "FAL_KEY" in missing.json()["detail"] or "Authorization" in missing.json()["detail"]


def test_the_apps_own_mistake_and_a_crash(platform: PlatformUnderTest, counting: str) -> None:
    """An exception is a 500 and harms nobody; a dead process is a 503 and the next call gets a new worker."""
    with platform.client() as client:
        born = client.post(counting, json={}).json()["born"]
        assert client.post(f"{counting}/boom", json={}).status_code == 500
        assert client.post(counting, json={}).json()["born"] == born
        died = client.post(f"{counting}/die", json={})
        assert (died.status_code, died.json()["error_type"]) == (503, "runner_disconnected")
        after = client.post(counting, json={}, timeout=60)
        assert after.status_code == 200
        assert after.json()["born"] != born


def test_setup_that_raises_ends_the_request(platform: PlatformUnderTest, counting: str) -> None:
    """A setup() that raises is shown with its cause; the caller is answered, and other apps go on."""
    url = platform.deploy(APPS, "BadSetup")
    with platform.client() as client:
        answer = client.post(url, json={}, timeout=60)
        assert answer.status_code == 503, answer.text
        assert "no weights at /nowhere" in answer.json()["detail"]
        queued = client.post(f"/queue{url.removeprefix(platform.url)}", json={}).json()
        wait_until(lambda: client.get(queued["status_url"]).status_code == 200, "the queued request to end", timeout=60)
        assert client.get(queued["response_url"]).status_code == 503
        assert client.post(counting, json={}).status_code == 200
    logs = platform.fal("logs", "tester/bad-setup").stdout
    assert "about to fail" in logs
    assert "RuntimeError: no weights at /nowhere" in logs


def test_many_callers_at_once(platform: PlatformUnderTest) -> None:
    url = platform.deploy(APPS, "Async")

    def call(number: int) -> str:
        answer = httpx.post(url, json={"seconds": 0.05, "text": str(number)}, trust_env=False, timeout=60)
        return str(answer.raise_for_status().json()["text"])

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(call, range(64))) == [str(number) for number in range(64)]
