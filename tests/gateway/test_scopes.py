"""What keys of each scope may do: one rule for every control route, and what calls of apps need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import get_args

import pytest
from fal._spec import KeyScope

from gateway.auth import RIGHTS
from scheduler.store import keys
from tests.gateway.platform import OWNER, RunningGateway

#: Routes whose need is not what their method says: reading for GET, managing for the others.
OTHERWISE = {
    ("/api/v1/whoami", "GET"): {"call", "read", "manage", "keys"},
    ("/rest/users/current", "GET"): {"call", "read", "manage", "keys"},
    ("/api/v1/keys", "POST"): {"keys"},
    ("/api/v1/keys/{key_id}", "DELETE"): {"keys"},
    ("/api/v1/keys/{owner}/{app}", "DELETE"): {"keys"},
    ("/rest/tokens", "POST"): {"call"},
    ("/rest/tokens/realtime", "POST"): {"call"},
    ("/rest/storage/auth/token", "POST"): {"call", "manage"},
    ("/rest/storage/upload/initiate", "POST"): {"call", "manage"},
    ("/rest/storage/upload/initiate-multipart", "POST"): {"call", "manage"},
    ("/rest/logs/history", "POST"): {"read"},
    ("/rest/logs/stream", "POST"): {"read"},
}
KeyOf = Callable[[KeyScope], str]


@pytest.fixture
def key_of(gateway: RunningGateway) -> KeyOf:
    def make(scope: KeyScope) -> str:
        record, secret = gateway.call(gateway.store.keys.create(OWNER, scope, scope))
        return f"Key {record.key_id}:{secret}"

    return make


def routes(gateway: RunningGateway) -> Iterator[tuple[str, str]]:
    for route in gateway.gateway.routes:
        for method in sorted((route.methods or set()) - {"HEAD"}):
            yield route.path, method


@pytest.mark.parametrize("scope", get_args(KeyScope))
def test_every_control_route_asks_for_the_scope(gateway: RunningGateway, key_of: KeyOf, scope: KeyScope) -> None:
    asked = 0
    with gateway.client() as client:
        client.headers["authorization"] = key_of(scope)
        for path, method in routes(gateway):
            address = path
            for name, value in {"owner": OWNER, "app": "nothing", "{path:path}": "/data/x", "number:int": "1"}.items():
                address = address.replace(name if name.startswith("{") else f"{{{name}}}", value)
            address = address.replace("{", "").replace("}", "")
            if client.request(method, address, headers={"authorization": "Key no:body"}).status_code != 401:
                continue  # for anybody
            needs = OTHERWISE.get((path, method), {"read"} if method == "GET" else {"manage"})
            answer = client.request(method, address, content=b"{}" if method != "GET" else None)
            refused = answer.status_code == 403 and f"has the scope {scope} and may only" in answer.text
            assert refused == RIGHTS[scope].isdisjoint(needs), f"{method} {path}: {answer.status_code} {answer.text}"
            asked += 1
    assert asked > 50


@pytest.mark.parametrize(("scope", "may"), [("FULL", True), ("API", True), ("DEPLOY", False), ("READONLY", False)])
def test_who_may_call_a_private_app_and_ask_for_what_came_of_it(
    gateway: RunningGateway, key_of: KeyOf, scope: KeyScope, may: bool
) -> None:
    app = gateway.app(auth="private")
    gateway.worker(app)
    with gateway.client() as client:
        full = {"authorization": f"Key {gateway.key}"}
        queued = client.post(f"/queue/{app}", content=b"{}", headers=full).json()["request_id"]
        client.headers["authorization"] = key_of(scope)
        assert client.post(f"/{app}", content=b"{}").status_code == (200 if may else 403)
        assert client.get(f"/{app}/health").status_code == (200 if may else 403)
        submitted = client.post(f"/queue/{app}", content=b"{}")
        assert submitted.status_code == (200 if may else 403)
        if not may:
            only = {"DEPLOY": "deploy and look after apps", "READONLY": "look at apps, runners and logs"}[scope]
            key_id = client.headers["authorization"].split()[1].split(":")[0]
            said = f'The key "{key_id}" has the scope {scope} and may only {only}: this needs one of FULL or API.'
            assert submitted.json() == {"detail": said}
        seen = client.get(f"/queue/{app}/requests/{queued}/status")
        assert seen.status_code in (200, 202)
        cancelled = client.put(f"/queue/{app}/requests/{queued}/cancel")
        assert (cancelled.status_code == 403) == (scope == "READONLY")


@pytest.mark.parametrize("scope", get_args(KeyScope))
def test_a_public_app_is_everybodys(gateway: RunningGateway, key_of: KeyOf, scope: KeyScope) -> None:
    app = gateway.app(auth="public")
    gateway.worker(app)
    with gateway.client() as client:
        assert client.post(f"/{app}", content=b"{}", headers={"authorization": key_of(scope)}).status_code == 200


def test_a_key_has_its_scope_from_its_making(gateway: RunningGateway, key_of: KeyOf) -> None:
    with gateway.client() as client:
        client.headers["authorization"] = f"Key {gateway.key}"
        made = client.post("/api/v1/keys", json={"name": "ci", "scope": "DEPLOY"}).json()
        assert made["scope"] == "DEPLOY"
        own = {"authorization": f"Key {made['key']}"}
        assert client.get("/api/v1/whoami", headers=own).json()["scope"] == "DEPLOY"
        listed = {key["key_id"]: key["scope"] for key in client.get("/api/v1/keys").json()["items"]}
        assert listed[made["key_id"]] == "DEPLOY"
        wrong = client.post("/api/v1/keys", json={"scope": "SOME"})
        assert wrong.status_code == 400
        assert wrong.json()["detail"] == '"scope" must be one of FULL, API, DEPLOY, READONLY.'
        more = client.post("/api/v1/keys", json={}, headers=own)
        assert (more.status_code, "needs one of FULL." in more.json()["detail"]) == (403, True), more.text


@pytest.mark.parametrize(("stored", "status"), [(None, 200), ("AUDIT", 403)])
def test_a_key_of_an_earlier_version_may_do_everything_and_one_of_a_later_version_nothing(
    gateway: RunningGateway, stored: str | None, status: int
) -> None:
    record, secret = gateway.call(gateway.store.keys.create(OWNER, "of another version"))
    command = gateway.store.keys._redis.command
    key = keys.api_key(record.key_id)
    gateway.call(command("HSET", key, "scope", stored) if stored else command("HDEL", key, "scope"))
    with gateway.client() as client:
        answer = client.get("/api/v1/apps", headers={"authorization": f"Key {record.key_id}:{secret}"})
    assert answer.status_code == status, answer.text
    assert ("a newer version" in answer.text) == (status == 403)
