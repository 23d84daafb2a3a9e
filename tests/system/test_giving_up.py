"""What the platform gives up can be seen, and is done after all once its cause is gone."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from tests.support.platform import PlatformUnderTest
from tests.support.waiting import wait_until


class Receiver(http.server.BaseHTTPRequestHandler):
    """Says that it is gone for good until it is back."""

    back: ClassVar[threading.Event] = threading.Event()
    got: ClassVar[list[dict[str, object]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if Receiver.back.is_set():
            Receiver.got.append(body)
        self.send_response(200 if Receiver.back.is_set() else 410)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/hook"
    server.shutdown()
    server.server_close()
    thread.join(10)


def test_a_poisonous_request_is_kept_mended_and_replayed(
    platform: PlatformUnderTest, hook: str, tmp_path: Path
) -> None:
    """A request kills three runners; the developer sees with what and how, mends the app and runs it again. Its
    receiver was away all the while, and gets both answers when it is back."""
    url = platform.deploy("tests/system/apps/fragile.py", "Fragile", auth="private")
    app = url.removeprefix(f"{platform.url}/")
    mended = tmp_path / "mended"
    with platform.client() as client:
        made = client.post(f"/queue/{app}", json={"mended": str(mended)}, params={"fal_webhook": hook}).json()
        wait_until(lambda: client.get(made["status_url"]).status_code == 200, "three runners to die", timeout=120)
        assert client.get(made["response_url"]).json()["error_type"] == "poison_request"

        (letter,) = json.loads(platform.fal("queue", "letters", "list", app, "--json").stdout)
        assert (letter["request_id"], letter["signal"], letter["attempts"]) == (made["request_id"], "SIGABRT", 3)
        shown = platform.fal("queue", "letters", "show", app, made["request_id"]).stdout
        assert all(said in shown for said in ("out of tiles", "Fatal Python error: Aborted", "fragile.py", str(mended)))

        mended.touch()
        (again,) = json.loads(platform.fal("queue", "letters", "replay", app, made["request_id"], "--json").stdout)
        wait_until(lambda: client.get(again["status_url"]).status_code == 200, "the replay to be served", timeout=60)
        assert client.get(again["response_url"]).json() == {"size": len(str(mended))}
        platform.fal("queue", "letters", "drop", app, made["request_id"])
        assert json.loads(platform.fal("queue", "letters", "list", app, "--json").stdout) == []

        def given_up() -> bool:
            return len(client.get(f"/api/v1/queue/{app}/webhooks").json()["items"]) == 2

        wait_until(given_up, "both webhooks to be given up")
        assert "status 410" in platform.fal("queue", "webhooks", "list", app).stdout
        Receiver.back.set()
        platform.fal("queue", "webhooks", "replay", app, "--all")
        wait_until(lambda: len(Receiver.got) == 2, "both webhooks to arrive")
        assert {str(body["request_id"]): body["status"] for body in Receiver.got} == {
            made["request_id"]: "ERROR",
            again["request_id"]: "OK",
        }


def test_an_app_that_crashes_all_the_time_is_held_back_and_says_so(platform: PlatformUnderTest) -> None:
    """Whatever the requests are, the process dies. Restarted at once, it would cost all others the processors."""
    url = platform.deploy("tests/system/apps/crashing.py", "Crashing", auth="private")
    neighbour = platform.deploy("tests/system/apps/crashing.py", "Neighbour", auth="private")
    app = url.removeprefix(f"{platform.url}/")
    with platform.client() as client:
        pid = client.post(neighbour, json={}).json()["pid"]
        for _ in range(12):
            client.post(f"/queue/{app}", json={}).raise_for_status()

        def held_back() -> dict[str, object]:
            shown: dict[str, object] = client.get(f"/api/v1/apps/{app}").json()
            return shown if shown["next_start_at"] else {}

        shown = wait_until(held_back, "the app to be held back", timeout=60)
        assert (shown["health"], shown["startup_failures"]) == ("UNHEALTHY", 0)
        assert "SIGABRT" in str(shown["last_crash"])
        said = platform.fal("apps", "show", app).stdout
        assert all(part in said for part in ("UNHEALTHY", "next start at", "SIGABRT"))
        (listed,) = [item for item in json.loads(platform.fal("apps", "list", "--json").stdout) if item["app"] == app]
        assert listed["health"] == "UNHEALTHY"
        wait_until(
            lambda: "its workers fail one after the other" in platform.fal("logs", app).stdout, "the log to say so"
        )
        assert client.post(neighbour, json={}).json()["pid"] == pid
