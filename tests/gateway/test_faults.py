"""What callers see while memory, disk or file descriptors are used up (F22, F26, F30), and that it passes."""

from __future__ import annotations

import contextlib
import resource
import socket
from pathlib import Path

import httpx
import psutil
import pytest

from scheduler.store.records import Claimed, Outcome
from tests.gateway.platform import JSON, RunningGateway, StubWorker
from tests.gateway.test_process import healthy, listener, own_platform, start
from tests.support.disks import small_disk
from tests.support.waiting import wait_until

__all__ = ["listener"]


async def when_released(worker: StubWorker, claim: Claimed) -> Outcome:
    """Works until the test says that it is done."""
    await worker.released.wait()
    return Outcome(200, JSON, b'{"ok":true}')


def test_full_memory_refuses_new_requests_and_hands_out_the_results_of_old_ones(tmp_path: Path) -> None:
    """F22: Redis had no memory left, and the result of an hour of GPU work was refused like any new request."""
    with own_platform(tmp_path) as (gateway, _server), gateway.client() as client:
        app = gateway.app()
        worker = gateway.worker(app, when_released)
        accepted = client.post(f"/queue/{app}", json={}).raise_for_status().json()["request_id"]
        wait_until(lambda: worker.claims, "the request to run")
        gateway.call(gateway.store._redis.command("CONFIG", "SET", "maxmemory", "1"))
        for path in (f"/queue/{app}", f"/{app}"):
            refused = client.post(path, json={})
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5"), path
            assert refused.json()["error_type"] == refused.headers["x-fal-error-type"] == "internal_error"
            assert refused.headers["x-fal-request-id"]
        gateway.release(worker)
        result = f"/queue/{app}/requests/{accepted}"
        wait_until(lambda: client.get(f"{result}/status").status_code == 200, "the result in full memory")
        assert client.get(result).json() == {"ok": True}
        gateway.call(gateway.store._redis.command("CONFIG", "SET", "maxmemory", "0"))
        assert client.post(f"/{app}", json={}).json() == {"ok": True}


@pytest.mark.debian
def test_a_full_disk_takes_no_large_body_and_leaves_no_half_of_one(redis_server: str) -> None:
    """F26: small requests, which need no file, go on; large ones are refused with what is wrong, then taken again."""
    with small_disk(80) as disk:
        gateway = RunningGateway(redis_server, disk.path).start()
        try:
            app = gateway.app()
            gateway.worker(app)
            ballast = disk.fill(leave=100_000)
            before = {path for path in disk.path.rglob("*") if path.is_file()}
            large = bytes(400_000)
            with gateway.client() as client:
                for prefix in ("", "/queue"):
                    refused = client.post(f"{prefix}/{app}", content=large)
                    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5"), prefix
                    assert "disk is full" in refused.json()["detail"]
                assert {path for path in disk.path.rglob("*") if path.is_file()} == before, "no half files"
                assert client.post(f"/{app}", content=b"small").content == b"small"
                ballast.unlink()
                assert client.post(f"/{app}", content=large).content == large
        finally:
            gateway.stop()


@pytest.mark.debian
def test_a_read_only_disk_takes_nothing_large_and_serves_on(redis_server: str) -> None:
    """F27: an ext4 that found an error goes read-only. What needs a file is refused and told why, the rest goes on."""
    with small_disk(80) as disk:
        gateway = RunningGateway(redis_server, disk.path).start()
        try:
            app = gateway.app()
            gateway.worker(app)
            with gateway.owner_client() as client:
                upload = "/rest/storage/upload/initiate?storage_type=fal-cdn-v3"
                ask = {"file_name": "a.bin", "content_type": "application/octet-stream"}
                before_the_fault = client.post(upload, json=ask).json()["upload_url"]
                with disk.read_only():
                    large = (("POST", f"/{app}"), ("POST", f"/queue/{app}"), ("PUT", before_the_fault))
                    for method, url in large:
                        refused = client.request(method, url, content=bytes(400_000))
                        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5"), refused.text
                        assert "Read-only file system" in refused.json()["detail"]
                    assert client.post(f"/{app}", content=b"small").content == b"small"
                assert client.post(f"/{app}", content=bytes(400_000)).content == bytes(400_000)
                assert client.put(before_the_fault, content=bytes(1_000)).status_code == 200
        finally:
            gateway.stop()


def test_a_gateway_without_file_descriptors_serves_whom_it_has_and_recovers(
    redis_server: str, tmp_path: Path, listener: socket.socket
) -> None:
    """F30: a crowd of idle connections took every descriptor that the gateway may have."""
    process = start(redis_server, tmp_path, listener)
    try:
        wait_until(lambda: healthy(process.url), "the gateway to be healthy")
        with httpx.Client(base_url=process.url, trust_env=False, timeout=10) as early, contextlib.ExitStack() as crowd:
            assert early.get("/health").status_code == 200
            gateway = psutil.Process(process.process.pid)
            most = gateway.num_fds() + 20
            gateway.rlimit(resource.RLIMIT_NOFILE, (most, most))
            address = listener.getsockname()
            for _ in range(80):
                with contextlib.suppress(OSError):
                    crowd.enter_context(socket.create_connection(address, 5))
            wait_until(lambda: gateway.num_fds() >= most - 2, "every descriptor to be in use")
            assert early.get("/health").status_code == 200
            crowd.close()
            wait_until(lambda: healthy(process.url), "new callers to be served again")
        assert process.process.poll() is None
    finally:
        assert process.stop() == 0
