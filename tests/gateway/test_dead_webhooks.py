"""Webhooks that were given up, as users see them: through the control API, and with ``fal queue webhooks``."""

from __future__ import annotations

import asyncio
import json
import time

import httpx
import pytest

from scheduler.control.webhooks import WebhookSender
from scheduler.store.records import DeadWebhook, RequestRecord
from scheduler.store.signing import load_or_create
from tests.gateway.commands import fal
from tests.gateway.platform import OWNER, RunningGateway
from tests.scheduler.receiver import Received, receiver
from tests.scheduler.test_webhooks import verify
from tests.support.waiting import wait_until


def given_up(gateway: RunningGateway, app: str, client: httpx.Client) -> str:
    """The id of a finished request whose webhook was tried ten times in vain."""
    hook = {"fal_webhook": "https://example.com/hook"}
    request_id: str = client.post(f"/queue/{app}", params=hook, json={"prompt": "rhino"}).json()["request_id"]
    status = f"/queue/{app}/requests/{request_id}/status"
    wait_until(lambda: client.get(status).status_code == 200, "the request to be served")

    async def fail() -> None:
        (delivery,) = await gateway.store.outbox.due(app)
        for _ in range(9):
            await gateway.store.outbox.reschedule(delivery, 0)
            (delivery,) = await gateway.store.outbox.due(app)
        await gateway.store.outbox.give_up(delivery, "status 500: out of order")

    gateway.call(fail())
    return request_id


def test_a_dead_webhook_is_listed_replayed_and_dropped(gateway: RunningGateway) -> None:
    app = gateway.app()
    gateway.worker(app)
    webhooks = f"/api/v1/queue/{app}/webhooks"
    with gateway.owner_client() as client, gateway.client() as stranger:
        request_id = given_up(gateway, app, client)
        (item,) = client.get(webhooks).json()["items"]
        assert (item["request_id"], item["url"]) == (request_id, "https://example.com/hook")
        assert (item["tries"], item["why"], item["status"]) == (10, "status 500: out of order", "OK")
        for method, path in (("GET", ""), ("POST", f"/{request_id}/replay"), ("DELETE", f"/{request_id}")):
            assert stranger.request(method, webhooks + path).status_code == 401
        assert client.post(f"{webhooks}/{request_id}/replay").status_code == 202
        assert client.get(webhooks).json() == {"items": []}
        (delivery,) = gateway.call(gateway.store.outbox.due(app))
        assert (delivery.request_id, delivery.tries) == (request_id, 0)
        assert client.post(f"{webhooks}/unknown/replay").status_code == 404
        assert client.delete(f"{webhooks}/{request_id}").status_code == 204
        assert client.delete(f"{webhooks}/{request_id}").status_code == 404
        assert client.get(f"/api/v1/queue/{OWNER}/never-was/webhooks").status_code == 404


def test_the_command_lists_replays_and_drops(gateway: RunningGateway) -> None:
    app = gateway.app()
    gateway.worker(app)
    assert b"No webhook was given up" in fal(gateway, "queue", "webhooks", "list", app).stdout
    with gateway.owner_client() as client:
        first, second = given_up(gateway, app, client), given_up(gateway, app, client)
    table = fal(gateway, "queue", "webhooks", "list", app).stdout.decode()
    assert all(word in table for word in (first, second, "https://example.com/hook", "out of order"))
    assert b"is being delivered" in fal(gateway, "queue", "webhooks", "replay", app, first).stdout
    left = json.loads(fal(gateway, "queue", "webhooks", "list", app, "--json").stdout)
    assert [item["request_id"] for item in left] == [second]
    assert json.loads(fal(gateway, "queue", "webhooks", "drop", app, "--all", "--json").stdout) == {"dropped": [second]}
    assert b"no finished request" in fal(gateway, "queue", "webhooks", "replay", app, "x", code=1).stderr
    dead: list[DeadWebhook] = gateway.call(gateway.store.outbox.dead(app))
    assert dead == []


@pytest.mark.parametrize(
    ("path", "host"),
    [
        ("/rest/.well-known/jwks.json", None),
        ("/.well-known/jwks.json", "rest.fal.ai"),
        ("/.well-known/jwks.json", "rest.alpha.fal.ai"),
    ],
)
def test_receivers_verify_with_the_published_keys_as_the_documentation_says(
    gateway: RunningGateway, path: str, host: str | None
) -> None:
    """The recipe for receivers: fetch the key set, keep it for at most a day, decode ``x`` as it stands, check the
    time and the signature over four lines. Every try is signed afresh, for it is refused after five minutes."""
    app = gateway.app()
    gateway.worker(app)
    with gateway.owner_client() as client:
        made = client.post(f"/queue/{app}", json={"prompt": "rhino"}).json()
        wait_until(lambda: client.get(made["status_url"]).status_code == 200, "the request to be served")
    record = gateway.call(gateway.store.requests.get(app, made["request_id"]))
    assert record is not None

    async def two_tries(record: RequestRecord) -> list[Received]:
        now = int(time.time())
        sender = WebhookSender(load_or_create(gateway.settings.data_dir), allow_private=True)
        async with receiver() as server:
            for at in (now - 400, now):
                assert (await sender.deliver(server.url("/200"), record, at)).delivered
            await sender.close()
            return server.received

    stale, fresh = asyncio.run(two_tries(record))
    with gateway.client() as receivers_client:
        found = receivers_client.get(path, headers={"host": host} if host else {})
    assert (found.status_code, found.headers["content-type"]) == (200, "application/json")
    assert int(found.headers["cache-control"].partition("max-age=")[2]) <= 86400
    assert verify(fresh, found.json())
    assert not verify(stale, found.json())
    assert not verify(Received(fresh.path, fresh.headers, fresh.body.replace(b"OK", b"KO")), found.json())
    sent = json.loads(fresh.body)
    assert sent == {
        "request_id": made["request_id"],
        "gateway_request_id": made["request_id"],
        "status": "OK",
        "payload": {"prompt": "rhino"},
        "error": None,
    }
