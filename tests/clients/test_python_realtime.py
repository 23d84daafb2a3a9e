"""``realtime`` and ``ws_connect`` of fal-client 1.0.3, unmodified, sync and async; and calls over a socket."""

from __future__ import annotations

import json
import ssl
from types import ModuleType
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.support.platform import PlatformUnderTest

LIVE = "tester/live"
CALLED = "tester/called"


@pytest.mark.parametrize("use_jwt", [True, False], ids=["token", "key"])
def test_realtime(proxied: ModuleType, use_jwt: bool) -> None:
    with proxied.sync_client.realtime(LIVE, use_jwt=use_jwt) as connection:
        for text in ("a", "é", "x" * 100_000):
            connection.send({"text": text})
            assert connection.recv() == {"text": text, "data": text.encode()}


def test_an_input_that_does_not_fit_raises_and_the_session_goes_on(proxied: ModuleType) -> None:
    with proxied.sync_client.realtime(LIVE) as connection:
        connection.send({"seconds": "soon"})
        with pytest.raises(proxied.client.RealtimeError) as wrong:
            connection.recv()
        assert wrong.value.error == "INVALID_INPUT"
        assert wrong.value.payload["detail"][0]["loc"] == ["seconds"]
        connection.send({"text": "better"})
        assert connection.recv()["text"] == "better"


def test_a_method_that_fails_raises(proxied: ModuleType) -> None:
    with proxied.sync_client.realtime(LIVE) as connection:
        connection.send({"text": "fail"})
        with pytest.raises(proxied.client.RealtimeError, match="INTERNAL_ERROR: told to fail"):
            connection.recv()
        with pytest.raises(proxied.client.RealtimeError, match="CONNECTION_CLOSED"):
            connection.recv()


def test_streaming_timeouts_and_buffering(proxied: ModuleType) -> None:
    with proxied.sync_client.realtime(LIVE, path="/count") as connection:
        connection.send({"lines": 3})
        assert [connection.recv() for _ in range(3)] == [{"number": 0}, {"number": 1}, {"number": 2}]
        assert connection.recv() is None
    with proxied.sync_client.realtime(LIVE, path="/brief", max_buffering=5) as connection:
        connection.send({"text": "one"})
        assert connection.recv() == {"text": "one"}
        with pytest.raises(proxied.client.RealtimeError, match="TIMEOUT"):
            connection.recv()
        assert connection.recv() is None


def test_encoders_of_the_callers_choice(proxied: ModuleType) -> None:
    options: dict[str, Any] = {"encode_message": json.dumps, "path": "/talk"}
    with proxied.sync_client.realtime(LIVE, **options) as connection:
        connection.send({"text": "as json"})
        assert [connection.recv(), connection.recv()] == [{"word": "as"}, {"word": "json"}]


def test_ws_connect(proxied: ModuleType) -> None:
    with proxied.sync_client.ws_connect(LIVE, path="/raw") as socket:
        socket.send("hello")
        assert socket.recv() == "HELLO"
        socket.send("end")
        assert socket.recv() == "END"
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv()
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "as told")


@pytest.mark.anyio
async def test_async(proxied: ModuleType) -> None:
    client = proxied.AsyncClient()
    async with client.realtime(LIVE, path="/talk") as connection:
        await connection.send({"text": "one two"})
        assert [await connection.recv(), await connection.recv()] == [{"word": "one"}, {"word": "two"}]
        await connection.send({"text": "three"})
        assert await connection.recv() == {"word": "three"}
    async with client.ws_connect(f"{LIVE}/raw", use_jwt=False) as socket:
        await socket.send("hello")
        assert await socket.recv() == "HELLO"
    await (await client._client).aclose()


def test_a_token_of_another_app_opens_nothing(
    proxied: ModuleType, secure: PlatformUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    with secure.client() as client:
        token = client.post("/rest/tokens/", json={"allowed_apps": ["called"]}).json()
    monkeypatch.setattr(type(proxied.sync_client), "_get_realtime_token", lambda *_, **__: token)
    with pytest.raises(InvalidStatus) as refused, proxied.sync_client.realtime(LIVE):
        pass
    assert refused.value.response.status_code == 403


def test_calls_over_a_socket(secure: PlatformUnderTest) -> None:
    """As fal's own ``fal.apps.ws`` speaks: a call for each text frame, answered in order."""
    trust = ssl.create_default_context(cafile=str(secure.data / "tls" / "roots.pem"))
    key = {"Authorization": f"Key {secure.key}"}
    base = secure.url.replace("https", "wss", 1)
    with pytest.raises(InvalidStatus) as refused, connect(f"{base}/ws/{CALLED}", ssl=trust, proxy=None):
        pass
    assert refused.value.response.status_code == 401
    with connect(f"{base}/ws/{CALLED}", ssl=trust, proxy=None, additional_headers=key) as socket:
        for payload in ('{"text": "one"}', '{"text": "two", "seconds": 0.1}', '{"seconds": "soon"}', "no json"):
            socket.send(payload)
        assert answer(socket) == (200, {"text": "one"})
        assert answer(socket) == (200, {"text": "two"})
        assert answer(socket)[0] == 422
        assert answer(socket) == (
            400,
            {"detail": "A call over a websocket is one JSON text.", "error_type": "bad_request"},
        )
    with connect(f"{base}/ws/{CALLED}/stream", ssl=trust, proxy=None, additional_headers=key) as socket:
        socket.send('{"text": "a b"}')
        status, body = answer(socket, raw=True)
        assert (status, body) == (200, b'data: {"word": "a"}\n\ndata: {"word": "b"}\n\n')


def answer(socket: Any, raw: bool = False) -> tuple[int, Any]:
    """Status and body of the next answer; its frames are checked."""
    start = json.loads(socket.recv(60))
    assert start["type"] == "start"
    assert start["headers"]["x-fal-request-id"] == start["request_id"]
    body = b""
    while isinstance(frame := socket.recv(60), bytes):
        body += frame
    end = json.loads(frame)
    assert (end["type"], end["request_id"], end["status"]) == ("end", start["request_id"], start["status"])
    assert end["time_to_first_byte_seconds"] >= 0
    return start["status"], body if raw else json.loads(body)
