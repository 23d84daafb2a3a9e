"""Runners as their owner handles them: ``fal runners``, ``fal apps rollout``, and a rollback that builds nothing."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from scheduler.store.records import WorkerRecord
from tests.gateway.commands import fal
from tests.gateway.platform import RunningGateway, StubWorker, revision_record


def worker_of(gateway: RunningGateway, app: str) -> tuple[StubWorker, str]:
    stub = gateway.worker(app)
    (record,) = gateway.call(gateway.store.workers.list(app))
    return stub, record.worker_id


def record(gateway: RunningGateway, app: str, worker_id: str) -> WorkerRecord:
    found = gateway.call(gateway.store.workers.get(app, worker_id))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("arguments", "asked", "replaced", "says"),
    [
        (("stop",), "drain", False, "finishes what it has and leaves"),
        (("stop", "--replace-first"), None, True, "leaves once it is replaced"),
        (("kill",), "kill", False, "is killed"),
    ],
)
def test_stop_and_kill(
    gateway: RunningGateway, arguments: tuple[str, ...], asked: str | None, replaced: bool, says: str
) -> None:
    app = gateway.app()
    _, worker_id = worker_of(gateway, app)
    verb, *options = arguments
    assert says in fal(gateway, "runners", verb, worker_id, *options).stdout.decode()
    now = record(gateway, app, worker_id)
    assert (now.stop_requested, now.retiring is not None) == (asked, replaced)
    shown = fal(gateway, "runners", "list", app, "--state", "idle").stdout.decode()
    assert ("(being replaced)" in shown) == replaced
    assert "No runners" in fal(gateway, "runners", "list", app, "--state", "setup").stdout.decode()


def test_a_runner_that_is_not_there(gateway: RunningGateway) -> None:
    app = gateway.app()
    refused = fal(gateway, "runners", "kill", "nobody", "--app", app, code=1).stderr.decode()
    assert 'no runner "nobody" now' in refused
    assert "fal runners list" in refused
    assert b"No app has a runner" in fal(gateway, "runners", "stop", "nobody", code=1).stderr
    with gateway.owner_client() as client, gateway.client() as stranger:
        url = f"/api/v1/apps/{app}/workers/nobody/stop"
        assert client.post(url, json={"how": "gently"}).status_code == 400
        assert stranger.post(url, json={}).status_code == 401


@pytest.mark.parametrize(
    ("options", "asked", "replaced"),
    [((), None, True), (("--strategy", "recreate"), "drain", False), (("--force",), "kill", False)],
)
def test_rollout(gateway: RunningGateway, options: tuple[str, ...], asked: str | None, replaced: bool) -> None:
    app = gateway.app()
    _, worker_id = worker_of(gateway, app)
    assert json.loads(fal(gateway, "apps", "rollout", app, *options, "--json").stdout)["workers"] == 1
    now = record(gateway, app, worker_id)
    assert (now.stop_requested, now.retiring is not None) == (asked, replaced)


def test_a_rollout_of_a_sleeping_app_says_so(gateway: RunningGateway) -> None:
    assert b"has no runners" in fal(gateway, "apps", "rollout", gateway.app()).stdout


@pytest.mark.parametrize(("options", "asked"), [((), None), (("--strategy", "recreate"), "drain")])
def test_a_rollback_needs_no_build_and_keeps_what_the_alias_says(
    gateway: RunningGateway, options: tuple[str, ...], asked: str | None
) -> None:
    app = gateway.app()
    _, worker_id = worker_of(gateway, app)
    other = revision_record(app, app.split("/")[1])
    gateway.call(gateway.store.apps.put_revision(other))
    fal(gateway, "apps", "scale", app, "--keep-alive", "7")
    done = fal(gateway, "apps", "set-rev", app, other.revision, "--auth", "shared", "--json", *options)
    alias = json.loads(done.stdout)
    assert (alias["revision"], alias["auth"], alias["scaling"]["keep_alive"]) == (other.revision, "shared", 7)
    assert record(gateway, app, worker_id).stop_requested == asked
    assert gateway.call(gateway.store.environments.waiting(other.environment_key)) == []


@pytest.mark.parametrize("body", [{"strategy": "sudden"}, {"force": "yes"}])
def test_a_rollout_that_cannot_be_meant(gateway: RunningGateway, body: dict[str, Any]) -> None:
    with gateway.owner_client() as client:
        refused: httpx.Response = client.post(f"/api/v1/apps/{gateway.app()}/rollout", json=body)
    assert refused.status_code == 400


def test_a_revision_that_does_not_serve_can_be_deleted(gateway: RunningGateway) -> None:
    app = gateway.app()
    serving = gateway.call(gateway.store.apps.get(app))
    assert serving is not None
    assert serving.revision is not None
    other = revision_record(app, app.split("/")[1])
    gateway.call(gateway.store.apps.put_revision(other))
    refused = fal(gateway, "apps", "delete-rev", app, serving.revision, code=1).stderr.decode()
    assert "fal apps set-rev" in refused
    fal(gateway, "apps", "delete-rev", app, other.revision)
    listed = json.loads(fal(gateway, "apps", "list-rev", app, "--json").stdout)
    assert [item["revision"] for item in listed] == [serving.revision]
    assert b"FAILED" in fal(gateway, "apps", "set-rev", app, other.revision, code=1).stderr
    assert b"no revision" in fal(gateway, "apps", "delete-rev", app, "never-was", code=1).stderr


def test_gpus_are_counted(gateway: RunningGateway) -> None:
    assert b"No runner holds a GPU" in fal(gateway, "runners", "gpus").stdout
    assert json.loads(fal(gateway, "runners", "gpus", "--json").stdout)["summary"]["total_gpu_by_type"] is not None
