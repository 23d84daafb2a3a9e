"""Dead letters as users see them: through the control API, and with ``fal queue letters``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import httpx
import pytest

from scheduler.store.records import Claimed, Outcome
from tests.gateway.commands import fal
from tests.gateway.platform import OWNER, RunningGateway, StubWorker
from tests.support.waiting import wait_until

LOST = Outcome(503, (), b'{"detail":"gone","error_type":"runner_disconnected"}', "runner_disconnected")


@pytest.fixture
def client(gateway: RunningGateway) -> Iterator[httpx.Client]:
    with gateway.owner_client() as client:
        yield client


async def crash(worker: StubWorker, claim: Claimed) -> Outcome | None:
    """The runner dies of every request until the app is mended, which is when the test releases it."""
    if worker.released.is_set():
        return Outcome(200, (("content-type", "application/json"),), b'"fine"')
    await worker.store.requests.retry(
        claim.app,
        claim.request_id,
        claim.attempt,
        worker_id=claim.worker_id,
        reason="the runner ended with signal SIGSEGV",
        crashed=True,
        delay_ms=0,
        fallback=LOST,
        words="Fatal Python error: Segmentation fault",
        exit_code=-11,
    )
    worker.inbox.release(claim)
    return None


def given_up(client: httpx.Client, app: str, body: bytes = b'{"prompt": "rhino"}') -> str:
    """The id of a request that has become a dead letter."""
    answer = client.post(f"/queue/{app}/generate?x=1", content=body, headers={"content-type": "application/json"})
    request_id: str = answer.json()["request_id"]
    status = f"/queue/{app}/requests/{request_id}/status"
    wait_until(lambda: client.get(status).status_code == 200, "the request to be given up")
    return request_id


def test_a_poisonous_request_can_be_looked_at_and_run_again(gateway: RunningGateway, client: httpx.Client) -> None:
    app = gateway.app()
    worker = gateway.worker(app, crash)
    request_id = given_up(client, app)
    letters = f"/api/v1/queue/{app}/letters"
    (listed,) = client.get(letters).json()["items"]
    assert (listed["request_id"], listed["error_type"], listed["attempts"]) == (request_id, "poison_request", 3)
    assert (listed["exit_code"], listed["signal"], listed["host"]) == (-11, "SIGSEGV", "this-host")

    shown = client.get(f"{letters}/{request_id}").json()
    assert (shown["method"], shown["path"], shown["query"]) == ("POST", "/generate", "x=1")
    assert (shown["body"], shown["last_words"]) == ('{"prompt": "rhino"}', "Fatal Python error: Segmentation fault")
    assert client.get(f"{letters}/{request_id}/body").content == b'{"prompt": "rhino"}'

    gateway.release(worker)
    made = client.post(f"{letters}/{request_id}/replay").json()
    assert made["request_id"] != request_id
    assert made["response_url"] == f"{gateway.url}/queue/{app}/requests/{made['request_id']}"
    wait_until(lambda: client.get(made["status_url"]).status_code == 200, "the replay to be served")
    assert client.get(made["response_url"]).json() == "fine"
    assert {claim.request_id for claim in worker.claims} == {request_id, made["request_id"]}
    assert dict(worker.claims[-1].headers)["x-fal-request-id"] == made["request_id"]

    refused = client.post(f"{letters}/{request_id}/replay")
    assert (refused.status_code, made["request_id"] in refused.json()["detail"]) == (409, True)
    assert client.post(f"{letters}/{request_id}/replay?again=1").status_code == 200
    assert client.delete(f"{letters}/{request_id}").status_code == 204
    assert client.get(f"{letters}/{request_id}").status_code == 404
    assert client.delete(f"{letters}/{request_id}").status_code == 404


def test_letters_are_their_owners_and_outlive_the_app(gateway: RunningGateway, client: httpx.Client) -> None:
    app = gateway.app()
    gateway.worker(app, crash)
    request_id = given_up(client, app)
    letters = f"/api/v1/queue/{app}/letters"
    with gateway.client() as stranger:
        assert stranger.get(letters).status_code == 401
        other, secret = gateway.call(gateway.store.keys.create("somebody", "else"))
        theirs = {"authorization": f"Key {other.key_id}:{secret}"}
        for path in (letters, f"{letters}/{request_id}", f"{letters}/{request_id}/body"):
            assert stranger.get(path, headers=theirs).status_code == 403
        assert stranger.post(f"{letters}/{request_id}/replay", headers=theirs).status_code == 403
    client.delete(f"/api/v1/apps/{app}")
    assert [item["request_id"] for item in client.get(letters).json()["items"]] == [request_id]
    assert client.post(f"{letters}/{request_id}/replay").status_code == 404
    assert client.get(f"/api/v1/queue/{OWNER}/never-was/letters").status_code == 404
    assert client.get(f"{letters}?limit=0").status_code == 400


def test_the_command_lists_shows_replays_and_drops(gateway: RunningGateway, client: httpx.Client) -> None:
    app = gateway.app()
    worker = gateway.worker(app, crash)
    assert b"No dead letters" in fal(gateway, "queue", "letters", "list", app).stdout
    body = os.urandom(300 * 1024) + b"\xff"
    small, large = given_up(client, app), given_up(client, app, body)
    name = app.split("/")[1]
    listed = json.loads(fal(gateway, "queue", "letters", "list", name, "--json").stdout)
    assert [item["request_id"] for item in listed] == [large, small]
    table = fal(gateway, "queue", "letters", "list", name).stdout.decode()
    assert all(word in table for word in (small, "poison_request", "signal SIGSEGV", "19 bytes", "307 kB"))
    shown = fal(gateway, "queue", "letters", "show", name, small).stdout.decode()
    assert all(word in shown for word in ("(SIGSEGV)", "3 of them crashes", "this-host", "Segmentation", '"rhino"'))
    assert fal(gateway, "queue", "letters", "show", name, large, "--body").stdout == body

    gateway.release(worker)
    (made,) = json.loads(fal(gateway, "queue", "letters", "replay", name, small, "--json").stdout)
    assert made["replay_of"] == small
    assert b"was replayed before" in fal(gateway, "queue", "letters", "replay", name, small, code=1).stderr
    again = fal(gateway, "queue", "letters", "replay", name, small, "--again").stdout.decode()
    assert f"{small} runs again as " in again
    assert f"{large} runs again as ".encode() in fal(gateway, "queue", "letters", "replay", name, "--all").stdout

    wait_until(lambda: worker.claims[-1].body == body, "the large one to run again")
    assert b"Nothing to replay" in fal(gateway, "queue", "letters", "replay", name, "--all").stdout
    assert b"Dropped 1 dead letter of" in fal(gateway, "queue", "letters", "drop", name, small).stdout
    assert b"no dead letter" in fal(gateway, "queue", "letters", "drop", name, small, code=1).stderr
    assert b"Which requests?" in fal(gateway, "queue", "letters", "drop", name, code=1).stderr
    assert b"Dropped 1 dead letter of" in fal(gateway, "queue", "letters", "drop", name, "--all", "--yes").stdout
    blobs = gateway.settings.data_dir / "blobs" / app
    wait_until(lambda: not list(blobs.glob("*")), "inputs on disk to go with their letters and requests")
