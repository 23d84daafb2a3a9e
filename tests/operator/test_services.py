"""The service commands that containers use, one by one, against a Redis given by URL: no `keepwarm up` involved."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support.platform import BIN, command_environ
from tests.support.waiting import wait_until

NAMES = ("gateway", "scheduler", "jobs", "agent")


@pytest.fixture
def environ(tmp_path: Path, redis_url: str) -> dict[str, str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return command_environ(
        tmp_path,
        {
            "KEEPWARM_REDIS_URL": redis_url,
            "KEEPWARM_DATA": str(tmp_path / "data"),
            "KEEPWARM_OWNER": "tester",
            "KEEPWARM_BIND_PORT": str(port),
        },
    )


@pytest.fixture
def services(environ: dict[str, str], tmp_path: Path) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    started = {
        name: subprocess.Popen(
            [str(BIN / "keepwarm"), "service", name], env=environ, cwd=tmp_path, stdin=subprocess.DEVNULL
        )
        for name in NAMES
    }
    yield started
    for process in started.values():
        process.kill()
        process.wait()


def healthy(environ: dict[str, str], name: str) -> bool:
    done = subprocess.run([str(BIN / "keepwarm"), "health", name], env=environ, capture_output=True, check=False)
    return done.returncode == 0


def test_each_service_runs_by_itself(environ: dict[str, str], services: dict[str, subprocess.Popen[bytes]]) -> None:
    """As in docker-compose.yml: four commands and a Redis make a platform; keys come from the operator's command."""
    for name in NAMES:
        wait_until(partial(healthy, environ, name), f"{name} to be healthy", timeout=60)
    made = subprocess.run(
        [str(BIN / "keepwarm"), "keys", "create"], env=environ, capture_output=True, text=True, check=True
    )
    url = f"http://127.0.0.1:{environ['KEEPWARM_BIND_PORT']}"
    listed = subprocess.run(
        [str(BIN / "fal"), "apps", "list", "--json"],
        env=environ | {"KEEPWARM_URL": url, "FAL_KEY": made.stdout.strip()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert listed.returncode == 0, listed.stderr
    for name, process in services.items():
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, name
    assert not healthy(environ, "gateway")


def test_a_service_without_a_redis_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [str(BIN / "keepwarm"), "service", "scheduler"],
        env=command_environ(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "KEEPWARM_REDIS_URL is not set" in done.stderr


def test_a_platform_on_another_folder_says_how_a_shell_finds_it(tmp_path: Path) -> None:
    """`keepwarm up --data X` told its user to type `fal run`, which looks for a platform on ~/.keepwarm."""
    data = tmp_path / "other data"
    process = subprocess.Popen(
        [str(BIN / "keepwarm"), "up", "--port", "0", "--data", str(data)],
        env=command_environ(tmp_path),
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout as output:
        line = next(line for line in output if line.split()[:1] == ["next"])
        shown = line.split(maxsplit=1)[1].split("   (")[0]
        environ = command_environ(tmp_path) | {"PATH": f"{BIN}:/usr/bin:/bin"}
        seen = subprocess.run(
            ["sh", "-c", f"{shown}; env"], env=environ, capture_output=True, text=True, check=True, timeout=60
        ).stdout
        process.send_signal(signal.SIGINT)
        process.wait(60)
    assert "KEEPWARM_URL=http://127.0.0.1:" in seen
    assert "FAL_KEY=" in seen
