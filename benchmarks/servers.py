"""Servers as child processes for the benchmarks: a peer on a port, the embedded Redis, a whole platform with an app.

Owns starting, waiting until they answer and ending them with all their children. Knows nothing of what is measured.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from keepwarm import redis_server

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
PEERS = ROOT / "benchmarks" / "peers"
_START_SECONDS = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def peer_python(folder: Path) -> Path:
    """An interpreter with the packages of pyproject's `bench` group; the platform itself does not depend on them."""
    group = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["bench"]
    python = folder / "peers" / "bin" / "python"
    uv = str(BIN / "uv")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(folder / "peers")], check=True)
    subprocess.run([uv, "pip", "install", "--quiet", "--python", str(python), *group], check=True)
    return python


@contextmanager
def peer(python: Path, script: str, log: Path, *options: str) -> Iterator[str]:
    """Run one of peers/ and yield its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    with _process([str(python), str(PEERS / script), str(port), *options], log, os.environ) as process:
        _wait(lambda: _answers(url), script, process, log)
        yield url


@contextmanager
def embedded_redis(folder: Path, fsync: redis_server.Fsync) -> Iterator[str]:
    """Run the server that `keepwarm up` embeds, with the same options, and yield its URL."""
    process = redis_server.start(folder, fsync)
    try:
        yield f"unix://{redis_server.socket_path(folder)}"
    finally:
        process.terminate()
        process.wait(30)


class Platform:
    """A running `keepwarm up`."""

    def __init__(self, data: Path, url: str) -> None:
        self.data = data
        self.url = url
        self._key = (data / "admin.key").read_text().strip()

    def deploy(self, reference: str) -> str:
        """Deploy `file.py::Class`, open to everyone, and return the URL to POST to."""
        environ = {**_clean_environ(), "KEEPWARM_URL": self.url, "FAL_KEY": self._key, "HOME": str(self.data)}
        done = subprocess.run(
            [str(BIN / "fal"), "deploy", reference, "--auth", "public", "--json"],
            env=environ,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise SystemExit(f"fal deploy {reference} failed:\n{done.stdout}{done.stderr}")
        app = json.loads(done.stdout.strip().splitlines()[-1])["app_name"]
        return f"{self.url}/{app if '/' in app else f'bench/{app}'}"

    def queue_size(self, app_url: str) -> int:
        """Requests of the app that wait for a worker."""
        url = f"{self.url}/api/v1/queue{app_url.removeprefix(self.url)}"
        headers = {"Authorization": f"Key {self._key}"}
        size: int = httpx.get(url, headers=headers, trust_env=False, timeout=60).raise_for_status().json()["size"]
        return size

    def process(self, part: str) -> psutil.Process:
        """The platform's child with that in its command: ``-m gateway``, or ``-server`` for Redis."""
        pid = json.loads((self.data / "platform.json").read_text())["pid"]
        for process in psutil.Process(pid).children():
            if part in " ".join(process.cmdline()):
                return process
        raise LookupError(f"the platform on {self.data} runs no {part!r}")

    def workers(self, app_url: str) -> list[dict[str, Any]]:
        """The app's workers as the control API shows them."""
        items: list[dict[str, Any]] = self._control("GET", app_url, "workers").json()["items"]
        return items

    def scale(self, app_url: str, **scaling: int) -> None:
        """Change scaling settings of a deployed app."""
        self._control("PATCH", app_url, "scaling", scaling)

    def _control(self, method: str, app_url: str, what: str, body: Any = None) -> httpx.Response:
        url = f"{self.url}/api/v1/apps{app_url.removeprefix(self.url)}/{what}"
        headers = {"Authorization": f"Key {self._key}"}
        return httpx.request(method, url, json=body, headers=headers, trust_env=False).raise_for_status()


@contextmanager
def platform(
    data: Path, builds: Path, fsync: str, *options: str, settings: Mapping[str, str] | None = None
) -> Iterator[Platform]:
    """Run `keepwarm up` on `data`; environments are built in (and taken from) `builds`.

    Args:
        options: further arguments of the command.
        settings: further environment variables for it.
    """
    data.mkdir(parents=True)
    for name in ("environments", "uv-cache"):
        (builds / name).mkdir(parents=True, exist_ok=True)
        (data / name).symlink_to(builds / name)
    command = [
        *(str(BIN / "keepwarm"), "up", "--port", "0", "--data", str(data)),
        *("--owner", "bench", "--fsync", fsync, *options),
    ]
    log = data / "up.log"
    record = data / "platform.json"
    with _process(command, log, {**_clean_environ(), "HOME": str(data), **(settings or {})}) as process:
        _wait(record.exists, "keepwarm up", process, log)
        yield Platform(data, json.loads(record.read_text())["url"])


def _clean_environ() -> dict[str, str]:
    """Ours without what would point the commands at another platform, and without what slows workers down."""
    unwanted = ("KEEPWARM_", "FAL_", "PYTHONDONTWRITEBYTECODE")
    return {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}


@contextmanager
def _process(command: Sequence[str], log: Path, environ: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, env=dict(environ), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            pass
        _kill_group(process.pid)
        process.wait()


def _kill_group(group: int) -> None:
    """LitServe's worker processes outlive an interrupted parent; everything started here ends here."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _answers(url: str) -> bool:
    try:
        return httpx.post(url, json={"x": 1}, trust_env=False, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def _wait(condition: Callable[[], bool], what: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{what} did not start:\n{log.read_text(errors='replace')[-3000:]}")
        time.sleep(0.05)
