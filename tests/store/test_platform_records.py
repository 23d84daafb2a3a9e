"""Hosts, logs, environments, API keys, leadership and the outbox."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from scheduler.store import NotFound, keys
from scheduler.store.records import BuildRequest, EnvironmentRecord, EnvironmentState, HostRecord, LogEntry
from tests.store.scene import APP, OK, revision, scene
from tests.support.waiting import await_until

pytestmark = pytest.mark.anyio


async def test_hosts_live_while_they_report(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        gpus = ((0, "NVIDIA H100", 81559, ("GPU-H100", "GPU")),)
        box = HostRecord("box", ("XS", "GPU-H100"), gpus, False, 16, 65536)
        await s.store.hosts.report(box)
        assert await s.store.hosts.list() == [box]
        await s.store.hosts.report(HostRecord("other", ("XS",), (), True, 2, 4096), ttl_s=0)
        assert [(h.host, h.alive) for h in await s.store.hosts.list()] == [("box", True), ("other", False)]
        await s.redis("DEL", keys.host("other"))
        assert [h.host for h in await s.store.hosts.list()] == ["box"]
        assert await s.redis("SCARD", keys.hosts()) == 1


async def test_services_say_that_they_are_there(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        assert not await s.store.services.alive("scheduler", "box")
        await s.store.services.announce("scheduler", "box")
        assert await s.store.services.alive("scheduler", "box")
        assert not await s.store.services.alive("builder", "box")


async def test_logs_of_an_app_a_request_and_a_worker(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        heard: list[bytes] = []
        await s.store.subscribe({keys.channel_logs(APP): heard.append})
        await s.submit("a")
        lines = [
            LogEntry("", 1.5, "STDOUT", "loading", worker_id="w1"),
            LogEntry("", 2.5, "INFO", "step 1 \ud800", worker_id="w1", request_id="a"),
            LogEntry("", 3.5, "ERROR", "x" * 20_000, worker_id="w2", request_id="a"),
        ]
        await s.store.logs.append(APP, lines)
        everything = await s.store.logs.read(APP)
        assert [(e.at, e.level, e.worker_id, e.request_id) for e in everything] == [
            (1.5, "STDOUT", "w1", None),
            (2.5, "INFO", "w1", "a"),
            (3.5, "ERROR", "w2", "a"),
        ]
        assert everything[1].message == "step 1 ?"
        assert len(everything[2].message) < 17_000
        of_request = await s.store.logs.read(APP, request_id="a")
        assert [e.level for e in of_request] == ["INFO", "ERROR"]
        assert [e.level for e in await s.store.logs.read(APP, request_id="a", after=of_request[0].id)] == ["ERROR"]
        assert [e.level for e in await s.store.logs.read(APP, worker_id="w1")] == ["STDOUT", "INFO"]
        assert [e.level for e in await s.store.logs.tail(APP, 2)] == ["INFO", "ERROR"]
        assert heard

        assert await s.redis("PTTL", keys.request_logs(APP, "a")) > s.requests.retention_ms
        inbox = await s.worker()
        await inbox.finish(await inbox.next(), OK)
        assert 0 < await s.redis("PTTL", keys.request_logs(APP, "a")) <= s.requests.retention_ms
        await s.store.logs.append(APP, [LogEntry("", 4.5, "INFO", "late", request_id="a")])
        assert 0 < await s.redis("PTTL", keys.request_logs(APP, "a")) <= s.requests.retention_ms


async def test_environments_and_their_build_logs(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        environments = s.store.environments
        heard: list[bytes] = []
        await s.store.subscribe({keys.channel_environment("e1"): heard.append})
        assert await environments.get("e1") is None
        await environments.put(EnvironmentRecord("e1", EnvironmentState.BUILDING))
        await environments.append_log("e1", "Resolved 3 packages")
        await environments.append_log("e1", "Installed")
        first, second = await environments.read_log("e1")
        assert (first[1], second[1]) == ("Resolved 3 packages", "Installed")
        assert await environments.read_log("e1", first[0]) == [second]
        await environments.put(
            EnvironmentRecord("e1", EnvironmentState.READY, path="/envs/e1", notes={"seconds": 1.5, "dated": True})
        )
        record = await environments.get("e1")
        assert record is not None
        assert (record.state, record.path, record.error, record.notes) == (
            *(EnvironmentState.READY, "/envs/e1", None, {"seconds": 1.5, "dated": True}),
        )
        assert record.updated_at_ms > 0
        await environments.clear_log("e1")
        assert await environments.read_log("e1") == []

        async def told() -> bool:
            return heard == [b"state", b"log", b"log", b"state"]

        await await_until(told, "the followers to be told")


async def test_build_requests_come_until_they_are_acknowledged(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        environments = s.store.environments
        assert await environments.take_build_requests(block_s=0) == []
        taking = asyncio.ensure_future(environments.take_build_requests(block_s=20))
        await asyncio.sleep(0.02)
        await environments.request_build(APP, "r1")
        taken = await taking
        assert [key for _, key in taken] == ["environment-1"]
        assert await environments.take_build_requests() == taken, "a taker that dies loses nothing"
        await s.store.apps.put_revision(revision("r2"))
        await environments.request_build(APP, "r2", ephemeral=True, reset_scale=True)
        assert await environments.waiting("environment-1") == [
            BuildRequest(APP, "r1", "environment-1"),
            BuildRequest(APP, "r2", "environment-1", ephemeral=True, reset_scale=True),
        ]
        await environments.ack_build_requests([ticket for ticket, _ in await environments.take_build_requests()])
        assert await environments.take_build_requests(block_s=0.01) == []
        await environments.settled(BuildRequest(APP, "r1", "environment-1"))
        assert [r.revision for r in await environments.waiting("environment-1")] == ["r2"]
        with pytest.raises(NotFound):
            await environments.request_build(APP, "gone")


async def test_api_keys(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        record, secret = await s.store.keys.create("alice", "laptop")
        assert await s.store.keys.verify(record.key_id, secret) == record
        assert await s.store.keys.verify(record.key_id, secret + "x") is None
        assert await s.store.keys.verify("unknown", secret) is None
        assert await s.store.keys.verify("unknown", "") is None
        assert await s.store.keys.list() == [record]
        flat = await s.redis("HGETALL", keys.api_key(record.key_id))
        assert secret.encode() not in flat, "only a digest is stored"
        assert await s.store.keys.revoke(record.key_id)
        assert await s.store.keys.verify(record.key_id, secret) is None
        assert [k.revoked for k in await s.store.keys.list()] == [True]
        assert not await s.store.keys.revoke("unknown")


async def test_an_app_has_one_key_of_its_own_until_it_is_revoked_or_the_app_goes(
    redis_url: str, tmp_path: Path
) -> None:
    async with scene(redis_url, tmp_path) as s:
        first, second = await asyncio.gather(s.store.keys.of_app(APP), s.store.keys.of_app(APP))
        assert first is not None
        assert second == first, "two hosts start its workers at the same moment"
        key_id, _, secret = first.partition(":")
        record = await s.store.keys.verify(key_id, secret)
        assert record is not None
        assert (record.key_id, record.owner, record.scope) == (APP, APP.partition("/")[0], "API")
        assert secret.encode() not in await s.redis("HGETALL", keys.api_key(key_id))

        await s.store.keys.revoke(key_id)
        assert await s.store.keys.verify(key_id, secret) is None
        renewed = await s.store.keys.of_app(APP)
        assert renewed is not None
        assert renewed != first
        assert await s.store.keys.verify(key_id, renewed.partition(":")[2]) is not None
        assert await s.store.keys.verify(key_id, secret) is None

        await s.store.apps.delete(APP)
        assert await s.store.keys.list() == []
        assert await s.store.keys.verify(key_id, renewed.partition(":")[2]) is None
        assert await s.store.keys.of_app(APP) is None, "a worker that starts while its app goes"


async def test_one_leads_at_a_time_and_each_has_its_own_epoch(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        leader = s.store.leader
        assert await leader.lead("scheduler-1", 60_000) == s.epoch
        assert await leader.lead("other", 60_000) is None
        await leader.resign("other")
        assert await leader.lead("other", 60_000) is None
        await leader.resign("scheduler-1")
        assert await leader.lead("other", 30) == s.epoch + 1

        async def expired() -> bool:
            return await leader.lead("scheduler-1", 60_000) == s.epoch + 2

        await await_until(expired, "the lead to run out")


async def test_a_webhook_is_owed_until_it_is_delivered(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        heard: list[bytes] = []
        await s.store.subscribe({keys.channel_outbox(): heard.append})
        inbox = await s.worker()
        claim = await s.claimed(inbox, webhook="http://there/hook")
        assert await s.store.outbox.due(APP) == []
        await inbox.finish(claim, OK)
        (delivery,) = await s.store.outbox.due()
        assert (delivery.app, delivery.request_id, delivery.url, delivery.tries) == (
            *(APP, claim.request_id, "http://there/hook", 0),
        )
        assert await s.store.outbox.due() == [], "held by its taker"
        await s.store.outbox.reschedule(delivery, 0)

        async def due_again() -> bool:
            found = await s.store.outbox.due(APP, hold_s=0)
            return [d.tries for d in found] == [1]

        await await_until(due_again, "the next try")
        assert await s.redis("PTTL", keys.request(APP, claim.request_id)) > s.requests.retention_ms, (
            "the sender needs the record"
        )
        await s.store.outbox.delivered(delivery)
        assert await s.store.outbox.due(APP) == []
        assert 0 < await s.redis("PTTL", keys.request(APP, claim.request_id)) <= s.requests.retention_ms
        assert heard == [APP.encode()]


async def test_a_webhook_that_was_given_up_is_kept_for_a_week_to_be_replayed(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker()
        claim = await s.claimed(inbox, webhook="http://there/hook")
        await inbox.finish(claim, OK)
        (delivery,) = await s.store.outbox.due()
        await s.store.outbox.give_up(delivery, "status 500")
        await s.store.outbox.reschedule(delivery, 0)
        assert await s.store.outbox.due() == []
        (dead,) = await s.store.outbox.dead(APP)
        assert (dead.request_id, dead.url) == (claim.request_id, "http://there/hook")
        assert (dead.tries, dead.why) == (1, "status 500")
        week = 7 * 86400 * 1000
        assert week - 60_000 < await s.redis("PTTL", keys.request(APP, claim.request_id)) <= week

        assert await s.store.outbox.replay(APP, claim.request_id)
        assert await s.store.outbox.replay(APP, claim.request_id), "asked twice, it is one delivery"
        assert await s.store.outbox.dead(APP) == []
        (again,) = await s.store.outbox.due(APP)
        assert (again.request_id, again.tries) == (claim.request_id, 0), "with all its tries"
        assert await s.store.outbox.replay(APP, claim.request_id)
        assert await s.store.outbox.due(APP) == [], "a try that is under way is not made beside itself"
        await s.store.outbox.delivered(again)
        assert await s.redis("PTTL", keys.request(APP, claim.request_id)) < week / 2
        await s.store.outbox.give_up(again, "too late")
        assert await s.store.outbox.dead(APP) == [], "what was delivered stays delivered"
        assert await s.store.outbox.replay(APP, claim.request_id), "its receiver may have lost it"
        assert await s.store.outbox.drop(APP, claim.request_id)
        assert await s.store.outbox.due(APP) == []
        assert not await s.store.outbox.drop(APP, claim.request_id)
        assert not await s.store.outbox.replay(APP, "unknown")


async def test_the_webhook_of_a_deleted_app_is_still_owed(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        await s.submit("a", webhook="http://there/hook")
        await s.store.apps.delete(APP)
        assert [d.request_id for d in await s.store.outbox.due()] == ["a"]
