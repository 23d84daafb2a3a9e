"""Processes of two versions side by side on one Redis, as during an upgrade (F43)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from keepwarm import redis_server
from scheduler.store import Store
from scheduler.store.scripts import SCRIPTS
from tests.chaos.driver import ARGUMENTS, ENVIRON, Chaos, Size, seed_of
from tests.chaos.havoc import Fault
from tests.mutations.__main__ import copy_tree
from tests.mutations.guards import LUA
from tests.support.loop import run
from tests.support.platform import ROOT, PlatformUnderTest
from tests.support.waiting import wait_until

OTHER_HOST = "0-other"
#: What each version must have done for a script of its own to be in Redis, which is sent it with its first call.
VERBS = ("submit", "claim", "finish", "beat", "lead", "observe")
SHAS = """
import json
from scheduler.store.scripts import SCRIPTS
print(json.dumps({name: script.sha for name, script in SCRIPTS.items()}))
"""


@pytest.fixture(scope="module")
def other_tree() -> Iterator[Path]:
    """A copy of everything, in which no script is the same."""
    tree = copy_tree()
    for script in (tree / LUA.relative_to(ROOT)).glob("*.lua"):
        script.write_text(f"{script.read_text()}-- of another version\n")
    yield tree
    shutil.rmtree(tree)


@contextlib.contextmanager
def services_of(tree: Path, platform: PlatformUnderTest) -> Iterator[str]:
    """A gateway, a scheduler and a host of another tree beside the platform's own; the gateway's URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    environ = environ_of(tree) | {
        "KEEPWARM_REDIS_URL": f"unix://{redis_server.socket_path(platform.data)}",
        "KEEPWARM_DATA": str(platform.data),
        "KEEPWARM_OWNER": "tester",
        "KEEPWARM_HOST_ID": OTHER_HOST,
        "KEEPWARM_LISTEN_FD": str(listener.fileno()),
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(listener)
        for module in ("gpu_worker", "gateway", "scheduler"):
            log = stack.enter_context((platform.data / "logs" / f"other-{module}.log").open("wb"))
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", module],
                env=environ | ENVIRON,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(listener.fileno(),),
            )
            stack.callback(process.wait, 60)
            stack.callback(process.terminate)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def environ_of(tree: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{tree}{os.pathsep}{tree / 'sdk'}"}


def loaded(platform: PlatformUnderTest, shas: dict[str, str]) -> set[str]:
    """Which of VERBS have been called in that version."""

    async def ask() -> set[str]:
        store = await Store.connect(f"unix://{redis_server.socket_path(platform.data)}", platform.data)
        try:
            there = await store._redis.command("SCRIPT", "EXISTS", *(shas[verb] for verb in VERBS))
            return {verb for verb, is_there in zip(VERBS, there, strict=True) if is_there}
        finally:
            await store.close()

    return run(ask())


@pytest.mark.timeout(240)
def test_two_versions_side_by_side_lose_nothing(
    start_platform: Callable[..., PlatformUnderTest],
    other_tree: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Gateway, leading scheduler and worker of a request are of either version, and the leader changes sides in the
    middle: whoever took the other's script by its name would find other arguments."""
    named = subprocess.run(
        [sys.executable, "-P", "-c", SHAS], env=environ_of(other_tree), capture_output=True, text=True, check=True
    )
    theirs: dict[str, str] = json.loads(named.stdout)
    ours = {name: script.sha for name, script in SCRIPTS.items()}
    assert set(theirs) == set(ours)
    assert not set(theirs.values()) & set(ours.values())
    platform = start_platform(*ARGUMENTS, environ=ENVIRON)
    with services_of(other_tree, platform) as url, platform.client() as client:

        def hosts() -> set[str]:
            found = client.get("/api/v1/hosts").raise_for_status().json()["items"]
            return {host["host"] for host in found if host["alive"]}

        wait_until(lambda: len(hosts()) == 2, "both hosts")
        chaos = Chaos(replace(platform, url=url), tmp_path, seed_of())
        leaders = (Fault("scheduler"), Fault("scheduler", 4, 6), Fault("runner"), Fault("supervisor"))
        verdict = run(chaos.run(Size(requests=80, spread_s=12.0, pause_s=1.0, round=leaders)))
        with capsys.disabled():
            print(f"\nversions: {verdict}", flush=True)
        assert verdict.kept, "\n".join(verdict.why)
        path = chaos.paths[0]
        order = {"number": -1, "journal": str(tmp_path / "other-journal")}
        assert client.post(path, json=order).raise_for_status().json()["number"] == -1, "through the other gateway"
        assert loaded(platform, ours) == set(VERBS)
        assert loaded(platform, theirs) == set(VERBS)
    platform.stop()
