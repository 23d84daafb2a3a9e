"""The control API beside deploys: apps, scaling, revisions, workers, queues, hosts, logs and sessions."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from scheduler.store import keys
from scheduler.store.records import LogEntry, RevisionState
from tests.gateway.platform import HOST, RunningGateway, revision_record
from tests.support.waiting import wait_until


@pytest.fixture
def client(gateway: RunningGateway) -> Iterator[httpx.Client]:
    with gateway.owner_client() as client:
        yield client


def say(gateway: RunningGateway, app: str, *lines: str, request_id: str | None = None, worker: str = "w-1") -> None:
    entries = [LogEntry("", time.time(), "STDOUT", line, worker, request_id) for line in lines]
    gateway.call(gateway.store.logs.append(app, entries))


def told(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in answer.iter_lines():
        if line.startswith("data: "):
            yield json.loads(line[6:])


def test_health_and_whoami(gateway: RunningGateway, client: httpx.Client) -> None:
    assert client.get("/health").json()["status"] == "ok"
    assert client.get("/api/v1/whoami/").json() == {
        "owner": "tester",
        "key_id": gateway.key.split(":")[0],
        "scope": "FULL",
    }


def test_the_public_half_of_the_webhook_key(gateway: RunningGateway) -> None:
    with gateway.client() as client:
        first = client.get("/rest/.well-known/jwks.json")
        by_host = client.get("/.well-known/jwks.json", headers={"host": "rest.fal.ai"})
    key = first.json()["keys"][0]
    assert (key["kty"], key["crv"]) == ("OKP", "Ed25519")
    assert key["x"].endswith("=")
    assert by_host.json() == first.json()
    assert (gateway.settings.data_dir / "webhook_ed25519.key").stat().st_mode & 0o077 == 0


def test_an_app_as_its_owner_sees_it(gateway: RunningGateway, client: httpx.Client) -> None:
    app = gateway.app(auth="private")
    gateway.worker(app)
    shown = client.get(f"/api/v1/apps/{app}").json()
    assert (shown["app"], shown["auth"], shown["ephemeral"]) == (app, "private", False)
    assert shown["scaling"]["max_concurrency"] == 2
    assert (shown["class_name"], shown["entry_file"]) == ("Hello", "hello.py")
    assert shown["queue"] == {"queued": 0, "delayed": 0, "in_progress": 0}
    assert shown["machine_types"] == ["S"]
    assert shown["urls"] == {"sync": f"{gateway.url}/{app}", "queue": f"{gateway.url}/queue/{app}"}
    assert [worker["state"] for worker in shown["workers"]] == ["IDLE"]
    workers = client.get(f"/api/v1/apps/{app}/workers").json()["items"]
    assert [(worker["host"], worker["machine_type"]) for worker in workers] == [("this-host", "S")]
    assert app in [item["app"] for item in client.get("/api/v1/apps").json()["items"]]


def test_scaling_changes_one_setting_and_keeps_the_others(gateway: RunningGateway, client: httpx.Client) -> None:
    app = gateway.app()
    path = f"/api/v1/apps/{app}/scaling"
    changed = client.patch(path, json={"keep_alive": 7, "max_concurrency": 9})
    assert (changed.status_code, changed.json()["scaling"]["keep_alive"]) == (200, 7)
    shown = client.get(f"/api/v1/apps/{app}").json()["scaling"]
    assert (shown["keep_alive"], shown["max_concurrency"], shown["min_concurrency"]) == (7, 9, 0)
    for wrong in ({"min_concurrency": 10}, {"keep_alive": "long"}, {"keepalive": 3}, {"scaling_delay": -1}):
        assert client.patch(path, json=wrong).status_code == 400
    assert client.get(f"/api/v1/apps/{app}").json()["scaling"] == shown


def test_a_setting_of_the_code_makes_a_revision_that_one_may_leave_again(
    gateway: RunningGateway, client: httpx.Client
) -> None:
    """They used to be refused: whoever wanted two requests at a time on a runner had to change the code and deploy."""
    gateway.call(gateway.store.hosts.report(HOST, ttl_s=600))
    app = gateway.app()
    before = client.get(f"/api/v1/apps/{app}").json()["revision"]
    path = f"/api/v1/apps/{app}/scaling"
    changed = client.patch(path, json={"max_multiplexing": 4, "machine_types": ["M"], "keep_alive": 7}).json()
    made = gateway.call(gateway.store.apps.revision(app, changed["revision"]))
    first = gateway.call(gateway.store.apps.revision(app, before))
    assert made is not None
    assert first is not None
    assert (made.spec.max_multiplexing, made.spec.machine_types, first.spec.max_multiplexing) == (4, ("M",), 1)
    assert (made.bundle_hash, made.environment_key, made.state) == (first.bundle_hash, first.environment_key, "READY")
    assert "max_multiplexing = 4" in str(made.message)
    now = client.get(f"/api/v1/apps/{app}").json()
    assert (now["revision"], now["scaling"]["keep_alive"]) == (made.revision, 7)
    assert client.post(f"/api/v1/apps/{app}/revision", json={"revision": before}).json()["scaling"]["keep_alive"] == 7
    for wrong, status in (({"max_multiplexing": 0}, 400), ({"machine_types": ["GPU-A100"]}, 409)):
        assert client.patch(path, json=wrong).status_code == status
    assert len(gateway.call(gateway.store.apps.revisions(app))) == 2


def test_limits_of_requests_belong_to_the_alias(gateway: RunningGateway, client: httpx.Client) -> None:
    """request_start_timeout was read from the class and nobody looked at it; deploys changed request_timeout."""
    app = gateway.app()
    path = f"/api/v1/apps/{app}/scaling"

    def with_deadline() -> list[str]:
        found = gateway.call(gateway.store._redis.command("ZRANGE", keys.deadlines(app), 0, -1))
        return [request_id.decode() for request_id in found]

    assert client.patch(path, json={"request_start_timeout": 60}).status_code == 200
    limited = client.post(f"/queue/{app}", json={}).json()["request_id"]
    assert client.patch(path, json={"request_start_timeout": None}).status_code == 200
    client.post(f"/queue/{app}", json={})
    assert with_deadline() == [limited]
    gateway.worker(app)
    assert [w.retiring for w in gateway.call(gateway.store.workers.list(app))] == [None]
    assert client.patch(path, json={"request_timeout": 60}).status_code == 200
    assert all(w.retiring for w in gateway.call(gateway.store.workers.list(app)))


def test_an_alias_can_be_moved_to_a_revision_that_was_built(gateway: RunningGateway, client: httpx.Client) -> None:
    app = gateway.app()
    first = client.get(f"/api/v1/apps/{app}").json()["revision"]
    second = revision_record(app, app.split("/")[1])
    gateway.call(gateway.store.apps.put_revision(second))
    path = f"/api/v1/apps/{app}/revision"
    assert client.post(path, json={"revision": second.revision}).json()["revision"] == second.revision
    listed = client.get(f"/api/v1/apps/{app}/revisions").json()["items"]
    assert {item["revision"]: item["current"] for item in listed} == {first: False, second.revision: True}
    gateway.call(gateway.store.apps.set_revision_state(app, first, RevisionState.FAILED, "broken"))
    refused = client.post(path, json={"revision": first})
    assert (refused.status_code, "FAILED" in refused.json()["detail"]) == (409, True)
    assert client.post(path, json={"revision": "unknown"}).status_code == 404
    assert client.post(path, json={}).status_code == 400


def test_the_openapi_document_is_known_after_the_first_start(gateway: RunningGateway, client: httpx.Client) -> None:
    app = gateway.app()
    revision = client.get(f"/api/v1/apps/{app}").json()["revision"]
    assert client.get(f"/api/v1/apps/{app}/openapi.json").status_code == 404
    gateway.call(gateway.store.apps.set_openapi(app, revision, '{"openapi": "3.1.0"}'))
    assert client.get(f"/api/v1/apps/{app}/openapi.json").json() == {"openapi": "3.1.0"}


def test_a_queue_can_be_measured_and_emptied(gateway: RunningGateway, client: httpx.Client) -> None:
    app = gateway.app()
    sent = [client.post(f"/queue/{app}", content=b"{}").json() for _ in range(3)]
    assert client.get(f"/api/v1/queue/{app}").json() == {"app": app, "size": 3}
    assert client.delete(f"/api/v1/queue/{app}").json() == {"app": app, "flushed": 3}
    assert client.get(f"/api/v1/queue/{app}").json()["size"] == 0
    assert client.get(sent[0]["status_url"]).json()["status"] == "COMPLETED"


def test_a_deleted_app_is_gone_at_once(gateway: RunningGateway, client: httpx.Client) -> None:
    app = gateway.app()
    sent = client.post(f"/queue/{app}", content=b"{}").json()
    assert client.delete(f"/api/v1/apps/{app}").status_code == 204
    assert client.post(f"/queue/{app}", content=b"{}").status_code == 404
    assert client.delete(f"/api/v1/apps/{app}").status_code == 404
    record = gateway.call(gateway.store.requests.get(app, sent["request_id"]))
    assert record is not None
    assert record.state.terminal


def test_hosts_and_what_they_offer(gateway: RunningGateway, client: httpx.Client) -> None:
    gateway.call(gateway.store.hosts.report(HOST, ttl_s=600))
    hosts = {host["host"]: host for host in client.get("/api/v1/hosts").json()["items"]}
    assert hosts[HOST.host]["machine_types"] == ["XS", "S", "M", "L", "XL"]
    assert (hosts[HOST.host]["alive"], hosts[HOST.host]["cpu_fallback"]) == (True, False)


def test_logs_by_the_page(gateway: RunningGateway, client: httpx.Client) -> None:
    app = gateway.app()
    path = f"/api/v1/apps/{app}/logs"
    assert client.get(path).json() == {"items": []}
    say(gateway, app, "one", "two")
    say(gateway, app, "three", request_id="r-1")
    items = client.get(path).json()["items"]
    assert [item["message"] for item in items] == ["one", "two", "three"]
    assert [item["message"] for item in client.get(path, params={"limit": 2}).json()["items"]] == ["two", "three"]
    after = client.get(path, params={"after": items[0]["id"]}).json()["items"]
    assert [item["message"] for item in after] == ["two", "three"]
    mine = client.get(path, params={"request_id": "r-1"}).json()["items"]
    assert [(item["message"], item["worker_id"]) for item in mine] == [("three", "w-1")]
    for wrong in ({"limit": "0"}, {"limit": "all"}, {"after": "+ x"}):
        assert client.get(path, params=wrong).status_code == 400


@pytest.mark.parametrize(
    ("path", "body"), [("/api/v1/bundles/missing", {"hashes": [None]}), ("/rest/tokens", {"allowed_apps": [None]})]
)
def test_null_in_a_list_is_refused(client: httpx.Client, path: str, body: dict[str, Any]) -> None:
    """It was taken for "nothing wrong was found in the list", and its use was a 500."""
    answer = client.post(path, json=body)
    assert (answer.status_code, "holds None" in answer.json()["detail"]) == (400, True)


def test_a_field_that_the_document_does_not_have_is_refused(client: httpx.Client) -> None:
    """A misspelled one was passed over, and what it should have said did not happen."""
    answer = client.post("/api/v1/keys", json={"Name": "laptop"})
    assert (answer.status_code, answer.json()["detail"]) == (400, "Unknown field 'Name'; there are name, scope.")
    assert client.post("/api/v1/keys", json={}).status_code == 201


@pytest.mark.parametrize("after", ["99999999999999999999", "1-99999999999999999999", "٣"])
def test_an_entry_that_redis_cannot_name_is_a_400(gateway: RunningGateway, client: httpx.Client, after: str) -> None:
    """A number beyond 64 bits, and digits of other scripts, reached Redis, whose refusal was answered with a 500."""
    path = f"/api/v1/apps/{gateway.app(ephemeral=True)}"
    for route in ("logs", "session"):
        answer = client.get(f"{path}/{route}", params={"after": after})
        assert (answer.status_code, "after is" in answer.json()["detail"]) == (400, True)


def test_logs_as_they_come(gateway: RunningGateway, client: httpx.Client) -> None:
    app = gateway.app()
    say(gateway, app, "before")
    with client.stream("GET", f"/api/v1/apps/{app}/logs?follow=1") as answer:
        lines = told(answer)
        assert next(lines)["message"] == "before"
        say(gateway, app, "after")
        second = next(lines)
        assert (second["type"], second["message"], second["level"]) == ("log", "after", "STDOUT")


def test_the_lines_of_one_worker_among_those_of_others(gateway: RunningGateway, client: httpx.Client) -> None:
    """Only the first lines of the log were searched, and a follower that found none of its worker's there never got
    any further."""
    app = gateway.app()
    say(gateway, app, *(f"noise {n}" for n in range(1500)))
    say(gateway, app, "mine", worker="w-2")
    path = f"/api/v1/apps/{app}/logs?worker_id=w-2"
    items = client.get(f"{path}&limit=10").json()["items"]
    assert [item["message"] for item in items] == ["mine"]
    with client.stream("GET", f"{path}&follow=1&after=0") as answer:
        lines = told(answer)
        assert next(lines)["message"] == "mine"
        say(gateway, app, "more noise")
        say(gateway, app, "mine too", worker="w-2")
        assert next(lines)["message"] == "mine too"


def test_a_session_shows_the_log_and_ends_with_its_caller(gateway: RunningGateway, client: httpx.Client) -> None:
    """Ctrl-C of ``fal run`` must take the app away even when its own request to delete it never comes."""
    app = gateway.app(ephemeral=True)
    say(gateway, app, "hello")
    with client.stream("GET", f"/api/v1/apps/{app}/session") as answer:
        lines = told(answer)
        assert next(lines)["message"] == "hello"
        assert gateway.call(gateway.store.apps.get(app)) is not None
    wait_until(lambda: gateway.call(gateway.store.apps.get(app)) is None, "the app was deleted")


def test_a_session_survives_its_gateway(redis_server: str, data_dir: Any, gateway: RunningGateway) -> None:
    """The caller is still there when a gateway restarts; deleting the app then broke every ``fal run``."""
    app = gateway.app(ephemeral=True)
    other = RunningGateway(redis_server, data_dir).start()
    try:
        with other.owner_client() as client, client.stream("GET", f"/api/v1/apps/{app}/session") as answer:
            say(gateway, app, "hello")
            lines = told(answer)  # kept: a stream that nothing refers to is closed
            assert next(lines)["message"] == "hello"
            other.stop()
            assert list(lines) == []
    finally:
        other.stop()
    assert gateway.call(gateway.store.apps.get(app)) is not None
    with gateway.owner_client() as client, client.stream("GET", f"/api/v1/apps/{app}/session?after=0") as answer:
        assert next(told(answer))["message"] == "hello"


def test_a_deployed_app_has_no_session(gateway: RunningGateway, client: httpx.Client) -> None:
    assert client.get(f"/api/v1/apps/{gateway.app()}/session").status_code == 409


@pytest.mark.parametrize("path", ["/api/v1/nothing", "/api", "/dashboard", "/favicon.ico", "/ws/a/b", "/rest/x", "/"])
def test_what_is_not_there_is_a_json_404(gateway: RunningGateway, path: str) -> None:
    with gateway.client() as client:
        answer = client.get(path)
    assert (answer.status_code, set(answer.json())) == (404, {"detail"})
    assert answer.headers["x-fal-request-id"]


def test_a_wrong_method_names_the_right_ones(client: httpx.Client) -> None:
    answer = client.put("/api/v1/deployments")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.json()["detail"] == "PUT is not possible here; use POST."
