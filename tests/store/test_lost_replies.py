"""F17: the write happened and its reply was lost, for every script. It is sent again, and must have happened once.

The oracle is the same call on the same scene without the fault: same answer, and Redis holds the same afterwards.
A verb without a case here turns this red.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scheduler.store.outcomes import OVERDUE, pack_outcome
from scheduler.store.records import (
    Claimed,
    EnvironmentRecord,
    EnvironmentState,
    HostRecord,
    LogEntry,
    RevisionState,
    WebhookDelivery,
    WorkerState,
)
from scheduler.store.scripts import SCRIPTS
from tests.store.fault_proxy import fault_proxy
from tests.store.scene import APP, LOST, OK, Scene, revision, scene

pytestmark = pytest.mark.anyio
HOST = HostRecord("box", ("XS",), (), False, 2, 4096)
Step = Callable[[Scene], Awaitable[Any]]


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose sockets fit into ``sun_path``."""
    folder = Path(tempfile.mkdtemp(prefix="kwt-"))
    yield folder
    shutil.rmtree(folder)


# --- scenes: a worker w1 that listens, and requests in every state that a verb wants ----------------------------------


async def queued(s: Scene) -> None:
    """A waits with a start deadline, B behind it with low priority."""
    await s.submit("a", start_timeout=60, webhook="http://there/hook")
    await s.submit("b", priority="low")


async def two_revisions(s: Scene) -> None:
    """The app's name points at r1, and there is another one."""
    await s.store.apps.put_revision(revision("r2"))


async def running(s: Scene) -> None:
    """A runs on w1, B and C wait."""
    await s.place("w1")
    await s.store.workers.update(APP, "w1", ready=True)
    await queued(s)
    await s.submit("c")
    await claim(s)


async def put_off(s: Scene) -> None:
    """A pauses before its second attempt, and its pause is over."""
    await running(s)
    await retry(s, delay_ms=60_000)
    await s.redis("ZADD", f"{{{APP}}}:delayed", "XX", 1, "a")


async def owed(s: Scene) -> None:
    """A has ended, and its webhook is held by a sender."""
    await running(s)
    await finish(s, claim_more=0)
    await s.store.outbox.due(APP)


async def given_up(s: Scene) -> None:
    """A has ended, and so have the tries to deliver its webhook."""
    await owed(s)
    await s.store.outbox.give_up(delivery(), "gone")


async def letter(s: Scene) -> None:
    """A has used its one attempt up, and left a letter."""
    await s.place("w1")
    await s.store.workers.update(APP, "w1", ready=True)
    await s.submit("a", max_attempts=1)
    await claim(s)
    assert await retry(s) == "failed"


async def parked(s: Scene) -> None:
    """w1 listens and waits for work."""
    await s.worker("w1")
    assert await claim(s) == b"empty"


async def placed(s: Scene) -> None:
    """w1 is on its way."""
    await s.place("w1")


async def suspended(s: Scene) -> None:
    """w1 stands still, and its cards are free."""
    await s.worker("w1")
    assert await s.store.workers.request_stop(APP, "w1", "suspend", "idle")
    await s.store.workers.update(APP, "w1", state=WorkerState.SUSPENDED)


async def session(s: Scene) -> None:
    """An ephemeral app whose session has ended."""
    await s.store.apps.touch_session("alice/run", -1)


async def nothing(s: Scene) -> None:
    """Only the app."""


# --- calls ------------------------------------------------------------------------------------------------------------


async def claim(s: Scene) -> Any:
    return await SCRIPTS["claim"](
        s.store._redis, APP, worker_id="w1", lease_ms=30_000, overdue=OVERDUE, retention_ms=60_000
    )


async def finish(s: Scene, claim_more: int = 1) -> Any:
    kept, answer = await SCRIPTS["finish"](
        s.store._redis,
        APP,
        request_id="a",
        attempt=1,
        worker_id="w1",
        status="COMPLETED",
        result=pack_outcome(OK),
        error_type="",
        retention_ms=60_000,
        claim_more=claim_more,
        lease_ms=30_000,
        overdue=OVERDUE,
        bytes=len(OK.body),
    )
    if not claim_more:
        return kept, answer
    # what the lost answer had claimed is found by the question that follows an empty one
    return kept, answer or (await claim(s))[0]


async def heartbeat(s: Scene) -> Any:
    return await SCRIPTS["heartbeat"](
        s.store._redis, APP, worker_id="w1", lease_ms=30_000, rest=["a", "1", "b", "1", "c", "7"]
    )


async def retry(s: Scene, delay_ms: int = 0) -> str:
    return await s.requests.retry(
        *(APP, "a", 1), worker_id="w1", reason="died", crashed=True, delay_ms=delay_ms, fallback=LOST
    )


async def crashing(s: Scene) -> None:
    for number in range(5):
        await s.place(f"crashed-{number}")
        await s.store.workers.remove(APP, f"crashed-{number}", "died", crashed=True)


async def append_output(s: Scene) -> Any:
    piece = Claimed(APP, "a", 1, "queued", "POST", "/", "", (), b"", "http://here", None, 0, "w1")
    return await s.requests.append_output(piece, "chunk", b"piece")


async def append_input(s: Scene) -> Any:
    return await s.store.connections.append_input(APP, "a", 1, "messages", b"piece")


def delivery() -> WebhookDelivery:
    return WebhookDelivery(APP, "a", "http://there/hook", 0, 0)


#: verb -> the scene, and what is done on it.
CASES: dict[str, tuple[Step, Step]] = {
    "append_input": (running, append_input),
    "append_log": (running, lambda s: s.store.logs.append(APP, [LogEntry("", 1.0, "INFO", "line", request_id="a")])),
    "append_output": (running, append_output),
    "beat": (running, lambda s: s.store.workers.beat(APP, "w1", 1)),
    "cancel": (running, lambda s: s.requests.cancel(APP, "a")),
    "change_alias": (nothing, lambda s: s.store.apps.set_auth(APP, "private")),
    "change_revision": (nothing, lambda s: s.store.apps.set_revision_state(APP, "r1", RevisionState.FAILED)),
    "claim": (running, claim),
    "drop_letter": (letter, lambda s: s.store.letters.drop(APP, "a")),
    "drop_webhook": (given_up, lambda s: s.store.outbox.drop(APP, "a")),
    "drop_revision": (two_revisions, lambda s: s.store.apps.drop_revision(APP, "r2")),
    "end_crash_streak": (crashing, lambda s: s.store.apps.crash_streak_ended(APP, "r1")),
    "expired_leases": (running, lambda s: s.requests.expired_leases(APP)),
    "expired_sessions": (session, lambda s: s.store.apps.expired_sessions()),
    "fail_queued": (queued, lambda s: s.requests.fail_queued(APP, "a", LOST)),
    "fail_waiting": (put_off, lambda s: s.requests.fail_waiting(APP, LOST)),
    "finish": (running, finish),
    "heartbeat": (running, heartbeat),
    "lead": (nothing, lambda s: s.store.leader.lead("scheduler-1", 60_000)),
    "list_dead_webhooks": (given_up, lambda s: s.store.outbox.dead(APP)),
    "list_letters": (letter, lambda s: s.store.letters.list(APP)),
    "observe": (running, lambda s: s.store.apps.observe(APP)),
    "overdue_starts": (queued, lambda s: s.requests.overdue_starts(APP)),
    "place": (nothing, placed),
    "point": (nothing, lambda s: s.store.apps.point(APP, "r2", auth=None, scaling=None, ephemeral=False)),
    "promote": (put_off, lambda s: s.requests.promote(APP, s.epoch)),
    "issue_app_key": (nothing, lambda s: s.store.keys.of_app(APP)),
    "put_environment": (
        nothing,
        lambda s: s.store.environments.put(EnvironmentRecord("environment-1", EnvironmentState.BUILDING)),
    ),
    "put_revision": (nothing, lambda s: s.store.apps.put_revision(revision("r2"))),
    "queue_size": (queued, lambda s: s.requests.queue_size(APP)),
    "raise_gpu_peak": (nothing, lambda s: s.store.apps.gpu_peak(APP, "r1", 4_000)),
    "read_letter": (letter, lambda s: s.store.letters.get(APP, "a")),
    "read_request": (queued, lambda s: s.requests.get(APP, "a")),
    "mark_unhealthy": (parked, lambda s: s.store.workers.mark_unhealthy(APP, "w1", "its check failed")),
    "remove_worker": (running, lambda s: s.store.workers.remove(APP, "w1", "gone", crashed=True)),
    "replay_letter": (letter, lambda s: s.store.letters.replay(APP, "a", "again")),
    "replay_webhook": (given_up, lambda s: s.store.outbox.replay(APP, "a")),
    "report_host": (nothing, lambda s: s.store.hosts.report(HOST)),
    "request_stop": (running, lambda s: s.store.workers.request_stop(APP, "w1", "drain", "old")),
    "resume_worker": (suspended, lambda s: s.store.workers.resume(APP, "w1", s.epoch)),
    "resign": (nothing, lambda s: s.store.leader.resign("scheduler-1")),
    "retire": (running, lambda s: s.store.workers.retire(APP, "another one is wanted")),
    "retire_app": (queued, lambda s: s.store.apps.delete(APP)),
    "retire_name": (queued, lambda s: s.store.apps.delete(APP)),
    "retry": (running, retry),
    "startup_failed": (placed, lambda s: s.store.apps.startup_failed(APP, "r1", "no weights")),
    "submit": (parked, lambda s: s.submit("a", idempotency_key="k", webhook="http://there/hook")),
    "touch_session": (nothing, lambda s: s.store.apps.touch_session("alice/run", 60)),
    "update_worker": (placed, lambda s: s.store.workers.update(APP, "w1", state=WorkerState.SETUP)),
    "webhook_later": (owed, lambda s: s.store.outbox.reschedule(delivery(), 60)),
    "webhook_over": (owed, lambda s: s.store.outbox.give_up(delivery(), "gone")),
    "webhooks_due": (running, lambda s: finish_and_look(s)),
}
#: Where it can be told that the reply was lost, and why that harms nobody.
TOLERATED = {
    "raise_gpu_peak": "the second call finds it raised, and says so; nobody reads that answer",
    "end_crash_streak": "the second call finds none any more, and says so; it is over either way",
    "append_log": "the line stands there twice: better than lost",
    "drop_letter": "the second call finds none any more, and says so; it is gone either way",
    "drop_webhook": "the second call finds none any more, and says so; it is gone either way",
    "fail_waiting": "asked again, it finds what it ended gone; the number is for a message",
    "promote": "the second call finds nothing left to promote; the number only asks for another look",
    "retire_app": "the second call finds no name any more, and says so; it is gone either way",
}


async def finish_and_look(s: Scene) -> list[WebhookDelivery]:
    await finish(s, claim_more=0)
    return await s.store.outbox.due(APP)


async def everything(s: Scene) -> dict[str, Any]:
    """What Redis holds, but for the clock: times, entries' ids and tokens look alike."""
    found = {}
    for key in sorted(await s.redis("KEYS", "*")):
        kind = (await s.redis("TYPE", key)).decode()
        command = {
            "string": ("GET", key),
            "hash": ("HGETALL", key),
            "set": ("SMEMBERS", key),
            "zset": ("ZRANGE", key, 0, -1, "WITHSCORES"),
            "stream": ("XRANGE", key, "-", "+"),
        }[kind]
        value = plain(await s.redis(*command))
        if kind == "hash":
            value = sorted(zip(value[::2], value[1::2], strict=True))
        elif kind == "set":
            value = sorted(value)
        found[plain(key)] = (value, await s.redis("PTTL", key) > 0)
    found.pop(f"{{{APP}}}:woken", None)  # lasts a second
    return found


def plain(value: Any) -> Any:
    """The same without what the clock and the dice have made of it."""
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return re.sub(r"\b1\d{12}(-\d+)?\b", "<time>", re.sub(r"\b([0-9a-f]{32}|[0-9a-f]{64})\b", "<token>", text))


def test_every_script_has_a_case() -> None:
    assert set(CASES) == set(SCRIPTS), "a verb whose reply can be lost needs a case in tests/store/test_lost_replies.py"


@pytest.mark.parametrize("verb", sorted(SCRIPTS))
async def test_a_lost_reply_changes_nothing(redis_url: str, short_path: Path, verb: str) -> None:
    prepare, act = CASES[verb]
    outcomes = []
    for lose in (False, True):
        async with fault_proxy(redis_url, short_path) as (proxy, url), scene(url, short_path) as s:
            await prepare(s)
            if lose:
                proxy.lose_replies_to = SCRIPTS[verb].sha.encode()
            answer = await act(s)
            assert proxy.lost == lose, f"{verb} was not called"
            proxy.lose_replies_to = None
            outcomes.append((plain(answer), await everything(s)))
            await s.redis("FLUSHALL")
    assert (outcomes[0] == outcomes[1]) == (verb not in TOLERATED)
    if verb != "append_log":
        assert outcomes[0][1] == outcomes[1][1], "what Redis holds"
