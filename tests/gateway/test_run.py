"""Direct calls: the app's answer unchanged, over one connection, and nothing left running when nobody waits."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import httpx
import msgpack
import pytest

from scheduler.store.records import Claimed, Outcome, RequestState
from tests.gateway.platform import JSON, RunningGateway, StubWorker, echo
from tests.support.waiting import wait_until

Start = Callable[..., RunningGateway]


def _has_ended(client: httpx.Client, status_url: str) -> bool:
    return client.get(status_url).status_code == 200


def _header(claim: Claimed, name: str) -> str | None:
    return dict(claim.headers).get(name)


def test_a_post_gets_the_apps_answer(gateway: RunningGateway) -> None:
    app = gateway.app()
    worker = gateway.worker(app)
    with gateway.client() as client:
        answer = client.post(f"/{app}/generate?seed=1", json={"prompt": "rhino"})
    assert (answer.status_code, answer.json()) == (200, {"prompt": "rhino"})
    claim = worker.claims[0]
    assert (claim.method, claim.path, claim.query, claim.mode) == ("POST", "/generate", "seed=1", "direct")
    assert claim.base_url == gateway.url
    assert answer.headers["x-fal-request-id"] == claim.request_id
    assert _header(claim, "x-fal-request-id") == claim.request_id
    assert _header(claim, "x-fal-endpoint") == f"{app}/generate"


@pytest.mark.parametrize("status", [201, 204, 404, 422, 500, 503])
def test_status_headers_and_body_of_the_app_come_back_unchanged(gateway: RunningGateway, status: int) -> None:
    body = b"" if status == 204 else b'{"detail": [{"loc": ["body", "prompt"], "msg": "Field required"}]}'
    headers = (*JSON, ("x-custom", "one"), ("x-fal-billable-units", "2"), ("x-fal-stop-runner", "true"))

    async def handler(_worker: StubWorker, _claim: Claimed) -> Outcome:
        return Outcome(status, headers, body)

    app = gateway.app()
    gateway.worker(app, handler)
    with gateway.client() as client:
        answer = client.post(f"/{app}", content=b"{}")
    assert (answer.status_code, answer.content) == (status, body)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-custom"] == "one"
    assert answer.headers["x-fal-billable-units"] == "2"
    assert "x-fal-stop-runner" not in answer.headers


def test_an_app_cannot_write_answers_of_its_own_into_the_connection(gateway: RunningGateway) -> None:
    async def handler(_worker: StubWorker, _claim: Claimed) -> Outcome:
        bad = (("x-bad", "a\r\nx-injected: 1"), ("bad name", "x"), ("x-good", "yes"), ("content-length", "1"))
        return Outcome(999, (*JSON, *bad), b"{}")

    app = gateway.app()
    gateway.worker(app, handler)
    with gateway.client() as client:
        answer = client.post(f"/{app}", content=b"{}")
    assert (answer.status_code, answer.content) == (502, b"{}")
    assert answer.headers["x-good"] == "yes"
    assert not {"x-bad", "x-injected", "bad name"} & set(answer.headers)


def test_credentials_and_reserved_headers_do_not_reach_the_app(gateway: RunningGateway) -> None:
    app = gateway.app(auth="private")
    worker = gateway.worker(app)
    sent = {
        "cookie": "session=1",
        "x-fal-request-id": "mine",
        "x-fal-caller-user-id": "somebody",
        "x-fal-runner-health-check": "1",
        "x-fal-object-lifecycle-preference": "{}",
        "x-app-fal-disable-fallback": "1",
        "x-custom": "kept",
        "x-forwarded-for": "10.0.0.1",
    }
    with gateway.owner_client() as client:
        answer = client.post(f"/{app}?fal_jwt_token=secret&a=1", content=b"{}", headers=sent)
    assert answer.status_code == 200
    headers = dict(worker.claims[0].headers)
    assert not {"authorization", "cookie", "x-forwarded-for", "x-fal-runner-health-check"} & set(headers)
    assert headers["x-fal-caller-user-id"] == "tester"
    assert headers["x-fal-request-id"] == answer.headers["x-fal-request-id"] != "mine"
    assert headers["x-custom"] == "kept"
    assert headers["x-app-fal-disable-fallback"] == "1"
    assert headers["x-fal-object-lifecycle-preference"] == "{}"
    assert worker.claims[0].query == "a=1"


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"])
def test_other_methods_reach_the_app(gateway: RunningGateway, method: str) -> None:
    app = gateway.app()
    worker = gateway.worker(app)
    with gateway.client() as client:
        assert client.request(method, f"/{app}/").status_code == 200
    assert (worker.claims[0].method, worker.claims[0].path) == (method, "/")


def test_the_run_prefix_and_the_official_host_lead_to_the_same_app(gateway: RunningGateway) -> None:
    app = gateway.app()
    worker = gateway.worker(app)
    with gateway.client() as client:
        assert client.post(f"/run/{app}/a/", content=b"1").content == b"1"
        assert client.post(f"/{app}/b", content=b"2", headers={"host": "fal.run"}).content == b"2"
    assert [claim.path for claim in worker.claims] == ["/a", "/b"]
    # Files are linked to where the app reaches them too, which need not know fal.run by that name.
    assert worker.claims[1].base_url == gateway.url


def test_large_bodies_travel_both_ways(gateway: RunningGateway) -> None:
    async def handler(_worker: StubWorker, claim: Claimed) -> Outcome:
        return Outcome(200, (("content-type", "application/octet-stream"),), claim.body[::-1])

    app = gateway.app()
    gateway.worker(app, handler)
    body = bytes(range(256)) * 12_000
    with gateway.client() as client:
        answer = client.post(f"/{app}", content=body)
    assert answer.content == body[::-1]


def test_an_unknown_app_is_a_404_that_names_the_nearest(gateway: RunningGateway) -> None:
    gateway.app("hello-world")
    with gateway.client() as client:
        answer = client.post("/tester/hello-wrld", json={})
        nowhere = client.post("/tester", json={})
    assert answer.status_code == 404
    assert 'Did you mean "tester/hello-world"?' in answer.json()["detail"]
    assert answer.headers["x-fal-request-id"]
    assert nowhere.status_code == 404


def test_names_that_are_secrets_are_suggested_to_nobody(gateway: RunningGateway) -> None:
    """A public app of ``fal run`` is protected by its name alone; a typo of it must not be corrected for strangers."""
    gateway.app("11111111-2222-4333-8444-555555555555", ephemeral=True)
    gateway.app("payroll", auth="private")
    with gateway.client() as client:
        for guess in ("11111111-2222-4333-8444-555555555554", "payrol"):
            assert "Did you mean" not in client.post(f"/tester/{guess}").json()["detail"]
    with gateway.owner_client() as client:
        named = 'Did you mean "tester/payroll"'
        wait_until(lambda: named in client.post("/tester/payrol").json()["detail"], "the owner is told the name")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-fal-request-timeout", "soon"),
        ("x-fal-request-timeout", "0.1"),
        ("x-fal-request-timeout", "-3"),
        ("x-fal-request-timeout", "nan"),
        ("x-fal-request-timeout", "inf"),
        ("x-fal-queue-priority", "urgent"),
    ],
)
def test_nonsense_in_the_platforms_own_headers_is_a_400(gateway: RunningGateway, name: str, value: str) -> None:
    app = gateway.app()
    with gateway.client() as client:
        answer = client.post(f"/{app}", content=b"{}", headers={name: value})
    assert answer.status_code == 400
    assert answer.json()["error_type"] == answer.headers["x-fal-error-type"] == "bad_request"
    assert repr(value) in answer.json()["detail"]


def test_a_request_that_does_not_start_in_time_is_a_504_of_the_callers_making(gateway: RunningGateway) -> None:
    """No scheduler runs here, so that the gateway itself must end the wait."""
    app = gateway.app()
    with gateway.client() as client:
        answer = client.post(f"/{app}", content=b"{}", headers={"x-fal-request-timeout": "0.2"})
    assert answer.status_code == 504
    assert answer.headers["x-fal-request-timeout-type"] == "user"


def test_a_caller_who_hangs_up_cancels_the_request(gateway: RunningGateway) -> None:
    async def never(_worker: StubWorker, _claim: Claimed) -> None:
        return None

    app = gateway.app()
    worker = gateway.worker(app, never)
    with socket.create_connection(gateway.address) as connection:
        connection.sendall(b"POST /%s HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}" % app.encode())
        wait_until(lambda: worker.claims, "the worker has the request")
    request_id = worker.claims[0].request_id
    wait_until(lambda: worker.cancelled == [request_id], "the worker was told to stop")
    record = gateway.call(gateway.store.requests.get(app, request_id))
    assert record is not None
    assert (record.state, record.error_type) == (RequestState.CANCELLED, "client_disconnected")


def test_a_caller_of_a_sleeping_app_who_hangs_up_leaves_nothing_in_the_queue(gateway: RunningGateway) -> None:
    app = gateway.app()
    with socket.create_connection(gateway.address) as connection:
        connection.sendall(b"POST /%s HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}" % app.encode())
        wait_until(lambda: gateway.call(gateway.store.requests.queue_size(app)) == 1, "the request waits")
    wait_until(lambda: gateway.call(gateway.store.requests.queue_size(app)) == 0, "the queue is empty again")


def test_a_lost_push_is_made_good(gateway: RunningGateway) -> None:
    """The gateway's subscription breaks while a request runs: its result is pushed to nobody. The caller got nothing
    until the time-out."""

    async def when_released(worker: StubWorker, claim: Claimed) -> Outcome:
        await worker.released.wait()
        return Outcome(200, JSON, claim.body)

    async def lose_the_push() -> None:
        await gateway.gateway.results.close()
        worker.released.set()

    app = gateway.app()
    worker = gateway.worker(app, when_released)
    results = gateway.gateway.results
    with socket.create_connection(gateway.address) as connection:
        connection.sendall(b"POST /%s HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}" % app.encode())
        wait_until(lambda: worker.claims, "the worker has the request")
        gateway.call(lose_the_push())
        request_id = worker.claims[0].request_id
        wait_until(
            lambda: gateway.call(gateway.store.requests.state(app, request_id)) is RequestState.COMPLETED, "it is done"
        )
        gateway.call(results.start())
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")


def test_watching_over_queued_callers_asks_for_nothing_but_their_state(gateway: RunningGateway) -> None:
    """Ten thousand callers waited for a busy app, and the gateway read each one's whole record every two seconds. That
    counts up to a thousand requests ahead of it: Redis was busy with it all the time, and answers came at a fifth of
    the rate."""

    def calls() -> dict[str, int]:
        statistics = gateway.call(gateway.store._redis.command("INFO", "commandstats")).decode()
        lines = [line for line in statistics.splitlines() if line.startswith("cmdstat_")]
        return {line[8 : line.index(":")]: int(line.split("calls=")[1].split(",")[0]) for line in lines}

    app = gateway.app()
    with ExitStack() as callers:
        for _ in range(5):
            connection = callers.enter_context(socket.create_connection(gateway.address))
            connection.sendall(b"POST /%s HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}" % app.encode())
        wait_until(lambda: gateway.call(gateway.store.requests.queue_size(app)) == 5, "all wait")
        gateway.call(gateway.store._redis.command("CONFIG", "RESETSTAT"))
        wait_until(lambda: calls().get("ping", 0) >= 2, "they were looked at; each look begins with a ping")
        assert "xrange" not in calls()


def test_a_waiting_caller_hears_that_the_app_was_deleted(gateway: RunningGateway) -> None:
    app = gateway.app()
    with socket.create_connection(gateway.address) as connection:
        connection.sendall(b"POST /%s HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}" % app.encode())
        wait_until(lambda: gateway.call(gateway.store.requests.queue_size(app)) == 1, "the request waits")
        with gateway.owner_client() as client:
            assert client.delete(f"/api/v1/apps/{app}").status_code == 204
        assert connection.recv(4096).startswith(b"HTTP/1.1 404")
    with gateway.client() as client:
        assert client.post(f"/{app}").status_code == 404


def test_more_callers_than_may_wait_get_a_503(start_gateway: Start) -> None:
    gateway = start_gateway(max_waiting=1)
    app = gateway.app()
    with socket.create_connection(gateway.address) as connection:
        connection.sendall(b"POST /%s HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}" % app.encode())
        wait_until(lambda: gateway.call(gateway.store.requests.queue_size(app)) == 1, "the first waits")
        with gateway.client() as client:
            answer = client.post(f"/{app}", content=b"{}")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_a_browser_may_call_and_read_the_request_id(gateway: RunningGateway) -> None:
    app = gateway.app()
    gateway.worker(app)
    origin = {"origin": "https://page.example"}
    asking = {**origin, "access-control-request-method": "POST", "access-control-request-headers": "authorization,x-a"}
    with gateway.client() as client:
        allowed = client.options(f"/{app}", headers=asking)
        answer = client.post(f"/{app}", content=b"{}", headers=origin)
        refused = client.post("/tester/nothing", content=b"{}", headers=origin)
    assert allowed.status_code == 204
    assert allowed.headers["access-control-allow-headers"] == "authorization,x-a"
    assert "POST" in allowed.headers["access-control-allow-methods"]
    for response in (allowed, answer, refused):
        assert response.headers["access-control-allow-origin"] == "*"
    assert "x-fal-request-id" in answer.headers["access-control-expose-headers"]


def test_many_callers_at_once_get_their_own_answers(gateway: RunningGateway) -> None:
    app = gateway.app()
    for _ in range(2):
        gateway.worker(app, echo)

    async def call_all() -> list[bytes]:
        async with httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=20) as client:
            answers = await asyncio.gather(*(client.post(f"/{app}", content=b"%d" % n) for n in range(60)))
        return [answer.content for answer in answers]

    assert asyncio.run(call_all()) == [b"%d" % n for n in range(60)]


def test_two_gateways_each_answer_their_own_callers(gateway: RunningGateway, start_gateway: Start) -> None:
    first, second = gateway, start_gateway()
    app = first.app()
    first.worker(app)
    with first.client() as one, second.client() as two:
        for number in range(10):
            assert one.post(f"/{app}", content=b"one %d" % number).content == b"one %d" % number
            assert two.post(f"/{app}", content=b"two %d" % number).content == b"two %d" % number


@pytest.mark.parametrize(
    ("sent", "arrives", "named"),
    [
        ("/item/%E4%BD%A0%E5%A5%BD", "/item/你好", "/item/%E4%BD%A0%E5%A5%BD"),
        ("/item/%ff", "/item/\ufffd", "/item/%EF%BF%BD"),
        ("/item/a%0d%0ab%20c", "/item/a\r\nb c", "/item/a%0D%0Ab%20c"),
        ("/item/100%25", "/item/100%", "/item/100%25"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "/queue"])
def test_any_path_reaches_the_app_and_is_named_in_ascii(
    gateway: RunningGateway, sent: str, arrives: str, named: str, prefix: str
) -> None:
    """A Chinese word in a path went into ``x-fal-endpoint`` as it was; no worker could encode that header, and the
    first such request ended every worker that claimed it. Bytes that are no UTF-8 arrive as they do under uvicorn."""
    app = gateway.app()
    worker = gateway.worker(app)
    with gateway.client() as client:
        assert client.post(f"{prefix}/{app}{sent}", content=b"{}").status_code == 200
    wait_until(lambda: bool(worker.claims), "the request was claimed")
    assert worker.claims[0].path == arrives
    assert _header(worker.claims[0], "x-fal-endpoint") == f"{app}{named}"


@pytest.mark.parametrize("status", [204, 205, 304])
@pytest.mark.parametrize("streamed", [False, True])
def test_an_answer_without_a_body_loses_the_one_that_the_app_gave_it(
    gateway: RunningGateway, status: int, streamed: bool
) -> None:
    """``Response(content, status_code=204)`` broke off in the server with a traceback, and the connection with it."""

    async def handler(worker: StubWorker, claim: Claimed) -> Outcome:
        if streamed and claim.mode == "direct":
            append = worker.store.requests.append_output
            await append(claim, "start", msgpack.packb([status, JSON]))
            await append(claim, "chunk", b"not expected")
            await append(claim, "end", b"")
        return Outcome(status, JSON, b"not expected")

    app = gateway.app()
    gateway.worker(app, handler)
    with gateway.client() as client:
        for _ in range(2):
            direct = client.post(f"/{app}", content=b"{}")
            assert (direct.status_code, direct.content) == (status, b"")
        queued = client.post(f"/queue/{app}", content=b"{}").json()
        wait_until(lambda: client.get(queued["status_url"]).status_code == 200, "the request has ended")
        result = client.get(queued["response_url"])
        assert (result.status_code, result.content) == (status, b"")


def test_a_start_deadline_ends_as_the_protocol_says(gateway: RunningGateway) -> None:
    """It ended as ``startup_timeout``, which says that ``setup()`` took too long: the clients know the caller's own
    deadline as ``request_timeout``, with the header by which they give up instead of trying again."""
    app = gateway.app()
    queued = {"x-fal-request-timeout": "0.2"}
    with gateway.client() as client:
        late = client.post(f"/queue/{app}", content=b"{}", headers=queued).json()
        direct = client.post(f"/{app}", content=b"{}", headers=queued)
        gateway.worker(app)
        wait_until(lambda: client.get(late["status_url"]).status_code == 200, "the request has ended")
        result, status = client.get(late["response_url"]), client.get(late["status_url"]).json()
    for answer in (direct, result):
        assert (answer.status_code, answer.json()["error_type"]) == (504, "request_timeout")
        assert answer.headers["x-fal-error-type"] == "request_timeout"
        assert answer.headers["x-fal-request-timeout-type"] == "user"
    assert status["error_type"] == "request_timeout"


@pytest.mark.parametrize("streamed", [False, True])
def test_the_owner_of_an_app_that_fails_learns_where_its_log_is(gateway: RunningGateway, streamed: bool) -> None:
    """ "Internal Server Error" never said where the traceback was. The body stays the app's own; strangers learn
    nothing."""

    async def handler(worker: StubWorker, claim: Claimed) -> Outcome:
        status = 200 if claim.path == "/fine" else 500
        if streamed and claim.mode == "direct":
            append = worker.store.requests.append_output
            await append(claim, "start", msgpack.packb([status, JSON]))
            await append(claim, "chunk", b'{"detail": "mine"}')
            await append(claim, "end", b"")
        return Outcome(status, JSON, b'{"detail": "mine"}')

    app = gateway.app()
    gateway.worker(app, handler)
    stranger, secret = gateway.call(gateway.store.keys.create("stranger", "tests"))
    with gateway.client() as client:
        keys = {"owner": gateway.key, "stranger": f"{stranger.key_id}:{secret}", "nobody": "x:y", "none": ""}
        for who, key in keys.items():
            headers = {"authorization": f"Key {key}"} if key else {}
            direct = client.post(f"/{app}", content=b"{}", headers=headers)
            fine = client.post(f"/{app}/fine", content=b"{}", headers=headers)
            queued = client.post(f"/queue/{app}", content=b"{}", headers=headers).json()
            wait_until(partial(_has_ended, client, queued["status_url"]), "the request has ended")
            result = client.get(queued["response_url"], headers=headers)
            for answer in (direct, result):
                assert (answer.status_code, answer.json()) == (500, {"detail": "mine"})
                expected = f"fal logs {app}" if who == "owner" else None
                assert answer.headers.get("x-keepwarm-log") == expected, who
            assert "x-keepwarm-log" not in fine.headers
