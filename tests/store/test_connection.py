"""The connection: one write a turn, lost replies, restarts, refusals."""

from __future__ import annotations

import asyncio
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from keepwarm import redis_server
from scheduler.store import Store, StoreError, StoreFull, StoreUnavailable, connection, keys
from scheduler.store.connection import Address
from scheduler.store.records import RequestState
from tests.store.fault_proxy import fault_proxy
from tests.store.scene import APP, LOST, OK, scene, submission
from tests.support.waiting import await_until

pytestmark = pytest.mark.anyio


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose sockets fit into ``sun_path``."""
    folder = Path(tempfile.mkdtemp(prefix="kwt-"))
    yield folder
    shutil.rmtree(folder)


async def test_what_is_sent_in_one_turn_travels_as_one_write(redis_url: str, short_path: Path) -> None:
    async with fault_proxy(redis_url, short_path) as (proxy, url):
        store = await Store.connect(url, short_path)
        await store.ping()
        proxy.writes.clear()
        await asyncio.gather(*(store.requests.state(APP, f"q{n}") for n in range(50)))
        assert len(proxy.writes) == 1
        await store.close()


@pytest.mark.parametrize(
    "verb", ["submit", "submit with a key", "claim", "finish", "retry", "give up", "replay", "cancel"]
)
async def test_a_lost_reply_changes_nothing(redis_url: str, short_path: Path, verb: str) -> None:
    """F17: the write happened and the caller saw an error: every verb is sent again and must have happened once."""
    async with fault_proxy(redis_url, short_path) as (proxy, url), scene(url, short_path) as s:
        inbox = await s.worker()
        lost = f"reply of {verb}".encode()
        if verb == "submit":
            proxy.lose_replies_to = b"the-body"
            await s.submit("a", body=b"the-body")
            assert await s.requests.queue_size(APP) == 1
        elif verb == "submit with a key":
            proxy.lose_replies_to = b"the-body"
            await s.submit("a", body=b"the-body", idempotency_key="order 7")
            repeated = submission("b", body=b"the-body", idempotency_key="order 7")
            assert (await s.requests.submit(repeated)).request_id == "a", "its caller never heard of a"
            assert await s.requests.queue_size(APP) == 1
        elif verb == "claim":
            await s.submit("a")
            proxy.lose_replies_to = b"$2\r\nw1\r\n$5\r\n30000"
            assert (await inbox.next()).attempt == 1
        elif verb == "finish":
            claim = await s.claimed(inbox)
            await s.submit("next")
            proxy.lose_replies_to = b"COMPLETED"
            assert await inbox.finish(claim, OK)
            assert (await inbox.next()).request_id == "next"
            assert await s.requests.queue_size(APP) == 0
        elif verb == "retry":
            claim = await s.claimed(inbox)
            proxy.lose_replies_to = b"died"
            assert await s.lose(claim) == "requeued"
            assert (await inbox.next()).attempt == 2
        elif verb == "give up":
            claim = await s.claimed(inbox, max_attempts=1)
            proxy.lose_replies_to = b"died"
            assert await s.lose(claim) == "failed"
            assert [letter.request_id for letter in await s.store.letters.list(APP)] == [claim.request_id]
        elif verb == "replay":
            claim = await s.claimed(inbox, max_attempts=1)
            await s.lose(claim)
            proxy.lose_replies_to = b"replayed-once"
            made = await s.store.letters.replay(APP, claim.request_id, "replayed-once")
            assert (made.request_id, made.earlier) == ("replayed-once", False)
            assert await s.requests.queue_size(APP) == 1
        else:
            await s.submit("a")
            proxy.lose_replies_to = b"client_cancelled"
            assert await s.requests.cancel(APP, "a") == "cancelled_queued"
        assert proxy.lost, lost


async def test_a_connection_that_goes_silent_is_replaced(
    redis_url: str, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "REPLY_TIMEOUT", 0.1)
    async with fault_proxy(redis_url, short_path) as (proxy, url):
        store = await Store.connect(url, short_path)
        proxy.silent = True
        state = asyncio.ensure_future(store.requests.state(APP, "a"))
        connected_before = len(proxy._pairs)

        async def reconnected() -> bool:
            return len(proxy._pairs) > connected_before

        await await_until(reconnected, "a new connection")
        proxy.silent = False
        assert await state is None
        await store.close()


async def test_a_connection_found_dying_is_not_hammered(redis_url: str, tmp_path: Path) -> None:
    """Between the abort and the loop's notice of it, resending without a pause kept the loop from ever noticing."""
    store = await Store.connect(redis_url, tmp_path)
    dying = store._redis.link.connection
    assert dying is not None
    dying.abort()
    await store.ping()
    await store.close()


async def test_a_tick_while_a_question_is_under_way_is_not_forgotten(redis_url: str, short_path: Path) -> None:
    """The answer "nothing there" was made before the work came whose tick overtook it: it waited for the next poll."""
    async with fault_proxy(redis_url, short_path) as (proxy, url), scene(url, short_path) as s:
        inbox = await s.worker()
        await s.redis("PING")
        proxy.writes.clear()
        waiting = asyncio.ensure_future(inbox.next())
        await asyncio.sleep(0)
        inbox._on_work(b"")

        async def asked_twice() -> bool:
            return sum(b"$2\r\nw1\r\n$5\r\n30000" in data for data in proxy.writes) == 2

        await await_until(asked_twice, "a second question", timeout=0.8)
        waiting.cancel()


async def test_listeners_hear_again_after_a_cut(redis_url: str, short_path: Path) -> None:
    async with fault_proxy(redis_url, short_path) as (proxy, url):
        store = await Store.connect(url, short_path)
        heard: list[bytes] = []
        reconnects: list[int] = []
        subscription = await store.subscribe({keys.channel_wake(): heard.append}, lambda: reconnects.append(1))
        assert reconnects == []
        proxy.drop_all()

        async def back() -> bool:
            return bool(reconnects)

        await await_until(back, "the subscriber to come back")

        async def message() -> bool:
            await store._redis.command("PUBLISH", keys.channel_wake(), "app")
            return b"app" in heard

        await await_until(message, "a message after the cut")
        await subscription.close()
        await subscription.close()
        await store.close()


async def test_one_broken_listener_does_not_deafen_the_others(
    redis_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = await Store.connect(redis_url, tmp_path)
    heard: list[bytes] = []

    def broken(message: bytes) -> None:
        raise RuntimeError("no")

    await store.subscribe({keys.channel_wake(): broken})
    await store.subscribe({keys.channel_wake(): heard.append})
    await store._redis.command("PUBLISH", keys.channel_wake(), "app")

    async def message() -> bool:
        return heard == [b"app"]

    await await_until(message, "the message")
    assert "a listener failed" in caplog.text
    await store.close()


async def test_a_server_killed_and_restarted_has_everything(short_path: Path) -> None:
    """kill -9 between a claim and its finish: leases, owners and results survive, callers only wait a little.

    With ``everysec`` this is not quite so: while the disk is busy with a sync, the server holds a write back for up to
    two seconds, and takes it along when it is killed then.
    """
    server = redis_server.start(short_path, "always")
    try:
        async with scene(f"unix://{redis_server.socket_path(short_path)}", short_path) as s:
            inbox = await s.worker()
            claim = await s.claimed(inbox)
            await s.submit("waiting")
            before = await s.store.apps.observe(APP)
            server.kill()
            server.wait()
            finishing = asyncio.ensure_future(inbox.finish(claim, OK))
            reading = asyncio.ensure_future(s.requests.get(APP, "waiting"))
            server = await asyncio.to_thread(redis_server.start, short_path, "always")
            record = await reading
            assert record is not None
            assert await finishing
            assert (await inbox.next()).request_id == "waiting"
            after = await s.store.apps.observe(APP)
            assert (before.in_progress, before.queued) == (1, 1)
            assert (after.in_progress, after.queued) == (1, 0)
            assert await s.requests.state(APP, claim.request_id) is RequestState.COMPLETED
    finally:
        server.kill()
        server.wait()


async def test_no_server_is_said_in_one_line(tmp_path: Path, short_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="does not answer"):
        await Store.connect(f"unix://{short_path}/none.sock", tmp_path, patience_s=0.1)


async def test_calls_give_up_when_the_server_stays_away(redis_url: str, short_path: Path) -> None:
    async with fault_proxy(redis_url, short_path) as (proxy, url):
        store = await Store.connect(url, short_path)
        (short_path / "p.sock").unlink()
        proxy.drop_all()
        with pytest.raises(StoreUnavailable):
            await store._redis.command("PING", patience=0.1)
        await store.close()
        with pytest.raises(StoreUnavailable):
            await store.ping()


async def test_an_outage_that_is_over_is_not_named_as_the_cause_of_the_next(redis_url: str, short_path: Path) -> None:
    """A gateway that stopped said "LOADING" of a Redis that had loaded its data half an hour before."""
    async with fault_proxy(redis_url, short_path) as (proxy, url):
        store = await Store.connect(url, short_path)
        (short_path / "p.sock").rename(short_path / "away.sock")
        proxy.drop_all()
        with pytest.raises(StoreUnavailable, match="No such file"):
            await store._redis.command("PING", patience=0.1)
        (short_path / "away.sock").rename(short_path / "p.sock")
        await store.ping()
        await store.close()
        with pytest.raises(StoreUnavailable, match=r"p\.sock does not answer; try again"):
            await store.ping()


async def test_scripts_that_the_server_forgot_are_loaded_again(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        await s.redis("SCRIPT", "FLUSH")
        await s.submit("a")
        assert await s.requests.queue_size(APP) == 1


async def test_full_memory_refuses_new_work_and_lets_running_work_end(redis_url: str, tmp_path: Path) -> None:
    """A server out of memory refused the result of an hour of GPU work as readily as a new request."""
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker()
        first = await s.claimed(inbox)
        second = await s.claimed(inbox)
        third = await s.claimed(inbox)
        await s.submit("waiting")
        await s.redis("CONFIG", "SET", "maxmemory", "1")
        try:
            with pytest.raises(StoreFull):
                await s.requests.submit(submission("refused"))
            assert await inbox.heartbeat() == []
            assert await inbox.finish(first, OK)
            assert (await inbox.next()).request_id == "waiting"
            assert await s.lose(second) == "requeued"
            assert await s.requests.cancel(APP, third.request_id) == "cancelled_running"
            assert await s.requests.fail_queued(APP, second.request_id, LOST)
            await s.store.apps.observe(APP)
        finally:
            await s.redis("CONFIG", "SET", "maxmemory", "0")


async def test_refusals_become_our_errors(redis_url: str, tmp_path: Path) -> None:
    store = await Store.connect(redis_url, tmp_path)
    await store._redis.command("SET", "text", "x")
    with pytest.raises(StoreError, match="WRONGTYPE"):
        await store._redis.command("HGET", "text", "field")
    await store._redis.command("DEL", "text")
    await store.close()


def test_addresses() -> None:
    unix = Address("unix:///run/redis.sock?db=2&password=p%40ss")
    assert (unix.path, unix.database, unix.password, str(unix)) == (
        *("/run/redis.sock", 2, "p@ss", "unix:///run/redis.sock"),
    )
    tcp = Address("redis://user:s%3Acret@cache:6380/3")
    assert (tcp.host, tcp.port, tcp.username, tcp.password, tcp.database) == ("cache", 6380, "user", "s:cret", 3)
    assert str(tcp) == "cache:6380", "an address in an error message shows no password"
    assert Address("rediss://cache").tls
    for bad in ("http://cache", "redis://cache/name"):
        with pytest.raises(ValueError, match=r"redis|number"):
            Address(bad)


async def test_a_password_is_used_and_a_wrong_one_is_named(short_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = redis_server.start(short_path, "everysec")
    store = await Store.connect(f"unix://{redis_server.socket_path(short_path)}", short_path)
    try:
        await store._redis.command("CONFIG", "SET", "bind", "127.0.0.1")
        await store._redis.command("CONFIG", "SET", "port", port)
        await store._redis.command("CONFIG", "SET", "requirepass", "s3cret")
        other = await Store.connect(f"redis://:s3cret@127.0.0.1:{port}/1", short_path)
        await other.ping()
        await other.close()
        for wrong in ("redis://:wrong@", "redis://"):
            with pytest.raises(StoreError, match="does not let us in"):
                await Store.connect(f"{wrong}127.0.0.1:{port}/1", short_path, patience_s=60)
    finally:
        await store.close()
        server.kill()
        server.wait()
