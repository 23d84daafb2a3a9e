"""Fixtures that every tier shares: one real Redis server for the session, emptied for each test."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from keepwarm import redis_server as embedded


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """URL of a real server with its append-only file on, on a short unix socket path."""
    folder = Path(tempfile.mkdtemp(prefix="kwt-"))
    process = embedded.start(folder, "everysec")
    try:
        yield f"unix://{embedded.socket_path(folder)}"
    finally:
        process.terminate()
        process.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """The same server with nothing in it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(redis_server.removeprefix("unix://"))
        connection.sendall(b"FLUSHALL\r\n")
        assert connection.recv(64) == b"+OK\r\n"
    return redis_server
