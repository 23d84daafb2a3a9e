"""The whole platform behind a bad network to Redis."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from keepwarm import redis_server
from tests.chaos.driver import ENVIRON, Chaos, Size, seed_of
from tests.chaos.link import LOST, LinkTrouble, proxy_thread
from tests.support.loop import run
from tests.support.platform import PlatformUnderTest


@pytest.mark.timeout(240)
def test_a_bad_network_costs_time_and_nothing_else(
    start_platform: Callable[..., PlatformUnderTest], capsys: pytest.CaptureFixture[str]
) -> None:
    """Replies lost after the write happened, resets, silence, 200 ms, single bytes and a slow line, between Redis and
    gateway, supervisors, scheduler and jobs alike."""
    seed = seed_of()
    folder = Path(tempfile.mkdtemp(prefix="kwt-"))
    server = redis_server.start(folder, "always")
    real = f"unix://{redis_server.socket_path(folder)}"
    try:
        with proxy_thread(real, folder) as (proxy, loop, url):
            platform = start_platform(environ=ENVIRON | {"KEEPWARM_REDIS_URL": url})
            chaos = Chaos(platform, folder, seed, redis_url=real)
            trouble = LinkTrouble(proxy, loop, chaos.draw, chaos.ledger)
            verdict = run(chaos.run(Size(requests=170, spread_s=38.0), trouble))
            with capsys.disabled():
                print(f"\nlink: {proxy.lost} replies lost, at rest after {chaos.rested_in:.0f} s", flush=True)
                print(verdict, flush=True)
            assert verdict.kept, "\n".join(verdict.why)
            assert verdict.acknowledged > verdict.attempted * 0.7
            assert proxy.lost >= len(LOST) / 2
            platform.stop()
    finally:
        server.terminate()
        server.wait(20)
    shutil.rmtree(folder)
