"""Who may call what: three kinds of apps, keys in every form that clients send them, and owners apart."""

from __future__ import annotations

import base64

import httpx
import pytest
from fal._spec import Auth

from tests.gateway.platform import RunningGateway


@pytest.fixture
def other_key(gateway: RunningGateway) -> str:
    """A valid key of somebody else."""
    record, secret = gateway.call(gateway.store.keys.create("somebody", "theirs"))
    return f"{record.key_id}:{secret}"


def call(gateway: RunningGateway, app: str, authorization: str | None) -> httpx.Response:
    with gateway.client() as client:
        return client.post(f"/{app}", content=b"{}", headers={"authorization": authorization} if authorization else {})


@pytest.mark.parametrize(
    ("auth", "anonymous", "stranger", "owner"),
    [("public", 200, 200, 200), ("shared", 401, 200, 200), ("private", 401, 403, 200)],
)
def test_who_may_call_which_kind_of_app(
    gateway: RunningGateway, other_key: str, auth: Auth, anonymous: int, stranger: int, owner: int
) -> None:
    app = gateway.app(auth=auth)
    gateway.worker(app)
    assert call(gateway, app, None).status_code == anonymous
    assert call(gateway, app, f"Key {other_key}").status_code == stranger
    assert call(gateway, app, f"Key {gateway.key}").status_code == owner


def test_a_key_may_come_in_every_usual_form(gateway: RunningGateway) -> None:
    app = gateway.app(auth="private")
    gateway.worker(app)
    basic = base64.b64encode(gateway.key.encode()).decode()
    for value in (f"Key {gateway.key}", f"Bearer {gateway.key}", f"key {gateway.key}", f"Basic {basic}"):
        assert call(gateway, app, value).status_code == 200


@pytest.mark.parametrize(
    "value",
    ["Key nonsense", "Key :", "Key a:b", "Digest a:b", "Basic !!!", "Key " + "x" * 600 + ":y", "Key \xe9:b", "Key"],
)
def test_a_wrong_key_is_a_401_that_says_what_to_send(gateway: RunningGateway, value: str) -> None:
    app = gateway.app(auth="private")
    with gateway.client() as client:
        for path in (f"/{app}", f"/queue/{app}", "/api/v1/deployments"):
            answer = client.post(path, content=b"{}", headers=[(b"authorization", value.encode("latin-1"))])
            assert answer.status_code == 401
            assert set(answer.json()) == {"detail"}
            assert "Authorization: Key <id>:<secret>" in answer.json()["detail"]
            assert answer.headers["www-authenticate"] == "Key"


def test_a_right_id_with_a_wrong_secret_is_refused(gateway: RunningGateway) -> None:
    app = gateway.app(auth="private")
    gateway.worker(app)
    key_id = gateway.key.split(":")[0]
    assert call(gateway, app, f"Key {gateway.key}").status_code == 200
    assert call(gateway, app, f"Key {key_id}:{'0' * 64}").status_code == 401


def test_a_revoked_key_stops_working(gateway: RunningGateway) -> None:
    app = gateway.app(auth="private")
    gateway.worker(app)
    with gateway.owner_client() as client:
        made = client.post("/api/v1/keys", json={"name": "laptop"})
        assert made.status_code == 201
        key = made.json()["key"]
        assert call(gateway, app, f"Key {key}").status_code == 200
        assert {"tests", "laptop"} <= {item["name"] for item in client.get("/api/v1/keys").json()["items"]}
        assert "secret" not in client.get("/api/v1/keys").text
        assert client.delete(f"/api/v1/keys/{made.json()['key_id']}").status_code == 204
    assert call(gateway, app, f"Key {key}").status_code == 401


def test_the_queue_of_a_private_app_is_its_owners(gateway: RunningGateway, other_key: str) -> None:
    app = gateway.app(auth="private")
    with gateway.owner_client() as owner:
        sent = owner.post(f"/queue/{app}", content=b"{}").json()
    for headers, expected in (({}, 401), ({"authorization": f"Key {other_key}"}, 403)):
        with gateway.client(headers=headers) as client:
            assert client.post(f"/queue/{app}", content=b"{}").status_code == expected
            for url in (sent["status_url"], sent["response_url"], sent["status_url"] + "/stream"):
                assert client.get(url).status_code == expected
            assert client.put(sent["cancel_url"]).status_code == expected


def test_the_control_api_is_closed_to_strangers(gateway: RunningGateway, other_key: str) -> None:
    app = gateway.app()
    mine = [
        ("GET", f"/api/v1/apps/{app}"),
        ("DELETE", f"/api/v1/apps/{app}"),
        ("PATCH", f"/api/v1/apps/{app}/scaling"),
        ("POST", f"/api/v1/apps/{app}/revision"),
        ("GET", f"/api/v1/apps/{app}/revisions"),
        ("GET", f"/api/v1/apps/{app}/workers"),
        ("GET", f"/api/v1/apps/{app}/logs"),
        ("GET", f"/api/v1/apps/{app}/session"),
        ("GET", f"/api/v1/apps/{app}/openapi.json"),
        ("GET", f"/api/v1/deployments/{app}/abc/events"),
        ("GET", f"/api/v1/queue/{app}"),
        ("DELETE", f"/api/v1/queue/{app}"),
    ]
    anybody = [
        ("GET", "/api/v1/apps"),
        ("GET", "/api/v1/hosts"),
        ("GET", "/api/v1/keys"),
        ("GET", "/api/v1/whoami"),
        ("POST", "/api/v1/bundles/missing"),
        ("PUT", f"/api/v1/bundles/objects/{'0' * 64}"),
    ]
    with gateway.client() as client:
        for method, path in (*mine, *anybody):
            answer = client.request(method, path)
            assert (path, answer.status_code) == (path, 401)
    with gateway.client(headers={"authorization": f"Key {other_key}"}) as client:
        for method, path in mine:
            answer = client.request(method, path)
            assert (path, answer.status_code) == (path, 403)
        assert client.get("/api/v1/apps").json() == {"items": []}
        own = client.get("/api/v1/keys").json()["items"]
        assert {item["owner"] for item in own} == {"somebody"}
        theirs = gateway.key.split(":")[0]
        assert client.delete(f"/api/v1/keys/{theirs}").status_code == 404
        assert client.get("/api/v1/whoami").json()["owner"] == "somebody"
    with gateway.owner_client() as client:
        assert client.get(f"/api/v1/apps/{app}").status_code == 200
