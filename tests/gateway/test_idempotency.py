"""Idempotency keys: however often and from however many threads a submit is repeated, there is one request."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from scheduler.store import keys
from tests.gateway.platform import RunningGateway


@pytest.fixture
def client(gateway: RunningGateway) -> Iterator[httpx.Client]:
    with gateway.owner_client() as client:
        yield client


def submit(client: httpx.Client, app: str, key: str, body: bytes = b'{"prompt": "rhino"}', path: str = "") -> str:
    answer = client.post(f"/queue/{app}{path}", content=body, headers={"idempotency-key": key})
    assert answer.status_code == 200, answer.text
    request_id: str = answer.json()["request_id"]
    assert answer.headers["x-fal-request-id"] == request_id
    return request_id


def waiting(gateway: RunningGateway, app: str) -> int:
    return gateway.call(gateway.store.requests.queue_size(app))


@pytest.mark.parametrize("body", [b'{"prompt": "rhino"}', os.urandom(300 * 1024)], ids=["small", "on disk"])
def test_f42_fifty_threads_with_one_key_make_one_request(
    gateway: RunningGateway, client: httpx.Client, body: bytes
) -> None:
    app = gateway.app()
    with ThreadPoolExecutor(50) as threads:
        ids = list(threads.map(lambda _: submit(client, app, "order-7", body), range(50)))
    assert len(set(ids)) == 1
    assert waiting(gateway, app) == 1
    left = [path.name for path in (gateway.settings.data_dir / "blobs" / app).glob("*")]
    assert [name.partition(".")[0] for name in left] == ([ids[0]] if len(body) > 1000 else []), "one body on disk"


def test_a_key_holds_for_a_day_for_its_app_body_and_path(gateway: RunningGateway, client: httpx.Client) -> None:
    app, other = gateway.app(), gateway.app()
    first = submit(client, app, "k")
    assert submit(client, app, "k") == first
    assert submit(client, other, "k") != first
    assert submit(client, app, "other") != first
    for path, body in (("", b'{"prompt": "lion"}'), ("/generate", b'{"prompt": "rhino"}'), ("?n=1", b"")):
        refused = client.post(f"/queue/{app}{path}", content=body, headers={"idempotency-key": "k"})
        assert refused.status_code == 422
        assert "within the last 24 hours" in refused.json()["detail"] or "another body" in refused.json()["detail"]
    stored = gateway.call(gateway.store._redis.command("KEYS", keys.idempotency(app, "*")))
    day = 86_400_000
    for raw in stored:
        assert day - 60_000 < gateway.call(gateway.store._redis.command("PTTL", raw)) <= day
    gateway.call(gateway.store._redis.command("DEL", *stored))
    assert submit(client, app, "k") != first, "a day later it is a new request"


def test_a_key_still_names_its_request_when_that_has_ended(gateway: RunningGateway, client: httpx.Client) -> None:
    app = gateway.app()
    first = submit(client, app, "k")
    client.put(f"/queue/{app}/requests/{first}/cancel")
    assert submit(client, app, "k") == first
    assert waiting(gateway, app) == 0
