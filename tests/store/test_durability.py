"""What survives when the server, its memory, its disk or the power goes (F16, F23-F25, F44). Mounts need root."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from keepwarm import redis_server
from scheduler.store import StoreUnavailable, connection
from scheduler.store.records import RequestState
from tests.store.scene import APP, OK, Scene, scene, submission
from tests.support.disks import loop_disk, small_disk
from tests.support.waiting import await_until

pytestmark = pytest.mark.anyio
BODY = b"x" * 100_000


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose sockets fit into ``sun_path``."""
    folder = Path(tempfile.mkdtemp(prefix="kwt-"))
    yield folder
    shutil.rmtree(folder)


def url(folder: Path) -> str:
    return f"unix://{redis_server.socket_path(folder)}"


@contextlib.asynccontextmanager
async def served(folder: Path, fsync: redis_server.Fsync) -> AsyncIterator[tuple[subprocess.Popen[bytes], Scene]]:
    """A server on that folder and a scene on it."""
    server = redis_server.start(folder, fsync)
    try:
        async with scene(url(folder), folder, patience_s=5) as s:
            yield server, s
    finally:
        server.send_signal(signal.SIGCONT)
        server.kill()
        server.wait()


async def still_there(folder: Path, accepted: list[str]) -> set[str]:
    """Which of them a server that starts on the folder now does not know."""
    async with served(folder, "always") as (_, s):
        return {i for i in accepted if await s.requests.state(APP, i) is None}


async def submit_until_refused(s: Scene, most: int) -> list[str]:
    """Ids that were accepted; one submit beyond is refused."""
    accepted: list[str] = []
    for n in range(most):
        try:
            await asyncio.wait_for(s.requests.submit(submission(f"q{n}", body=BODY)), 3)
        except (StoreUnavailable, TimeoutError):
            return accepted
        accepted.append(f"q{n}")
    raise AssertionError(f"{most} submits fitted on a full disk")


@pytest.mark.debian
async def test_a_full_disk_stops_new_work_and_the_server_goes_on_by_itself_when_there_is_room() -> None:
    """F23, ``everysec``: every write is refused while the disk is full. Nobody restarts anything."""
    with small_disk(8) as disk:
        async with served(disk.path, "everysec") as (server, s):
            inbox = await s.worker()
            claim = await s.claimed(inbox)
            accepted = await submit_until_refused(s, 200)
            assert len(accepted) > 10
            finishing = asyncio.ensure_future(inbox.finish(claim, OK, claim_next=False))
            disk.resize(64)

            async def takes() -> bool:
                with contextlib.suppress(StoreUnavailable):
                    await s.submit("after")
                    return True
                return False

            await await_until(takes, "a submit to be taken again")
            with contextlib.suppress(StoreUnavailable):  # refused for good: the supervisor asks again, as it does here
                await finishing
            assert await inbox.finish(claim, OK, claim_next=False)
            assert server.poll() is None
            assert await s.requests.state(APP, claim.request_id) is RequestState.COMPLETED
            server.kill()
            server.wait()
        assert await still_there(disk.path, [*accepted, "after", claim.request_id]) == set()


@pytest.mark.debian
async def test_a_server_that_always_syncs_ends_on_a_full_disk_and_has_everything_after_it() -> None:
    """F23, ``always``: a write that cannot be kept is never acknowledged, so the server ends; `keepwarm up` starts it
    again and again until there is room."""
    with small_disk(8) as disk:
        async with served(disk.path, "always") as (server, s):
            accepted = await submit_until_refused(s, 200)
            assert len(accepted) > 10
            assert await asyncio.to_thread(server.wait, 10) != 0
            disk.resize(64)
        assert await still_there(disk.path, accepted) == set()


@pytest.mark.debian
@pytest.mark.parametrize(("fsync", "may_be_lost_s"), [("always", 0.0), ("everysec", 2.0)])
async def test_a_power_cut_takes_no_more_than_the_policy_says(
    short_path: Path, fsync: redis_server.Fsync, may_be_lost_s: float
) -> None:
    """F24: the disk is a file. A copy of it, made while requests are accepted, is what a machine without power would
    find on its disk."""
    image, after_cut = short_path / "disk", short_path / "disk-after"
    acknowledged: dict[str, float] = {}
    with loop_disk(image) as disk:
        async with served(disk, fsync) as (server, s):
            began = time.monotonic()
            while time.monotonic() < began + 3:
                request_id = f"q{len(acknowledged)}"
                await s.requests.submit(submission(request_id))
                acknowledged[request_id] = time.monotonic()
            server.send_signal(signal.SIGSTOP)
            cut_at = time.monotonic()
            shutil.copyfile(image, after_cut)
    with loop_disk(after_cut) as disk:
        (disk / "redis.sock").unlink(missing_ok=True)
        lost = await still_there(disk, list(acknowledged))
    oldest = max((cut_at - acknowledged[i] for i in lost), default=0.0)
    print(f"{fsync}: {len(lost)} of {len(acknowledged)} lost, the oldest {oldest:.2f} s old")
    assert len(acknowledged) > 50
    assert oldest <= may_be_lost_s
    if fsync == "always":
        assert not lost


async def test_half_a_write_at_the_end_of_the_file_is_forgotten_and_the_rest_is_there(short_path: Path) -> None:
    """F25: the machine stopped in the middle of a write, before anybody was told that it had happened."""
    async with served(short_path, "always") as (server, s):
        for n in range(5):
            await s.submit(f"q{n}")
        server.kill()
        server.wait()
    file = newest_append_only_file(short_path)
    with file.open("r+b") as torn:
        torn.truncate(file.stat().st_size - 7)
    async with served(short_path, "always") as (_, s):
        assert [await s.requests.state(APP, f"q{n}") is not None for n in range(5)] == [True] * 4 + [False]


async def test_a_damaged_file_is_refused_with_the_command_that_mends_it(short_path: Path) -> None:
    """F25: a byte in the middle has turned. Starting on half of the truth would lose requests in silence."""
    async with served(short_path, "always") as (server, s):
        for n in range(5):
            await s.submit(f"q{n}")
        server.kill()
        server.wait()
    file = newest_append_only_file(short_path)
    whole = bytearray(file.read_bytes())
    header = whole.rindex(b"*", 0, len(whole) // 2)
    whole[header] = ord("!")
    file.write_bytes(whole)
    with pytest.raises(redis_server.RedisDidNotStart, match="Bad file format reading the append only file") as caught:
        await asyncio.to_thread(redis_server.start, short_path, "always")
    assert "check-aof --fix" in str(caught.value)


async def test_yesterdays_data_loses_what_came_after_it_and_mixes_nothing_up(short_path: Path) -> None:
    """F44: somebody restored a copy. What was accepted later is gone, and nothing can change that; a worker from that
    lost future comes back with the right attempt of a request that is somebody else's now, and is refused."""
    async with served(short_path, "always") as (server, s):
        await s.submit("old")
        server.kill()
        server.wait()
        shutil.copytree(short_path / "redis", short_path / "yesterday")
    async with served(short_path, "always") as (_, s):
        of_the_future = await (await s.worker("w1")).next()
        await s.submit("new")
    shutil.rmtree(short_path / "redis")
    (short_path / "yesterday").rename(short_path / "redis")
    async with served(short_path, "always") as (_, s):
        assert await s.requests.state(APP, "new") is None
        again = await (await s.worker("w2")).next()
        assert (again.request_id, again.attempt) == (of_the_future.request_id, of_the_future.attempt)
        late = await s.worker("w1")
        late._held[of_the_future.request_id] = of_the_future.attempt
        assert not await late.finish(of_the_future, OK, claim_next=False)
        assert await s.lose(of_the_future) == "superseded"
        assert await s.requests.state(APP, "old") is RequestState.IN_PROGRESS


def newest_append_only_file(folder: Path) -> Path:
    return max((folder / "redis").glob("appendonlydir/*.incr.aof"), key=lambda file: file.stat().st_mtime_ns)


async def test_a_server_that_stood_still_does_late_what_was_sent_again_meanwhile(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F16: the server froze for longer than its clients wait for an answer. They gave up, connected anew and sent the
    same again; then it woke up and did both."""
    monkeypatch.setattr(connection, "REPLY_TIMEOUT", 0.2)
    async with served(short_path, "always") as (server, s):
        inbox = await s.worker()
        claim = await s.claimed(inbox)
        await s.submit("next")
        server.send_signal(signal.SIGSTOP)
        calls = asyncio.gather(s.submit("late"), inbox.finish(claim, OK, claim_next=False))
        lost = s.store._redis.link.connection

        async def given_up() -> bool:
            return s.store._redis.link.connection is not lost

        await await_until(given_up, "the client to give the connection up")
        server.send_signal(signal.SIGCONT)
        assert (await calls)[1], "its own finish, even the second time"
        seen = await s.store.apps.observe(APP)
        assert (seen.queued, seen.in_progress) == (2, 0)
        assert await s.requests.state(APP, claim.request_id) is RequestState.COMPLETED


async def test_a_server_that_holds_writes_back_does_them_once(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F16: ``CLIENT PAUSE WRITE``, as a failover does it."""
    monkeypatch.setattr(connection, "REPLY_TIMEOUT", 0.2)
    async with served(short_path, "always") as (_, s):
        await s.redis("CLIENT", "PAUSE", 700, "WRITE")
        await s.submit("a")
        assert await s.requests.queue_size(APP) == 1
        assert (await (await s.worker()).next()).request_id == "a"
