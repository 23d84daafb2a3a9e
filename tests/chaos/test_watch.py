"""The look into Redis bites: every record that stands where its state says it cannot is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler.store import keys
from tests.chaos.watch import Watch
from tests.store.scene import APP, OK, Scene, scene

pytestmark = pytest.mark.anyio


async def seen(s: Scene, url: str, folder: Path) -> set[str]:
    watch = Watch(url, folder, (APP,))
    await watch._look(s.store, APP)
    assert watch.looks == 1
    return {sentence.partition(" ")[2] for sentence in watch.wrong}


async def test_what_is_where_it_belongs_is_not_blamed(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker()
        ended = await s.claimed(inbox, webhook="http://there/hook")
        assert await inbox.finish(ended, OK, claim_next=False)
        await s.lose(await s.claimed(inbox), delay_ms=60_000)
        await s.claimed(inbox)
        await s.submit(start_timeout=60)
        await s.submit(priority="low")
        await s.requests.cancel(APP, await s.submit())
        assert await seen(s, redis_url, tmp_path) == set()
        watch = Watch(redis_url, tmp_path, (APP,))
        assert await watch.left() == {
            keys.queue_normal(APP): 1,
            keys.queue_low(APP): 1,
            keys.leases(APP): 1,
            keys.delayed(APP): 1,
            keys.deadlines(APP): 1,
            keys.outbox(APP): 1,
        }


@pytest.mark.parametrize(
    ("harm", "blame"),
    [
        (("ZREM", keys.leases(APP), "running"), "runs without a lease"),
        (("ZADD", keys.delayed(APP), 1, "running"), "runs and waits"),
        (("ZADD", keys.leases(APP), 1, "waiting"), "waits and is leased"),
        (("ZADD", keys.delayed(APP), 1, "waiting"), "waits in the queue and is put off"),
        (("DEL", keys.queue_normal(APP)), "waits and stands nowhere"),
        (("XADD", keys.queue_normal(APP), "*", "id", "waiting"), "has a second entry in the queue"),
        (("ZADD", keys.leases(APP), 1, "ended"), "has ended and still runs or waits"),
        (("PERSIST", keys.request(APP, "ended")), "has ended and is kept for ever"),
        (("HSET", keys.request(APP, "ended"), "body", "x"), "has ended and keeps its payload"),
        (("ZADD", keys.deadlines(APP), 1, "ended"), "has ended and has a deadline"),
        (("ZADD", keys.leases(APP), 1, "unknown"), "is leased and unknown"),
        (("ZADD", keys.outbox(APP), 1, "waiting"), "is owed a webhook as IN_QUEUE"),
    ],
)
async def test_harm_is_blamed(redis_url: str, tmp_path: Path, harm: tuple[str | int, ...], blame: str) -> None:
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker()
        ended = await s.claimed(inbox, request_id="ended")
        assert await inbox.finish(ended, OK, claim_next=False)
        await s.claimed(inbox, request_id="running")
        await s.submit("waiting")
        await s.redis(*harm)
        assert await seen(s, redis_url, tmp_path) == {blame}
