"""fal-client 1.0.3, unmodified, against a platform with HTTPS: everything of it that needs only FAL_RUN_HOST and
FAL_QUEUE_RUN_HOST."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import ssl
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from types import ModuleType
from typing import Any

import httpx
import pytest

from tests.clients.conftest import APPS
from tests.support.platform import BIN, PlatformUnderTest, command_environ
from tests.support.waiting import wait_until

CALLED = "tester/called"


def test_the_client_is_the_published_one() -> None:
    assert importlib.metadata.version("fal-client") == "1.0.3"


def test_a_shell_needs_only_what_keepwarm_env_prints(secure: PlatformUnderTest) -> None:
    """The line of the documentation, typed into a shell, then a script that knows nothing of the platform."""
    script = f"import fal_client; print(fal_client.run('{CALLED}', arguments={{'text': 'from a shell'}}))"
    line = f"eval \"$(keepwarm env --data '{secure.data}' | sed 's/^/export /')\"; exec '{sys.executable}' -c \"$1\""
    done = subprocess.run(
        ["bash", "-c", line, "bash", script],
        env=command_environ(secure.data, {"PATH": f"{BIN}:/usr/bin:/bin"}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "{'text': 'from a shell'}", done.stderr[-2000:]


def test_run(fal_client: ModuleType) -> None:
    assert fal_client.run(CALLED, arguments={"text": "é"}) == {"text": "é"}
    assert fal_client.run(f"{CALLED}/tries", arguments={"status": 0, "tag": "none"}) == {"tries": 0}


def test_an_app_calls_another_one_with_it(secure: PlatformUnderTest, fal_client: ModuleType) -> None:
    secure.deploy(APPS, "Calling", auth="private")
    assert fal_client.run("tester/calling", arguments={"text": "inside"}) == {"heard": {"text": "inside"}}
    # The client knows the address of uploads by heart, and would take the app's key there.
    url = fal_client.run("tester/calling/upload", arguments={"text": "inside"})["url"]
    assert url.startswith(f"{secure.url}/cdn/files/")
    with secure.client(verify=ssl.create_default_context(cafile=secure.data / "tls" / "roots.pem")) as client:
        assert client.get(url).text == "inside"


def test_submit_events_status_and_result(fal_client: ModuleType) -> None:
    handle = fal_client.submit(CALLED, arguments={"text": "queued", "seconds": 0.5, "lines": 3})
    seen = list(handle.iter_events(with_logs=True, interval=0.05))
    assert {type(event) for event in seen} <= {fal_client.Queued, fal_client.InProgress, fal_client.Completed}
    assert isinstance(seen[-1], fal_client.Completed)
    assert any(isinstance(event, fal_client.InProgress) for event in seen)
    assert seen[-1].metrics["inference_time"] >= 0.5
    assert handle.get() == {"text": "queued"}
    assert isinstance(fal_client.status(CALLED, handle.request_id), fal_client.Completed)
    assert fal_client.result(CALLED, handle.request_id) == {"text": "queued"}


def test_a_sub_path_is_submitted_and_asked_for_by_the_short_name(fal_client: ModuleType) -> None:
    """The client rebuilds the URLs of status and result without the path that it submitted to."""
    handle = fal_client.submit(f"{CALLED}/tries", arguments={"status": 0, "tag": "none"})
    assert "/tries" not in handle.response_url
    assert handle.get() == {"tries": 0}
    assert fal_client.result(f"{CALLED}/tries", handle.request_id) == {"tries": 0}


def test_subscribe_shows_the_logs(fal_client: ModuleType) -> None:
    messages: set[str] = set()

    def on_update(update: Any) -> None:
        messages.update(line["message"] for line in getattr(update, "logs", None) or [])

    result = fal_client.subscribe(
        CALLED, arguments={"text": "logged", "seconds": 0.3, "lines": 2}, with_logs=True, on_queue_update=on_update
    )
    assert result == {"text": "logged"}
    assert messages == {"line 0 of logged", "line 1 of logged"}


def test_queue_positions_and_cancel(fal_client: ModuleType) -> None:
    holding = fal_client.submit("tester/single", arguments={"seconds": 30})
    wait_until(lambda: isinstance(holding.status(), fal_client.InProgress), "the first request to run", timeout=60)
    waiting = [fal_client.submit("tester/single", arguments={}) for _ in range(2)]
    assert [handle.status() for handle in waiting] == [fal_client.Queued(0), fal_client.Queued(1)]
    for handle in [*waiting, holding]:
        fal_client.cancel("tester/single", handle.request_id)
        shown = handle.status()
        assert (shown.error_type, bool(shown.error)) == ("client_cancelled", True)
        with pytest.raises(fal_client.FalClientHTTPError) as failure:
            handle.get()
        assert (failure.value.status_code, failure.value.error_type) == (499, "client_cancelled")
    with pytest.raises(fal_client.FalClientHTTPError) as again:
        holding.cancel()
    assert again.value.status_code == 400


def test_stream(fal_client: ModuleType) -> None:
    events = list(fal_client.stream(CALLED, arguments={"text": "one two three"}))
    assert events == [{"word": "one"}, {"word": "two"}, {"word": "three"}]


def test_validation_errors_arrive_as_the_app_wrote_them(fal_client: ModuleType) -> None:
    with pytest.raises(fal_client.FalClientHTTPError) as failure:
        fal_client.run(CALLED, arguments={"seconds": "soon"})
    assert failure.value.status_code == 422
    assert failure.value.response.json()["detail"][0]["loc"] == ["body", "seconds"]
    assert failure.value.response_headers["x-fal-request-id"]


@pytest.mark.parametrize("status", [400, 401, 404, 422, 425, 499, 500, 502, 504])
def test_the_client_does_not_repeat_a_direct_call(fal_client: ModuleType, status: int) -> None:
    """502 to 504 are repeated only without x-fal-request-id, when a proxy in front of the platform wrote them."""
    tag = uuid.uuid4().hex
    with pytest.raises(fal_client.FalClientHTTPError) as failure:
        fal_client.run(f"{CALLED}/fail", arguments={"status": status, "tag": tag})
    assert failure.value.status_code == status
    assert str(failure.value) == f"told to answer {status}"
    assert fal_client.run(f"{CALLED}/tries", arguments={"status": 0, "tag": tag}) == {"tries": 1}


def test_the_client_does_not_repeat_a_503(fal_client: ModuleType, secure: PlatformUnderTest) -> None:
    """It ends the runner, and the count with it: the app's log tells how often it ran."""
    with pytest.raises(fal_client.FalClientHTTPError, match="told to answer 503"):
        fal_client.run("tester/fragile/fail", arguments={"status": 503, "tag": "unavailable"})
    log = secure.fal("logs", "tester/fragile")
    assert log.stdout.count("failing unavailable") == 1


@pytest.mark.parametrize(("app", "status"), [("tester/nobody", 404), ("someone/else", 404)])
def test_an_unknown_app_is_said_once(fal_client: ModuleType, app: str, status: int) -> None:
    for call in (fal_client.run, fal_client.submit):
        with pytest.raises(fal_client.FalClientHTTPError) as failure:
            call(app, arguments={})
        assert failure.value.status_code == status
        assert app in str(failure.value)


def test_a_wrong_key_is_said_once(fal_client: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAL_KEY", "not:valid")
    with pytest.raises(fal_client.FalClientHTTPError, match="not valid") as failure:
        fal_client.run(CALLED, arguments={})
    assert failure.value.status_code == 401


def test_a_start_timeout_ends_what_waits_and_is_not_repeated(fal_client: ModuleType) -> None:
    holding = fal_client.submit("tester/single", arguments={"seconds": 30})
    wait_until(lambda: isinstance(holding.status(), fal_client.InProgress), "the first request to run", timeout=60)
    with pytest.raises(fal_client.FalClientHTTPError) as failure:
        fal_client.subscribe("tester/single", arguments={}, start_timeout=1.5)
    assert (failure.value.status_code, failure.value.error_type) == (504, "request_timeout")
    assert failure.value.response_headers["x-fal-request-timeout-type"] == "user"
    assert isinstance(holding.status(), fal_client.InProgress)
    holding.cancel()


TIMED_OUT = """
import fal_client

ids = []
try:
    fal_client.subscribe("tester/single", arguments={"seconds": 30}, client_timeout=2.0, on_enqueue=ids.append)
except fal_client.FalClientTimeoutError as error:
    print(type(error).__name__, fal_client.status("tester/single", ids[0]).error_type)
"""


def test_a_client_timeout_cancels(secure: PlatformUnderTest, exports: dict[str, str]) -> None:
    """In a process of its own: a thread of the client goes on polling after the time-out."""
    done = subprocess.run(
        [sys.executable, "-c", TIMED_OUT],
        env=command_environ(secure.data, exports),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["FalClientTimeoutError", "client_cancelled"], done.stderr[-2000:]


def test_every_answer_has_a_request_id(secure: PlatformUnderTest) -> None:
    paths = ["/", "/health", "/run/tester/called", "/queue/tester/called/requests/none/status", "/rest/tokens/"]
    paths += ["/cdn/files/none", "/nowhere", "/api/v1/apps", "/fal/proxy", "/run/a%ff/b", "/queue/", "/ws/x/y"]
    with secure.client() as client:
        for path in paths:
            for method in ("GET", "POST", "OPTIONS", "DELETE"):
                answer = client.request(method, path)
                assert answer.headers["x-fal-request-id"], (method, path)
                assert answer.status_code < 500, (method, path)
                assert not answer.is_redirect, (method, path)


@pytest.mark.parametrize("tail", ["", "/"])
def test_a_trailing_slash_is_no_redirect(secure: PlatformUnderTest, tail: str) -> None:
    with secure.client() as client:
        submitted = client.post(f"/queue/tester/called{tail}", json={"text": "slash"}).json()
        base = f"/queue/tester/called/requests/{submitted['request_id']}"
        wait_until(lambda: client.get(f"{base}/status{tail}").status_code == 200, "the request to complete")
        assert client.get(f"{base}{tail}").json() == client.get(f"{base}/response{tail}").json() == {"text": "slash"}
        assert client.put(f"{base}/cancel{tail}").status_code == 400
        assert client.post(f"/run/tester/called{tail}", json={}).status_code == 200


def test_fal_hosts_select_their_services(secure: PlatformUnderTest) -> None:
    """As with a hosts file or a proxy, where the client's URLs stay what they are."""
    with secure.client() as client:
        run = client.post("/tester/called", json={"text": "by host"}, headers={"host": "fal.run"})
        assert run.json() == {"text": "by host"}
        queued = client.post("/tester/called", json={}, headers={"host": "queue.fal.run"}).json()
        at = f"https://queue.fal.run/tester/called/requests/{queued['request_id']}"
        assert (queued["response_url"], queued["status_url"]) == (at, f"{at}/status")
        for host in ("rest.fal.ai", "rest.alpha.fal.ai"):
            assert client.get("/.well-known/jwks.json", headers={"host": host}).json()["keys"]


@contextlib.asynccontextmanager
async def opened(fal_client: ModuleType) -> AsyncIterator[Any]:
    """An asynchronous client whose connections are closed in the end."""
    client = fal_client.AsyncClient()
    try:
        yield client
    finally:
        await (await client._client).aclose()


def test_async_calls(fal_client: ModuleType) -> None:
    """The same through the asynchronous client, which follows no redirects."""

    async def calls() -> None:
        async with opened(fal_client) as client:
            assert await client.run(CALLED, arguments={"text": "a"}) == {"text": "a"}
            handle = await client.submit(CALLED, arguments={"text": "b", "seconds": 0.2, "lines": 1})
            seen = [event async for event in handle.iter_events(with_logs=True)]
            assert isinstance(seen[-1], fal_client.Completed)
            assert [line["message"] for line in seen[-1].logs] == ["line 0 of b"]
            assert await handle.get() == {"text": "b"}
            assert isinstance(await client.status(CALLED, handle.request_id), fal_client.Completed)
            assert await client.result(CALLED, handle.request_id) == {"text": "b"}
            assert await client.subscribe(CALLED, arguments={"text": "c"}, with_logs=True) == {"text": "c"}
            events = [event async for event in client.stream(CALLED, arguments={"text": "x y"})]
            assert events == [{"word": "x"}, {"word": "y"}]

    asyncio.run(calls())


def test_async_failures(fal_client: ModuleType) -> None:
    async def calls() -> None:
        async with opened(fal_client) as client:
            waiting = await client.submit("tester/single", arguments={"seconds": 30})
            await client.cancel("tester/single", waiting.request_id)
            with pytest.raises(fal_client.FalClientHTTPError, match="cancelled"):
                await waiting.get()
            with pytest.raises(fal_client.FalClientHTTPError) as failure:
                await client.run(CALLED, arguments={"seconds": "soon"})
            assert failure.value.status_code == 422
            with pytest.raises(fal_client.FalClientTimeoutError):
                await client.subscribe("tester/single", arguments={"seconds": 30}, client_timeout=2.0)

    asyncio.run(calls())


def test_many_at_once(fal_client: ModuleType) -> None:
    async def calls() -> list[Any]:
        async with opened(fal_client) as client:
            calling = [client.subscribe(CALLED, arguments={"text": str(n)}) for n in range(20)]
            return list(await asyncio.gather(*calling))

    assert asyncio.run(calls()) == [{"text": str(n)} for n in range(20)]


def test_through_the_connect_proxy_the_addresses_stay_fals(proxied: ModuleType, proxy: str) -> None:
    """HTTPS_PROXY alone, with none of the FAL_ hosts: the client connects to fal.run by name."""
    with httpx.Client(headers={"Authorization": f"Key {proxied.auth.fetch_auth_credentials().token}"}) as client:
        answer = client.post("https://fal.run/tester/called", json={"text": "by name"})
        assert answer.json() == {"text": "by name"}
        assert client.get("https://rest.fal.ai/.well-known/jwks.json").json()["keys"]
    with httpx.Client(trust_env=False) as client:
        assert client.get(proxy).status_code == 405
