"""What fal's own command line asks for, call by call as fal 1.83.0 sends it."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from scheduler.store.records import LogEntry
from tests.gateway.platform import RunningGateway

T0 = 1_800_000_000.0


def log_lines(gateway: RunningGateway, app: str, worker_id: str, count: int, at: float = T0) -> None:
    entries = [LogEntry("", at + n // 2, "STDOUT", f"line {n}", worker_id) for n in range(count)]
    gateway.call(gateway.store.logs.append(app, entries))


@pytest.fixture
def worker(gateway: RunningGateway) -> tuple[str, str]:
    """An app and the id of its one runner."""
    app = gateway.app(auth="private")
    gateway.worker(app)
    [record] = gateway.call(gateway.store.workers.list(app))
    return app, record.worker_id


def history(client: httpx.Client, **params: str) -> Any:
    return client.post("/rest/logs/history", params=params)


def test_who_am_i(gateway: RunningGateway) -> None:
    with gateway.owner_client() as client, gateway.client() as anybody:
        user = client.get("/rest/users/current").json()
        assert {"full_name", "nickname", "user_id", "is_personal", "is_locked"} <= user.keys()
        assert (user["nickname"], user["is_locked"]) == ("tester", False)
        assert client.get("/rest/users/teams").json() == []
        assert anybody.get("/rest/users/current").status_code == 401


def test_queue_size_and_flush(gateway: RunningGateway) -> None:
    app = gateway.app(auth="private")
    at = f"/rest/applications/{app}/queue"
    with gateway.owner_client() as client:
        for _ in range(3):
            client.post(f"/queue/{app}", json={})
        assert client.get(at).json() == {"size": 3}
        assert client.get(at, params={"by_user": "true"}).json() == {"size": 3, "by_user": {"tester": 3}}
        assert client.delete(at, params={"caller_user_id": "x"}).json() == {"flushed": 0}
        refused = client.delete(at, params={"caller_user_id": ""})
        assert (refused.status_code, client.get(at).json()) == (400, {"size": 3}), "a variable that was not set"
        assert client.delete(at).status_code == 200
        assert client.get(at).json() == {"size": 0}
        missing = client.get("/rest/applications/tester/nobody/queue")
        assert (missing.status_code, bool(missing.json()["detail"])) == (404, True)
        assert client.get("/rest/applications/somebody/else/queue").status_code == 403


def test_gpus(gateway: RunningGateway, worker: tuple[str, str]) -> None:
    with gateway.owner_client() as client:
        metrics = client.get("/rest/applications/metrics").json()
    assert metrics["apps"][worker[0]] == {"gpu_count_by_type": {"S": 0}}
    assert metrics["summary"]["total_gpu_by_type"]["S"] == 0


def test_a_runner_and_its_lines(gateway: RunningGateway, worker: tuple[str, str]) -> None:
    app, worker_id = worker
    log_lines(gateway, app, worker_id, 4)
    log_lines(gateway, app, "another", 4)
    with gateway.owner_client() as client:
        shown = client.get(f"/rest/runners/{worker_id}").json()
        assert shown["started_at"].endswith("+00:00")
        assert shown["ended_at"] is None
        answer = history(client, job_id=worker_id, page_size="1000").json()
        assert [item["message"] for item in answer["items"]] == [f"line {n}" for n in (3, 2, 1, 0)]
        assert answer["items"][0].keys() == {"timestamp", "level", "message"}
        assert answer["next_until"] is None
        found = history(client, job_id=worker_id, search="line 2").json()["items"]
        assert [item["message"] for item in found] == ["line 2"]


def test_pages_hold_every_line_once(gateway: RunningGateway, worker: tuple[str, str]) -> None:
    """Two lines each were written at one instant, and the time is all there is to ask on from."""
    app, worker_id = worker
    log_lines(gateway, app, worker_id, 10)
    seen: list[str] = []
    params = {"job_id": worker_id, "page_size": "3"}
    with gateway.owner_client() as client:
        while True:
            page = history(client, **params).json()
            seen += [item["message"] for item in page["items"]]
            if page["next_until"] is None:
                break
            params["until"] = page["next_until"]
    assert seen == [f"line {n}" for n in reversed(range(10))]


def test_a_time_window(gateway: RunningGateway, worker: tuple[str, str]) -> None:
    app, worker_id = worker
    log_lines(gateway, app, worker_id, 6)
    window = {"since": "2027-01-15T08:00:01", "until": "2027-01-15T09:00:02+01:00"}
    with gateway.owner_client() as client:
        found = history(client, job_id=worker_id, **window).json()["items"]
    assert [item["message"] for item in found] == ["line 3", "line 2"]


def test_lines_of_a_runner_that_is_gone(gateway: RunningGateway) -> None:
    app = gateway.app(auth="private")
    log_lines(gateway, app, "gone", 2)
    with gateway.owner_client() as client:
        shown = client.get("/rest/runners/gone").json()
        assert shown["ended_at"] > shown["started_at"]
        until = {"since": shown["started_at"], "until": shown["ended_at"]}
        assert len(history(client, job_id="gone", **until).json()["items"]) == 2


def test_following(gateway: RunningGateway, worker: tuple[str, str]) -> None:
    app, worker_id = worker
    log_lines(gateway, app, worker_id, 2)
    with (
        gateway.owner_client() as client,
        client.stream("POST", "/rest/logs/stream", params={"job_id": worker_id}) as answer,
    ):
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        events = (json.loads(line[6:]) for line in lines if line.startswith("data: "))
        assert [next(events)["message"] for _ in range(2)] == ["line 0", "line 1"]
        log_lines(gateway, app, worker_id, 1, T0 + 9)
        assert next(events)["message"] == "line 0"


def test_runners_of_others_are_not_there(gateway: RunningGateway, worker: tuple[str, str]) -> None:
    key, secret = gateway.call(gateway.store.keys.create("stranger", ""))
    with gateway.client(headers={"authorization": f"Key {key.key_id}:{secret}"}) as stranger:
        assert stranger.get(f"/rest/runners/{worker[1]}").status_code == 404
        assert history(stranger, job_id=worker[1]).status_code == 404
        assert stranger.post("/rest/logs/stream", params={"job_id": worker[1]}).status_code == 404


@pytest.mark.parametrize(
    "params", [{"since": "yesterday"}, {"until": "2026-13-01"}, {"page_size": "0"}, {"page_size": "10001"}]
)
def test_what_cannot_be_read(gateway: RunningGateway, worker: tuple[str, str], params: dict[str, str]) -> None:
    with gateway.owner_client() as client:
        assert history(client, job_id=worker[1], **params).status_code == 400
