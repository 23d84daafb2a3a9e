"""The whole platform, shot at for most of a minute. The one test that may end differently each time it is run: its seed
is printed, and its ledger stays when it fails."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.driver import ARGUMENTS, ENVIRON, Chaos, Size, seed_of
from tests.support.loop import run
from tests.support.platform import PlatformUnderTest


@pytest.mark.timeout(300)
def test_the_queue_keeps_its_promises_under_fire(
    start_platform: Callable[..., PlatformUnderTest], capsys: pytest.CaptureFixture[str]
) -> None:
    """kill -9 and SIGSTOP of runners, supervisors, agent, schedulers, gateways and Redis, with cancels, hang-ups, lost
    answers and webhooks in between: every accepted request ends once, with a result of its own."""
    seed = seed_of()
    folder = Path(tempfile.mkdtemp(prefix="kwt-chaos-"))
    with capsys.disabled():
        print(f"\nchaos: seed {seed} (CHAOS_SEED={seed} makes the same plan), ledger in {folder}", flush=True)
    platform = start_platform(*ARGUMENTS, environ=ENVIRON)
    chaos = Chaos(platform, folder, seed)
    verdict = run(chaos.run(Size()))
    with capsys.disabled():
        print(f"chaos: {sum(chaos.faults.values())} faults {chaos.faults}", flush=True)
        print(f"chaos: {chaos.watch.looks} looks into Redis, at rest after {chaos.rested_in:.0f} s", flush=True)
        print(verdict, flush=True)
    assert verdict.kept, "\n".join(verdict.why)
    assert re.fullmatch(
        r"attempted \d+ acknowledged \d+ lost 0 duplicated-results 0 result-after-cancel 0 unexpected 0 "
        r"recovered \d+ seed \d+",
        str(verdict),
    )
    assert verdict.acknowledged > verdict.attempted * 0.8, "a platform that accepts nothing loses nothing"
    assert verdict.recovered, "nothing was hit"
    assert chaos.watch.looks > 50
    platform.stop()
