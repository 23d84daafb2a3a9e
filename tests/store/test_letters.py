"""Dead letters: what is left of requests that were given up, and what can be done with it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from scheduler.store import NotFound, QueueFull, keys
from scheduler.store.outcomes import INLINE_BYTES
from scheduler.store.records import DeadLetter, LogEntry, Outcome, RequestState
from tests.store.scene import APP, LOST, OK, Scene, scene

pytestmark = pytest.mark.anyio
BUSY = Outcome(503, (), b'{"detail":"no card is free"}')


async def poisoned(s: Scene, request_id: str, **changes: object) -> DeadLetter:
    """The letter of a request that has crashed three runners, alone on each."""
    inbox = s.inboxes[0] if s.inboxes else await s.worker()
    claim = await s.claimed(inbox, request_id=request_id, **changes)
    for crash in range(3):
        if crash:
            claim = await inbox.next()
        await s.lose(claim, reason="the runner ended with signal SIGSEGV", words="Fatal error", exit_code=-11)
    letter = await s.store.letters.get(APP, request_id)
    assert letter is not None
    return letter


async def test_three_crashes_leave_a_letter_with_all_that_is_known(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        await s.worker()
        await s.store.logs.append(APP, [LogEntry("", 1.5, "STDERR", "step 3 of 9", request_id="q")])
        letter = await poisoned(s, "q", path="/paint", priority="low", webhook="http://there/hook")
        record = await s.requests.get(APP, "q")
        assert record is not None
        assert (record.state, record.error_type) == (RequestState.ERROR, "poison_request")
        assert (letter.error_type, letter.attempts, letter.crashes) == ("poison_request", 3, 3)
        assert (letter.error, letter.exit_code) == ("the runner ended with signal SIGSEGV", -11)
        assert (letter.words, [line.message for line in letter.log]) == ("Fatal error", ["step 3 of 9"])
        assert (letter.worker_id, letter.host) == ("w1", "box")
        assert (letter.method, letter.path, letter.priority) == ("POST", "/paint", "low")
        assert letter.webhook == "http://there/hook"
        assert letter.submitted_at_ms <= (letter.started_at_ms or 0) <= letter.died_at_ms
        assert await s.store.letters.body(letter) == b'{"prompt":"rhino"}'
        assert (await s.fields("q"))["body"] == "", "the record itself keeps no payload"
        assert [found.request_id for found in await s.store.letters.list(APP)] == ["q"]


async def test_used_up_attempts_leave_a_letter_with_the_apps_answer(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        claim = await s.claimed(await s.worker(), max_attempts=1)
        assert await s.lose(claim, crashed=False, reason="the app answered 503", fallback=BUSY) == "failed"
        letter = await s.store.letters.get(APP, claim.request_id)
        assert letter is not None
        assert (letter.error_type, letter.error, letter.attempts) == (None, "the app answered 503", 1)
        assert (letter.words, letter.exit_code, letter.log) == (BUSY.body.decode(), None, ())


async def test_a_lost_worker_leaves_a_letter_without_last_words(redis_url: str, tmp_path: Path) -> None:
    """The whole host went away three times: nobody saw how, but which one it was is known, and the input is safe."""
    async with scene(redis_url, tmp_path) as s:
        request_id = await s.submit()
        for number in range(3):
            inbox = await s.worker(f"w{number}")
            claim = await inbox.next()
            await s.store.workers.remove(APP, f"w{number}", "no sign of life")
            await s.lose(claim, reason="its worker stopped renewing the lease", epoch=s.epoch)
        letter = await s.store.letters.get(APP, request_id)
        assert letter is not None
        assert (letter.error_type, letter.exit_code, letter.words) == ("poison_request", None, "")
        assert (letter.worker_id, letter.host) == ("w2", "box")
        assert await s.store.letters.body(letter) == b'{"prompt":"rhino"}'


async def test_who_was_told_at_once_gets_no_letter(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker()
        assert await s.lose(await s.claimed(inbox, mode="direct")) == "failed"
        await inbox.finish(await s.claimed(inbox), Outcome(500, (), b"my mistake"), claim_next=False)
        await s.requests.cancel(APP, (await s.claimed(inbox)).request_id)
        assert await s.lose(await s.claimed(inbox)) == "requeued"
        assert await s.store.letters.list(APP) == []


async def test_a_letter_becomes_one_new_request(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        headers = (("content-type", "application/json"), ("x-fal-request-id", "q"))
        await poisoned(s, "q", headers=headers, start_timeout=30, max_attempts=7)
        made = await asyncio.gather(*(s.store.letters.replay(APP, "q", f"new{n}") for n in range(20)))
        assert sum(not m.earlier for m in made) == 1, "however many ask at once"
        (new,) = {m.request_id for m in made}
        assert await s.requests.queue_size(APP) == 1
        claim = await s.inboxes[0].next()
        assert (claim.request_id, claim.attempt, claim.body) == (new, 1, b'{"prompt":"rhino"}')
        assert dict(claim.headers)["x-fal-request-id"] == new, "the app must not be told the old id"
        assert (await s.fields(new))["max_attempts"] == "7"
        letter = await s.store.letters.get(APP, "q")
        assert letter is not None
        assert (letter.replayed_as, letter.replayed_at_ms is not None) == (new, True)
        assert await s.inboxes[0].finish(claim, OK, claim_next=False)

        again = await s.store.letters.replay(APP, "q", "once-more", again=True)
        assert (again.request_id, again.earlier) == ("once-more", False)
        assert (await s.store.letters.replay(APP, "q", "once-more", again=True)).earlier is False, "a lost reply"
        assert await s.requests.queue_size(APP) == 1


async def test_a_letter_cannot_be_replayed_into_nothing_or_a_full_queue(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path, max_queue=1) as s:
        await poisoned(s, "q", body=b"x" * (INLINE_BYTES + 1))
        with pytest.raises(NotFound, match="no dead letter other"):
            await s.store.letters.replay(APP, "other", "new")
        await s.submit("waiting")
        with pytest.raises(QueueFull):
            await s.store.letters.replay(APP, "q", "new")
        await s.requests.cancel(APP, "waiting")
        await s.store.apps.delete(APP)
        with pytest.raises(NotFound, match="no such app"):
            await s.store.letters.replay(APP, "q", "new")
        assert [path.name.partition(".")[0] for path in (tmp_path / "blobs").glob("*/*/*")] == ["q"]
        with pytest.raises(ValueError, match="is no id"):
            await s.store.letters.replay(APP, "q", "a b")


async def test_a_large_input_lives_as_long_as_its_letter(redis_url: str, tmp_path: Path) -> None:
    """The sweep deleted a large body as soon as the request's own record had expired, an hour after its end."""
    body = os.urandom(INLINE_BYTES + 1)
    async with scene(redis_url, tmp_path) as s:
        letter = await poisoned(s, "q", body=body)
        assert letter.body_bytes == len(body)
        await s.redis("DEL", keys.request(APP, "q"))
        assert await s.store.sweep_blobs(older_than_s=-1) == 0
        assert await s.store.letters.body(letter) == body
        await s.store.letters.replay(APP, "q", "new")
        await s.store.letters.replay(APP, "q", "refused")
        assert len(list((tmp_path / "blobs").glob("*/*/*"))) == 2, "the letter's and the new request's"
        assert await s.store.letters.drop(APP, "q")
        assert await s.store.sweep_blobs(older_than_s=-1) == 0, "the new request has a body of its own"
        claim = await s.inboxes[0].next()
        assert (claim.request_id, claim.body) == ("new", body)
        await s.inboxes[0].finish(claim, OK, claim_next=False)
        assert list((tmp_path / "blobs").glob("*/*/*")) == [], "and nothing is left when that has its result"
        assert not await s.store.letters.drop(APP, "q")
        with pytest.raises(NotFound, match="no longer on disk"):
            await s.store.letters.body(letter)


async def test_a_large_input_is_copied_where_files_cannot_be_linked(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    body = os.urandom(INLINE_BYTES + 1)
    async with scene(redis_url, tmp_path) as s:
        await poisoned(s, "q", body=body)
        await s.store.letters.replay(APP, "q", "new")
        assert (await s.inboxes[0].next()).body == body


async def test_letters_are_bounded_and_end(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        await poisoned(s, "q")
        week = 7 * 86400 * 1000
        for key in (keys.letter(APP, "q"), keys.letters(APP)):
            assert week - 60_000 < await s.redis("PTTL", key) <= week
        flat = [value for n in range(1000) for value in (10_000_000_000_000 + n, f"old{n}")]
        await s.redis("ZADD", keys.letters(APP), *flat)
        await s.redis("HSET", keys.letter(APP, "old0"), "call", "x")
        inbox = s.inboxes[0]
        await s.lose(await s.claimed(inbox, max_attempts=1), fallback=LOST)
        assert await s.redis("ZCARD", keys.letters(APP)) == 1000
        assert await s.store.letters.get(APP, "q") is None, "the oldest made room"
