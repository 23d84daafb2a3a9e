"""What ``keepwarm doctor`` and ``keepwarm up`` say when what the operator gave cannot be used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpu_worker.runner_group import TASKS, limits_that_cannot_be_enforced
from keepwarm import doctor, redis_server
from tests.worker.test_limits import WITHOUT_GROUPS


def redis_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str) -> doctor.Finding:
    monkeypatch.setenv("KEEPWARM_REDIS_URL", url)
    report = doctor.examine(tmp_path, (), cpu_fallback=False, offer=None)
    return next(finding for finding in report.findings if finding.subject == "Redis")


def test_a_given_redis_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, redis_url: str) -> None:
    """Doctor called any address fine, and `keepwarm up` then failed on it."""
    found = redis_finding(monkeypatch, tmp_path, redis_url)
    assert found.verdict == "ok"
    assert ", version " in found.detail
    monkeypatch.setattr(redis_server, "MINIMUM_VERSION", (99, 0))
    old = redis_finding(monkeypatch, tmp_path, redis_url)
    assert old.verdict == "missing"
    assert "upgrade it to 99.0 or newer" in (old.fix or "")


@pytest.mark.parametrize(
    ("url", "says"), [("unix:///nowhere/redis.sock", "does not answer"), ("http://redis", "is no Redis address")]
)
def test_a_given_redis_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str, says: str
) -> None:
    found = redis_finding(monkeypatch, tmp_path, url)
    assert found.verdict == "missing"
    assert says in found.detail
    assert "correct the variable" in (found.fix or "")


def keepwarm(environ: dict[str, str], *arguments: str) -> str:
    """What a command that must fail says."""
    command = [sys.executable, "-m", "keepwarm", *arguments]
    done = subprocess.run(command, env=os.environ | environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_wrong_address_or_folder_is_one_line(tmp_path: Path) -> None:
    """Each was a traceback of thirty lines."""
    wrong = {"KEEPWARM_REDIS_URL": "http://redis"}
    for arguments in (("up", "--port", "0"), ("keys", "list")):
        assert "is no Redis address; write redis://" in keepwarm(wrong, *arguments, "--data", str(tmp_path))
    nowhere = keepwarm({}, "up", "--port", "0", "--data", "/proc/nowhere")
    assert nowhere.startswith("keepwarm up: the data folder /proc/nowhere cannot be used: ")
    assert nowhere.endswith("choose another with --data\n")


def limits(*in_front: str, **environ: str) -> str:
    """What ``keepwarm doctor`` says of the limits of runners."""
    command = [*in_front, sys.executable, "-m", "keepwarm", "doctor"]
    said = subprocess.run(command, env=os.environ | environ, capture_output=True, text=True, timeout=60, check=False)
    lines = said.stdout.splitlines()
    first = next(number for number, line in enumerate(lines) if line[2:].startswith("limits "))
    return "\n".join(line[2:] for line in lines[first : first + 2])


def test_it_is_said_whether_runners_can_be_limited_here() -> None:
    why = limits_that_cannot_be_enforced([TASKS])
    fine = limits(KEEPWARM_RUNNER_TASKS="300", KEEPWARM_RUNNER_MEMORY_GB="1.5")
    assert ("a runner may have 300 processes and threads and 1.5 GB of memory" in fine) == (not why)
    without = limits(*WITHOUT_GROUPS, KEEPWARM_RUNNER_MEMORY_GB="1.5")
    assert "nothing limits the processes and threads and the memory of a runner" in without
    assert "cannot be written" in without
    wrong = limits(KEEPWARM_RUNNER_TASKS="7")
    assert "KEEPWARM_RUNNER_TASKS=7 is not enough for a runner; write 32 or more" in wrong
