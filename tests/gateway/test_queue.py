"""The queue's protocol: fields, status codes and URLs as the official clients need them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from scheduler.store.records import Claimed, LogEntry, Outcome
from tests.gateway.platform import JSON, RunningGateway, StubWorker
from tests.support.waiting import wait_until

Start = Callable[..., RunningGateway]
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


@pytest.fixture
def client(gateway: RunningGateway) -> Iterator[httpx.Client]:
    with gateway.client() as client:
        yield client


def submit(client: httpx.Client, app: str, path: str = "", **options: Any) -> dict[str, Any]:
    answer = client.post(f"/queue/{app}{path}", content=b'{"a": 1}', **options)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    assert answer.headers["x-fal-request-id"] == body["request_id"]
    return body


def completed(client: httpx.Client, status_url: str) -> dict[str, Any]:
    def done() -> dict[str, Any] | None:
        answer = client.get(status_url)
        return answer.json() if answer.status_code == 200 else None

    return wait_until(done, "the request has ended") or {}


async def slow_hello(worker: StubWorker, claim: Claimed) -> Outcome:
    """Says two lines, waits for the word, answers."""
    app = claim.app
    at = time.time()
    lines = [LogEntry("", at, "STDOUT", text, claim.worker_id, claim.request_id) for text in ("one", "two")]
    await worker.store.logs.append(app, lines[:1])
    await worker.released.wait()
    await worker.store.logs.append(app, lines[1:])
    return Outcome(200, JSON, b'{"answer": 42}', inference_seconds=1.5)


def test_a_submit_answers_with_everything_the_clients_need(gateway: RunningGateway, client: httpx.Client) -> None:
    app = gateway.app()
    first = submit(client, app, "/generate?x=1&fal_max_queue_length=5")
    second = submit(client, app)
    base = f"{gateway.url}/queue/{app}/requests/{first['request_id']}"
    assert UUID.fullmatch(first["request_id"])
    assert first == {
        "status": "IN_QUEUE",
        "request_id": first["request_id"],
        "gateway_request_id": first["request_id"],
        "response_url": base,
        "status_url": f"{base}/status",
        "cancel_url": f"{base}/cancel",
        "queue_position": 0,
        "logs": None,
        "metrics": {},
    }
    assert second["queue_position"] == 1
    worker = gateway.worker(app)
    wait_until(lambda: len(worker.claims) == 2, "both were claimed")
    assert (worker.claims[0].path, worker.claims[0].query, worker.claims[0].mode) == ("/generate", "x=1", "queued")
    assert worker.claims[0].body == b'{"a": 1}'


def test_the_life_of_a_request_as_its_caller_sees_it(gateway: RunningGateway, client: httpx.Client) -> None:
    app = gateway.app()
    sent = submit(client, app)
    waiting = client.get(sent["status_url"])
    assert waiting.status_code == 202
    assert (waiting.json()["status"], waiting.json()["queue_position"]) == ("IN_QUEUE", 0)
    assert waiting.json()["response_url"] == sent["response_url"]

    worker = gateway.worker(app, slow_hello)
    wait_until(
        lambda: client.get(sent["status_url"], params={"logs": "1"}).json()["logs"], "the running request has a line"
    )
    running = client.get(sent["status_url"], params={"logs": "1"})
    assert (running.status_code, running.json()["status"]) == (202, "IN_PROGRESS")
    assert [line["message"] for line in running.json()["logs"]] == ["one"]
    early = client.get(sent["response_url"])
    assert (early.status_code, early.json()) == (400, {"detail": "Request is still in progress"})
    assert client.get(sent["status_url"]).json()["logs"] is None

    gateway.release(worker)
    body = completed(client, sent["status_url"] + "?logs=true")
    assert body["status"] == "COMPLETED"
    assert body["metrics"] == {"inference_time": 1.5}
    assert "error" not in body
    line = body["logs"][1]
    assert (line["message"], line["level"], line["source"]) == ("two", "STDOUT", "USER")
    assert line["timestamp"].endswith("+00:00")
    result = client.get(sent["response_url"])
    assert (result.status_code, result.json()) == (200, {"answer": 42})
    assert result.headers["x-fal-request-id"] == sent["request_id"]


def test_every_spelling_of_the_urls_works_and_none_redirects(gateway: RunningGateway, client: httpx.Client) -> None:
    app = gateway.app()
    gateway.worker(app)
    request_id = submit(client, app, "/generate/")["request_id"]
    completed(client, f"/queue/{app}/requests/{request_id}/status")
    for base in (f"/queue/{app}", f"/queue/{app}/generate"):
        for tail in ("/status", "/status/", "/status/?logs=0"):
            assert client.get(f"{base}/requests/{request_id}{tail}").status_code == 200
        for tail in ("", "/", "/response", "/response/"):
            answer = client.get(f"{base}/requests/{request_id}{tail}")
            assert (answer.status_code, answer.json()) == (200, {"a": 1})


def test_the_queue_host_has_no_prefix(gateway: RunningGateway, client: httpx.Client) -> None:
    app = gateway.app()
    host = {"host": "queue.fal.run"}
    sent = client.post(f"/{app}", content=b"{}", headers=host).json()
    assert sent["status_url"] == f"http://queue.fal.run/{app}/requests/{sent['request_id']}/status"
    assert client.get(f"/{app}/requests/{sent['request_id']}/status", headers=host).status_code == 202


def test_urls_come_from_the_operators_setting_or_a_trusted_proxy_only(start_gateway: Start) -> None:
    from ipaddress import ip_network

    forwarded = {"x-forwarded-proto": "https", "x-forwarded-host": "gpu.example", "host": "inner:8000"}
    gateway = start_gateway()
    app = gateway.app()
    with gateway.client(headers=forwarded) as client:
        assert submit(client, app)["status_url"].startswith("http://inner:8000/queue/")
    trusting = start_gateway(trusted_proxies=(ip_network("127.0.0.0/8"),))
    with trusting.client(headers=forwarded) as client:
        assert submit(client, app)["status_url"].startswith("https://gpu.example/queue/")
    fixed = start_gateway(public_url="https://ai.example/base")
    with fixed.client(headers=forwarded) as client:
        assert submit(client, app)["status_url"].startswith("https://ai.example/base/queue/")


def test_a_failed_request_is_completed_with_its_error(gateway: RunningGateway, client: httpx.Client) -> None:
    async def handler(_worker: StubWorker, claim: Claimed) -> Outcome:
        if claim.path == "/app":
            return Outcome(422, JSON, b'{"detail": [{"msg": "no"}]}')
        body = b'{"detail": "gone", "error_type": "runner_disconnected"}'
        return Outcome(503, JSON, body, error_type="runner_disconnected")

    app = gateway.app()
    gateway.worker(app, handler)
    own = submit(client, app, "/app")
    body = completed(client, own["status_url"])
    assert (body["status"], body["error"]) == ("COMPLETED", "Invalid status code: 422")
    result = client.get(own["response_url"])
    assert (result.status_code, result.json()) == (422, {"detail": [{"msg": "no"}]})

    platform = submit(client, app, "/platform")
    body = completed(client, platform["status_url"])
    assert body["error_type"] == "runner_disconnected"
    result = client.get(platform["response_url"])
    assert (result.status_code, result.headers["x-fal-error-type"]) == (503, "runner_disconnected")


def test_cancel_before_during_and_after(gateway: RunningGateway, client: httpx.Client) -> None:
    app = gateway.app()
    queued = submit(client, app)
    answer = client.put(queued["cancel_url"])
    assert (answer.status_code, answer.json()) == (202, {"status": "CANCELLATION_REQUESTED"})
    body = completed(client, queued["status_url"])
    assert (body["status"], body["error_type"]) == ("COMPLETED", "client_cancelled")
    assert client.get(queued["response_url"]).status_code == 499
    answer = client.put(queued["cancel_url"] + "/")
    assert (answer.status_code, answer.json()) == (400, {"status": "ALREADY_COMPLETED"})

    worker = gateway.worker(app, slow_hello)
    running = submit(client, app)
    wait_until(lambda: worker.claims, "it runs")
    assert client.put(running["cancel_url"]).status_code == 202
    wait_until(lambda: worker.cancelled, "the worker was told")
    gateway.release(worker)
    assert client.get(running["response_url"]).status_code == 499
    assert client.get(f"/queue/{app}/requests/{running['request_id']}/cancel").status_code == 405


@pytest.mark.parametrize("request_id", ["00000000-0000-4000-8000-000000000000", "x" * 80, "a%20b", "..%2f"])
def test_an_unknown_request_is_not_found(gateway: RunningGateway, client: httpx.Client, request_id: str) -> None:
    app = gateway.app()
    for method, tail in (("GET", "/status"), ("GET", ""), ("PUT", "/cancel"), ("GET", "/status/stream")):
        answer = client.request(method, f"/queue/{app}/requests/{request_id}{tail}")
        assert answer.status_code in (404, 405)
        assert answer.headers["x-fal-request-id"]
        if "%2f" not in request_id:
            assert (answer.status_code, answer.json()) == (404, {"status": "NOT_FOUND"})


def test_a_request_of_another_app_is_not_found(gateway: RunningGateway, client: httpx.Client) -> None:
    mine, other = gateway.app("mine"), gateway.app("other")
    request_id = submit(client, mine)["request_id"]
    assert client.get(f"/queue/{other}/requests/{request_id}").status_code == 404


def test_the_status_stream_tells_each_line_once(gateway: RunningGateway, client: httpx.Client) -> None:
    """Clients join the lines of all events; a cumulative list showed every line again and again."""
    app = gateway.app()
    sent = submit(client, app)
    events: list[dict[str, Any]] = []
    with client.stream("GET", sent["status_url"] + "/stream?logs=1") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if not line.startswith("data: "):
                continue
            events.append(json.loads(line[6:]))
            if len(events) == 1:
                worker = gateway.worker(app, slow_hello)
            if [entry for event in events for entry in event["logs"] or []]:
                gateway.release(worker)
    assert [event["status"] for event in (events[0], events[-1])] == ["IN_QUEUE", "COMPLETED"]
    assert [entry["message"] for event in events for entry in event["logs"] or []] == ["one", "two"]
    assert "logs" in events[-1]


def test_a_longer_queue_than_the_caller_allows_is_a_429(gateway: RunningGateway, client: httpx.Client) -> None:
    app = gateway.app()
    submit(client, app)
    answer = client.post(f"/queue/{app}?fal_max_queue_length=1", content=b"{}")
    assert (answer.status_code, answer.json()["error_type"]) == (429, "concurrent_requests_limit")
    assert client.post(f"/queue/{app}?fal_max_queue_length=many", content=b"{}").status_code == 400


def test_priority_retries_and_deadline_are_kept_with_the_request(gateway: RunningGateway, client: httpx.Client) -> None:
    app = gateway.app()
    low = submit(client, app, headers={"x-fal-queue-priority": "low", "x-fal-no-retry": "1"})
    normal = submit(client, app, headers={"x-fal-queue-priority": "Normal", "x-fal-request-timeout": "30"})
    worker = gateway.worker(app)
    wait_until(lambda: len(worker.claims) == 2, "both were claimed")
    assert [claim.request_id for claim in worker.claims] == [normal["request_id"], low["request_id"]]
    for name, value in (("x-fal-no-retry", "maybe"), ("x-fal-queue-priority", "urgent")):
        assert client.post(f"/queue/{app}", headers={name: value}).status_code == 400


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ('{"server_error": {"retries": 2}, "timeout": {"retries": -1}}', {"server_error": 2, "timeout": 0}),
        ('{"server_error": {"retries": 2}, "weather": {"retries": 9}}', {"server_error": 2}),
        ('{"server_error": {"retries": "2"}}', None),
        ('["server_error"]', None),
        ("{server_error", None),
    ],
)
def test_the_callers_retry_config_goes_along_and_nonsense_is_ignored(
    gateway: RunningGateway, client: httpx.Client, given: str, kept: dict[str, int] | None
) -> None:
    app = gateway.app()
    submit(client, app, headers={"x-fal-retry-config": given})
    worker = gateway.worker(app)
    wait_until(lambda: worker.claims, "it was claimed")
    assert worker.claims[0].retries == kept
    assert not [name for name, _ in worker.claims[0].headers if name == "x-fal-retry-config"]


def test_an_idempotency_key_leads_to_the_same_request(gateway: RunningGateway, client: httpx.Client) -> None:
    app = gateway.app()
    key = {"idempotency-key": "order-7"}
    first = submit(client, app, headers=key)
    assert submit(client, app, headers=key)["request_id"] == first["request_id"]
    assert client.post(f"/queue/{app}", content=b"other", headers=key).status_code == 422
    assert client.post(f"/queue/{app}", headers={"idempotency-key": "a b"}).status_code == 400


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/x",
        "example.com/x",
        "https://user:pw@example.com/",
        "https://example.com/" + "x" * 2048,
        "http://localhost/x",
        "http://127.0.0.1:8000/x",
        "http://2130706433/",
        "http://[::ffff:127.0.0.1]/",
        "http://10.1.2.3/",
        "http://exa mple.com/",
        "http:///nothing",
    ],
)
def test_a_webhook_that_cannot_be_is_refused(gateway: RunningGateway, client: httpx.Client, url: str) -> None:
    app = gateway.app()
    answer = client.post(f"/queue/{app}", params={"fal_webhook": url}, content=b"{}")
    assert (answer.status_code, answer.json()["error_type"]) == (400, "bad_request")
    assert "fal_webhook" in answer.json()["detail"]
    assert gateway.call(gateway.store.requests.queue_size(app)) == 0


def test_webhooks_are_kept_and_private_ones_are_the_operators_choice(start_gateway: Start) -> None:
    gateway = start_gateway(allow_private_webhooks=True)
    app = gateway.app()
    with gateway.client() as client:
        url = "http://127.0.0.1:9/hook?a=1&b=2"
        sent = client.post(f"/queue/{app}", params={"fal_webhook": url, "keep": "me"}, content=b"{}").json()
    record = gateway.call(gateway.store.requests.get(app, sent["request_id"]))
    assert record is not None
    assert record.webhook == url
    worker = gateway.worker(app)
    wait_until(lambda: worker.claims, "it was claimed")
    assert worker.claims[0].query == "keep=me"


def test_a_direct_request_is_not_visible_in_the_queue(gateway: RunningGateway, client: httpx.Client) -> None:
    app = gateway.app()
    gateway.worker(app)
    request_id = client.post(f"/{app}", content=b"{}").headers["x-fal-request-id"]
    assert client.get(f"/queue/{app}/requests/{request_id}").status_code == 404


def test_requests_outlive_their_app(gateway: RunningGateway, client: httpx.Client) -> None:
    """Deleting an app made accepted requests vanish: the URLs from the submit answered 404 though the results were
    kept. What waited ends with the cause, what has ended can be fetched; only the owner may look, as nobody knows any
    more who could call the app."""
    app = gateway.app()
    worker = gateway.worker(app)
    done = submit(client, app)
    completed(client, done["status_url"])
    gateway.call(worker.stop())
    waiting = submit(client, app)
    stranger, secret = gateway.call(gateway.store.keys.create("stranger", "tests"))
    with gateway.owner_client() as owner:
        assert owner.delete(f"/api/v1/apps/{app}").status_code in (200, 204)
        assert owner.get(done["response_url"]).json() == {"a": 1}
        assert owner.get(done["status_url"]).json()["status"] == "COMPLETED"
        ended = owner.get(waiting["status_url"] + "?logs=1")
        assert (ended.status_code, ended.json()["status"]) == (200, "COMPLETED")
        assert ended.json()["error"] == "The app was deleted while the request waited."
        assert ended.json()["error_type"] == "runner_scheduling_failure"
        result = owner.get(waiting["response_url"])
        assert (result.status_code, result.json()["detail"]) == (404, "The app was deleted while the request waited.")
        assert owner.put(waiting["cancel_url"]).json() == {"status": "ALREADY_COMPLETED"}
        assert owner.get(waiting["status_url"] + "/stream").text.count("data: ") == 1
        assert owner.post(f"/queue/{app}", content=b"{}").status_code == 404
        unknown = owner.get(f"/queue/{app}/requests/00000000-0000-4000-8000-000000000000/status")
        assert unknown.status_code == 404
    for url in (done["response_url"], waiting["status_url"], waiting["cancel_url"]):
        method = "PUT" if url.endswith("cancel") else "GET"
        assert client.request(method, url).status_code == 401
        foreign = client.request(method, url, headers={"authorization": f"Key {stranger.key_id}:{secret}"})
        assert foreign.status_code == 403
