"""F28: the clock of the Redis server jumps. All scripts share one clock, which is moved here instead."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from scheduler.store.records import Outcome, RequestState
from scheduler.store.scripts import SCRIPTS
from tests.scheduler.stub_host import APP, submit
from tests.scheduler.test_reaper import Scene, scene
from tests.support.loop import run

SKEW = "test:skew"
_CLOCK = "local now = clock[1] * 1000 + math.floor(clock[2] / 1000)"
#: Milliseconds between two looks; below what the reaper takes for a pause of its own.
STEP = 3000


@pytest.fixture(autouse=True)
def movable_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts whose time is the server's plus what the test says."""
    moved = 0
    for script in SCRIPTS.values():
        if _CLOCK in script.text:
            text = script.text.replace(_CLOCK, f"{_CLOCK} + (tonumber(redis.call('GET', '{SKEW}') or '0'))")
            monkeypatch.setattr(script, "text", text)
            monkeypatch.setattr(script, "sha", hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())
            monkeypatch.setattr(script, "_heads", {})
            moved += 1
    assert moved > 20


async def move(here: Scene, to_ms: int) -> None:
    await here.store._redis.command("SET", SKEW, to_ms)


@pytest.mark.parametrize("jump_s", [120, -120, 86_400, -86_400])
def test_who_lives_keeps_its_request_and_who_died_loses_it(redis_url: str, tmp_path: Path, jump_s: int) -> None:
    """Forward, every lease is over at once and nobody is dead by it; back by a day, a dead worker's lease would have
    lasted for a day."""

    async def scenario() -> None:
        async with scene(redis_url, tmp_path) as here:
            alive, dead = await here.worker("alive"), await here.worker("dead")
            await submit(here.store, "kept")
            kept = await alive.next()
            await submit(here.store, "lost")
            lost = await dead.next()
            assert not await here.reap()

            now = jump_s * 1000
            for _ in range(100):
                await move(here, now)
                await here.reap()
                await alive.heartbeat()
                await here.store.workers.beat(APP, "alive", 1)
                assert await here.store.requests.state(APP, "kept") is RequestState.IN_PROGRESS
                if (await here.store.apps.observe(APP)).queued:
                    break
                now += STEP
            assert [worker.worker_id for worker in await here.store.workers.list(APP)] == ["alive"]
            assert await alive.finish(kept, Outcome(200, (), b"{}"))
            again = await alive.next()
            assert (again.request_id, again.attempt) == ("lost", 2)
            assert not await dead.finish(lost, Outcome(200, (), b"late"))
            assert await alive.finish(again, Outcome(200, (), b"{}"))

    run(scenario())


def test_a_back_off_from_before_the_clock_was_put_back_is_over(redis_url: str, tmp_path: Path) -> None:
    """A request that waited half a second for its next attempt would have waited for a day."""

    async def scenario() -> None:
        async with scene(redis_url, tmp_path) as here:
            worker = await here.worker("w1")
            await submit(here.store, "q1")
            claim = await worker.next()
            lost = Outcome(503, (), b"{}", "runner_disconnected")
            await here.store.requests.retry(
                *(APP, "q1", claim.attempt),
                worker_id="w1",
                reason="died",
                crashed=False,
                delay_ms=20_000,
                fallback=lost,
            )
            worker.release(claim)
            assert not await here.reap()
            await move(here, -86_400_000)
            assert await here.reap()
            assert (await worker.next()).attempt == 2

    run(scenario())
