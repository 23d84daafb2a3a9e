"""How long results stay, and that nothing is left of a request on disk or in Redis when its time is over."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scheduler.store import RETENTION_S, keys
from scheduler.store.outcomes import INLINE_BYTES
from scheduler.store.records import Outcome
from tests.store.scene import APP, OK, Scene, scene

pytestmark = pytest.mark.anyio
HOUR, SIX_MINUTES, DAY, WEEK = 3600, 360, 86_400, 7 * 86_400
LARGE = Outcome(200, (), bytes(10 * 1024))


async def left(s: Scene, request_id: str) -> float:
    """Seconds until the record goes."""
    ms: int = await s.redis("PTTL", keys.request(APP, request_id))
    return ms / 1000


async def finished(s: Scene, outcome: Outcome, **changes: object) -> str:
    inbox = s.inboxes[0] if s.inboxes else await s.worker()
    claim = await s.claimed(inbox, **changes)
    assert await inbox.finish(claim, outcome, claim_next=False)
    return claim.request_id


@pytest.mark.parametrize(
    ("changes", "outcome", "seconds"),
    [
        ({}, OK, RETENTION_S),
        ({}, LARGE, RETENTION_S),
        ({"keep_s": 30 * DAY}, OK, 30 * DAY),
        ({"mode": "direct"}, OK, SIX_MINUTES),  # read by the gateway that waits, at once or never
        ({"store_io": False}, OK, HOUR),
        ({"store_io": False}, LARGE, SIX_MINUTES),
        ({"store_io": False}, Outcome(200, (), bytes(INLINE_BYTES + 1)), SIX_MINUTES),
        ({"store_io": False, "keep_s": 30 * DAY}, Outcome(500, (), b"no"), HOUR),
    ],
)
async def test_results_stay_as_long_as_is_said(
    redis_url: str, tmp_path: Path, changes: dict[str, object], outcome: Outcome, seconds: float
) -> None:
    async with scene(redis_url, tmp_path) as s:
        request_id = await finished(s, outcome, **changes)
        assert seconds - 60 < await left(s, request_id) <= seconds


async def test_whatever_ends_a_request_its_record_ends_too(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        await s.submit("cancelled", store_io=False)
        await s.requests.cancel(APP, "cancelled")
        await s.submit("failed", store_io=False)
        await s.requests.fail_queued(APP, "failed", OK)
        await s.submit("flushed", store_io=False)
        await s.requests.flush_queue(APP)
        await s.lose(await s.claimed(await s.worker(), request_id="lost", store_io=False, max_attempts=1))
        for request_id in ("cancelled", "failed", "flushed", "lost"):
            assert HOUR - 60 < await left(s, request_id) <= HOUR, request_id
            assert (await s.fields(request_id))["body"] == "", "payloads go at the end"


async def test_who_wants_nothing_stored_gets_no_week_in_a_letter_or_a_dead_webhook(
    redis_url: str, tmp_path: Path
) -> None:
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker()
        await s.lose(await s.claimed(inbox, request_id="q", store_io=False, max_attempts=1))
        assert 0 < await s.redis("PTTL", keys.letter(APP, "q")) <= HOUR * 1000
        await s.store.letters.replay(APP, "q", "again")
        await inbox.finish(await inbox.next(), LARGE, claim_next=False)
        assert await left(s, "again") <= SIX_MINUTES, "a replay is as brief as what it repeats"
        for store_io, most in ((True, WEEK), (False, HOUR)):
            request_id = await finished(s, LARGE, store_io=store_io, webhook="http://there/hook")
            assert await left(s, request_id) > DAY, "the sender needs it"
            (delivery,) = await s.store.outbox.due(APP)
            await s.store.outbox.give_up(delivery, "status 500")
            assert most - 60 < await left(s, request_id) <= most
            assert await s.store.outbox.drop(APP, request_id)
            assert await left(s, request_id) <= (DAY if store_io else SIX_MINUTES)


async def test_what_a_crash_left_on_disk_is_swept_and_nothing_else(redis_url: str, tmp_path: Path) -> None:
    """The sweep asked whether the request was still known, so that what a killed process had written beside the result
    that counted, or for a submit that was refused, stayed on disk for as long as the result."""
    large = os.urandom(INLINE_BYTES + 1)
    blobs = tmp_path / "blobs"
    async with scene(redis_url, tmp_path) as s:
        waiting = await s.submit("waiting", body=large)
        inbox = await s.worker()
        claim = await inbox.next()
        orphan = s.store.blobs.put(large, app=APP, request_id=waiting)  # a result, and the process was killed
        half = blobs / APP / f".{waiting}.0123.4567"  # killed while it wrote
        half.write_bytes(b"half of it")
        assert await s.store.sweep_blobs(older_than_s=3600) == 0, "what is young may not be named yet"
        assert await s.store.sweep_blobs(older_than_s=-1) == 2
        assert not half.exists()
        with pytest.raises(FileNotFoundError):
            s.store.blobs.get(orphan)
        assert await inbox.finish(claim, Outcome(200, (), large), claim_next=False)
        assert await s.store.sweep_blobs(older_than_s=-1) == 0
        record = await s.requests.get(APP, waiting)
        assert record is not None
        assert record.outcome is not None
        assert record.outcome.body == large
        await s.redis("PEXPIRE", keys.request(APP, waiting), 0)
        assert await s.store.sweep_blobs(older_than_s=-1) == 1
        assert list(blobs.glob("*/*/*")) == []


async def test_a_refused_or_superseded_payload_goes_at_once(redis_url: str, tmp_path: Path) -> None:
    large = os.urandom(INLINE_BYTES + 1)
    async with scene(redis_url, tmp_path, max_queue=1) as s:
        first, second = await s.worker("w1", lease_ms=1), await s.worker("w2")
        slow = await s.claimed(first, body=large)
        await s.lose(slow)
        again = await second.next()
        assert not await first.finish(slow, Outcome(200, (), large), claim_next=False)
        assert len(list((tmp_path / "blobs").glob("*/*/*"))) == 1, "its late result, not the body of the other attempt"
        assert again.body == large
        await second.finish(again, OK, claim_next=False)
        await s.submit("waiting")
        for _ in range(3):
            with pytest.raises(Exception, match="waiting"):
                await s.submit("refused", body=large)
        assert list((tmp_path / "blobs").glob("*/*/*")) == []
        await s.requests.cancel(APP, "waiting")
        await s.requests.cancel(APP, await s.submit(body=large))
        assert await s.store.sweep_blobs(older_than_s=-1) == 1, "nobody names the body of a cancelled request"
