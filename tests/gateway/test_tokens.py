"""Tokens in a key's place: who gets one, what it opens and for how long."""

from __future__ import annotations

import time
from typing import Any

import jwt
import pytest

from gateway.tokens import Tokens
from tests.gateway.conftest import StartGateway
from tests.gateway.platform import RunningGateway


def ask(gateway: RunningGateway, body: dict[str, Any], path: str = "/rest/tokens/") -> Any:
    with gateway.owner_client() as owner:
        answer = owner.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()


def call(gateway: RunningGateway, app: str, token: str, **headers: str) -> int:
    with gateway.client(headers=headers) as browser:
        return browser.post(f"/{app}", params={"fal_jwt_token": token, "seen": "1"}, json={}).status_code


def test_the_clients_get_a_bare_string_and_token_providers_an_object(gateway: RunningGateway) -> None:
    app = gateway.app(auth="private")
    worker = gateway.worker(app)
    name = app.split("/")[1]
    bare = ask(gateway, {"allowed_apps": [name], "token_expiration": 120})
    assert isinstance(bare, str)
    wrapped = ask(gateway, {"allowed_apps": [f"{app}/realtime"], "duration": 120}, "/rest/tokens/realtime")["token"]
    other_spelling = ask(gateway, {"app": app}, "/rest/tokens/realtime/")["token"]
    for token in (bare, wrapped, other_spelling):
        assert call(gateway, app, token) == 200
    assert {claim.query for claim in worker.claims} == {"seen=1"}, "the app must not see the token"


def test_a_token_is_for_its_apps_only(gateway: RunningGateway) -> None:
    app, other = gateway.app(auth="private"), gateway.app(auth="private")
    token = ask(gateway, {"allowed_apps": [app]})
    assert call(gateway, other, token) == 403


def test_a_token_opens_no_more_than_its_key(gateway: RunningGateway) -> None:
    """It names an app by its alias alone, so that it fits an app of that name of anybody: the key decides."""
    app = gateway.app(auth="private")
    key, secret = gateway.call(gateway.store.keys.create("stranger", ""))
    with gateway.client(headers={"authorization": f"Key {key.key_id}:{secret}"}) as stranger:
        token = stranger.post("/rest/tokens/", json={"allowed_apps": [app.split("/")[1]]}).json()
    assert call(gateway, app, token) == 403


def test_a_token_is_no_key(gateway: RunningGateway) -> None:
    token = ask(gateway, {"allowed_apps": ["x"]})
    with gateway.client(headers={"authorization": f"Bearer {token}"}) as client:
        assert client.get("/api/v1/apps").status_code == 401
        assert client.post("/rest/tokens/", json={"allowed_apps": ["x"]}).status_code == 401
        assert client.post("/cdn/files/upload", content=b"x").status_code == 401


@pytest.mark.parametrize(
    ("secret", "algorithm", "claims"),
    [
        (b"guessed" * 8, "HS256", {"exp": 99999999999}),
        (None, "HS256", {"exp": 1}),
        (None, "HS256", {}),
        (None, "HS512", {"exp": 99999999999}),
        ("", "none", {"exp": 99999999999}),
    ],
)
def test_forged_and_expired_tokens(
    gateway: RunningGateway, secret: Any, algorithm: str, claims: dict[str, Any]
) -> None:
    app = gateway.app(auth="private")
    key_id = gateway.key.partition(":")[0]
    whole = {"aud": "call", "sub": key_id, "apps": [app], **claims}
    token = jwt.encode(whole, Tokens(gateway.settings.data_dir)._key() * 2 if secret is None else secret, algorithm)
    assert call(gateway, app, token) == 401


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "é"])
def test_what_is_no_token(gateway: RunningGateway, token: str) -> None:
    assert call(gateway, gateway.app(auth="private"), token) == 401


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"allowed_apps": []},
        {"allowed_apps": "x"},
        {"allowed_apps": [1]},
        {"allowed_apps": ["a b"]},
        {"allowed_apps": ["x"] * 33},
        {"allowed_apps": ["x"], "token_expiration": 0},
        {"allowed_apps": ["x"], "token_expiration": 3601},
        {"allowed_apps": ["x"], "token_expiration": "120"},
        {"allowed_apps": ["x"], "token_expiration": True},
    ],
)
def test_tokens_that_are_not_given(gateway: RunningGateway, body: dict[str, Any]) -> None:
    with gateway.owner_client() as owner:
        answer = owner.post("/rest/tokens/", json=body)
    assert (answer.status_code, answer.json()["error_type"]) == (400, "bad_request")


@pytest.mark.parametrize(("ahead", "status"), [(-300, 401), (-50, 200), (0, 200), (50, 200), (300, 401)])
def test_gateways_whose_clocks_differ(gateway: RunningGateway, ahead: int, status: int) -> None:
    """F29: a token of a gateway whose clock was two seconds ahead was not valid yet for the others."""
    app = gateway.app(auth="private")
    gateway.worker(app)
    now = int(time.time())
    issued = {"iat": now + ahead, "exp": now + ahead + 10}
    claims = {"aud": "call", "sub": gateway.key.partition(":")[0], "apps": [app], **issued}
    token = jwt.encode(claims, Tokens(gateway.settings.data_dir)._key(), "HS256")
    assert call(gateway, app, token) == status


def test_every_gateway_knows_the_others_tokens(gateway: RunningGateway, start_gateway: StartGateway) -> None:
    app = gateway.app(auth="private")
    gateway.worker(app)
    assert call(start_gateway(), app, ask(gateway, {"allowed_apps": [app]})) == 200
