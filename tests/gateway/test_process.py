"""The gateway as a process of its own: start, stop, and what happens when Redis goes away."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from gateway import results, run
from keepwarm import redis_server as embedded
from scheduler.store import Store, StoreUnavailable
from scheduler.store.pieces import pack_accept
from scheduler.store.records import Claimed, Outcome
from tests.gateway.platform import RunningGateway, StubWorker
from tests.support.waiting import wait_until


@dataclass
class Process:
    """A gateway process on an inherited socket, as ``keepwarm up`` starts it."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(15)


def start(redis_url: str, data: Path, listener: socket.socket, **environ: str) -> Process:
    log = data / f"gateway-{os.urandom(4).hex()}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway"],
            env=os.environ
            | {
                "KEEPWARM_REDIS_URL": redis_url,
                "KEEPWARM_DATA": str(data),
                "KEEPWARM_LISTEN_FD": str(listener.fileno()),
            }
            | environ,
            pass_fds=(listener.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    return Process(process, "http://{}:{}".format(*listener.getsockname()), log)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(100)
        yield listening


def healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def test_a_gateway_starts_serves_and_stops_without_losing_a_caller(
    gateway: RunningGateway, listener: socket.socket, data_dir: Path
) -> None:
    """Two processes share one socket: when the first stops, callers are answered by the second, nobody is refused."""
    app = gateway.app()
    gateway.worker(app)
    redis_url = gateway.settings.redis_url
    first = start(redis_url, data_dir, listener)
    try:
        wait_until(lambda: healthy(first.url), "the first gateway is up")
        second = start(redis_url, data_dir, listener)
        wait_until(lambda: b"listening" in second.log.read_bytes(), "the second gateway is up")
        try:
            assert first.stop() == 0
            for number in range(10):
                answer = httpx.post(f"{first.url}/{app}", content=b"%d" % number, trust_env=False, timeout=10)
                assert (answer.status_code, answer.content) == (200, b"%d" % number)
            assert second.stop(signal.SIGINT) == 0
        finally:
            second.process.kill()
            second.process.wait()
    finally:
        first.process.kill()
        first.process.wait()
    for process in (first, second):
        assert b"Traceback" not in process.log.read_bytes()


def test_a_start_that_cannot_work_says_why_in_one_line(tmp_path: Path, listener: socket.socket) -> None:
    wrong = start("unix:///x", tmp_path, listener, KEEPWARM_MAX_BODY_BYTES="lots")
    assert wrong.process.wait(20) == 2
    assert wrong.log.read_text().splitlines() == ["gateway: KEEPWARM_MAX_BODY_BYTES='lots' is not a whole number"]


def test_a_restart_of_redis_is_waited_for(tmp_path: Path) -> None:
    """While Redis is away /health says so; a call that arrives then is answered once it is back."""
    folder = Path(tempfile.mkdtemp(prefix="kwg-"))
    url = f"unix://{embedded.socket_path(folder)}"
    redis = embedded.start(folder, "everysec")
    gateway = RunningGateway(url, tmp_path).start()
    try:
        app = gateway.app()
        gateway.worker(app)
        with gateway.client() as client:
            assert client.post(f"/{app}", content=b"before").status_code == 200
            redis.terminate()
            redis.wait(20)
            away = client.get("/health")
            assert (away.status_code, away.headers["retry-after"]) == (503, "1")
            assert away.json()["error_type"] == "internal_error"
            with socket.create_connection(gateway.address, 20) as connection:
                connection.sendall(b"POST /%s HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nafter" % app.encode())
                redis = embedded.start(folder, "everysec")
                assert connection.recv(4096).startswith(b"HTTP/1.1 200")
            assert client.get("/health").status_code == 200
    finally:
        gateway.stop()
        redis.terminate()
        redis.wait(20)


def test_a_gateway_that_stops_does_not_keep_callers_waiting_for_ever(redis_server: str, tmp_path: Path) -> None:
    gateway = RunningGateway(redis_server, tmp_path, stop_grace=1).start()
    app = gateway.app()
    with socket.create_connection(gateway.address, 20) as connection:
        connection.sendall(b"POST /%s HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}" % app.encode())
        wait_until(lambda: gateway.call(gateway.store.requests.queue_size(app)) == 1, "the request waits")
        gateway.stop()
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"retry-after: 1" in answer

    async def queued() -> int:
        store = await Store.connect(redis_server, tmp_path)
        try:
            return await store.requests.queue_size(app)
        finally:
            await store.close()

    assert asyncio.run(queued()) == 0


@contextmanager
def own_platform(data: Path) -> Iterator[tuple[RunningGateway, subprocess.Popen[bytes]]]:
    """A gateway with a Redis of its own, which the test may end."""
    folder = Path(tempfile.mkdtemp(prefix="kwg-"))
    redis = embedded.start(folder, "everysec")
    gateway = RunningGateway(f"unix://{embedded.socket_path(folder)}", data).start()
    try:
        yield gateway, redis
    finally:
        gateway.stop()
        redis.terminate()
        redis.wait(20)


def waiting_call(gateway: RunningGateway, app: str) -> socket.socket:
    """A caller whose request is in the queue, with nobody to serve it."""
    connection = socket.create_connection(gateway.address, 30)
    connection.sendall(b"POST /%s HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}" % app.encode())
    wait_until(lambda: gateway.call(gateway.store.requests.queue_size(app)) == 1, "the request waits")
    return connection


def test_a_caller_does_not_outwait_a_store_that_stays_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis ended on a full disk and did not come back; who had called before waited two hours for an answer that
    could not come."""
    monkeypatch.setattr(results, "AWAY_SECONDS", 1.0)
    with own_platform(tmp_path) as (gateway, server):
        with waiting_call(gateway, gateway.app()) as connection:
            server.terminate()
            answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"\r\nretry-after: 5\r\n" in answer
        assert b"\r\nx-fal-request-id: " in answer
        assert b"store is not available" in answer


def test_a_caller_does_not_outwait_a_store_that_takes_no_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk Redis still answers every question and takes no answer; the request seemed to go on for ever. It
    does not run once there is room again: its caller is gone."""
    monkeypatch.setattr(results, "AWAY_SECONDS", 1.0)
    monkeypatch.setattr(run, "_CANCEL_PAUSE", 0.1)
    monkeypatch.setattr(run, "_CANCEL_TRIES", 1000)
    with own_platform(tmp_path) as (gateway, _server):
        app = gateway.app()

        def redis(*command: str) -> Any:
            return gateway.call(gateway.store._redis.command(*command))

        with waiting_call(gateway, app) as connection:
            # A snapshot that cannot be put in its place makes Redis refuse writes as a full disk does.
            (Path(redis("CONFIG", "GET", "dir")[1].decode()) / "dump.rdb").mkdir()
            redis("CONFIG", "SET", "save", "86400 1000000")
            redis("BGSAVE")
            wait_until(lambda: b"rdb_last_bgsave_status:err" in redis("INFO", "persistence"), "the snapshot failed")
            answer = connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 503")
            assert b"MISCONF" in answer
            with gateway.client() as client:
                assert client.get("/health").status_code == 503
                assert client.post(f"/{app}").status_code == 503
        assert gateway.call(gateway.store.requests.queue_size(app)) == 1
        redis("CONFIG", "SET", "save", "")
        wait_until(lambda: gateway.call(gateway.store.requests.queue_size(app)) == 0, "the request was cancelled")


def test_a_connection_does_not_outlast_a_store_that_stays_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing could be passed on any more, and its app was never told that the caller had been cut off."""
    monkeypatch.setattr(results, "AWAY_SECONDS", 1.0)
    monkeypatch.setattr(run, "_CANCEL_PAUSE", 0.1)
    monkeypatch.setattr(run, "_CANCEL_TRIES", 1000)
    with own_platform(tmp_path) as (gateway, server):
        app = gateway.app()

        async def stay(worker: StubWorker, claim: Claimed) -> Outcome:
            await worker.store.requests.append_output(claim, "accept", pack_accept(None, ()))
            while claim.request_id not in worker.cancelled:
                await asyncio.sleep(0.01)
                # As a supervisor does: what was said while it was not connected, it hears by its heartbeat.
                with contextlib.suppress(StoreUnavailable):
                    worker.cancelled += [request_id for request_id, _ in await worker.inbox.heartbeat()]
            return Outcome(101, (), b"")

        worker = gateway.worker(app, stay)
        with connect(f"ws{gateway.url.removeprefix('http')}/{app}", proxy=None, open_timeout=20) as caller:
            folder = Path(gateway.settings.redis_url.removeprefix("unix://")).parent
            server.kill()
            server.wait(20)
            with pytest.raises(ConnectionClosed) as end:
                caller.recv(30)
        assert end.value.rcvd is not None
        assert end.value.rcvd.code == 1011
        assert "store is not available" in end.value.rcvd.reason
        back = embedded.start(folder, "everysec")
        try:
            wait_until(lambda: set(worker.cancelled) == {worker.claims[0].request_id}, "the app to be told", timeout=60)
        finally:
            gateway.call(worker.stop())
            back.terminate()
            back.wait(20)


def test_a_full_disk_is_named(tmp_path: Path, redis_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that did not fit on the disk was answered with a bare 500 and a traceback."""
    gateway = RunningGateway(redis_server, tmp_path).start()
    try:
        app = gateway.app()

        def full(*_: object, **__: object) -> str:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(gateway.store.blobs, "put", full)
        with gateway.client() as client:
            for prefix in ("", "/queue"):
                answer = client.post(f"{prefix}/{app}", content=bytes(300_000))
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
                assert "No space left on device" in answer.json()["detail"]
                assert answer.headers["x-fal-request-id"]
    finally:
        gateway.stop()
