"""Fixtures that every tier shares: one real Redis server for the session, emptied for each test."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from keepwarm import redis_server as embedded
from tests.support.platform import PlatformUnderTest
from tests.support.s3_server import s3_server


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


def emptied(redis_server: str) -> str:
    """The same server with nothing in it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(redis_server.removeprefix("unix://"))
        connection.sendall(b"FLUSHALL\r\n")
        assert connection.recv(64) == b"+OK\r\n"
    return redis_server


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """An empty server."""
    return emptied(redis_server)


def pytest_configure() -> None:
    """Before pytest-xdist starts its workers, which inherit the variable: all build into one folder.

    They inherit an ignored SIGINT as well, as a shell's background job has it, and programs that tests interrupt would.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if "KEEPWARM_TEST_BUILDS" not in os.environ:
        folder = tempfile.mkdtemp(prefix="kwt-builds-")
        os.environ["KEEPWARM_TEST_BUILDS"] = folder
        atexit.register(shutil.rmtree, folder, ignore_errors=True)


#: Files that take more than a minute for few tests, the longest first. Two that shoot at processes are not neighbours.
LONGEST = (
    "runner/test_pythons.py",
    "mutations/test_guards.py",
    "chaos/test_chaos.py",
    "system/test_toolkit.py",
    "examples/test_apps.py",
    "chaos/test_link.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that none is begun when the others are done."""
    folder = Path(__file__).parent
    assert all((folder / name).exists() for name in LONGEST)
    place = {folder / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture(scope="session")
def shared_builds() -> Path:
    """Environments and uv's cache, built once for all platforms of a test run (and of later ones, if
    KEEPWARM_TEST_BUILDS names a folder to keep)."""
    folder = Path(os.environ["KEEPWARM_TEST_BUILDS"])
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("environments", "uv-cache"):
        (folder / name).mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def start_platform(shared_builds: Path) -> Iterator[Callable[..., PlatformUnderTest]]:
    """Start platforms that share what they build; each is stopped at the end of the session, if not before."""
    started: list[PlatformUnderTest] = []

    def start(*arguments: str, environ: dict[str, str] | None = None) -> PlatformUnderTest:
        data = Path(tempfile.mkdtemp(prefix="kwt-"))
        for name in ("environments", "uv-cache"):
            (data / name).symlink_to(shared_builds / name)
        platform = PlatformUnderTest(data, arguments, environ or {})
        started.append(platform)
        return platform.start()

    yield start
    failures = []
    for platform in started:
        try:
            platform.stop()
        except AssertionError as error:
            failures.append(str(error))
        shutil.rmtree(platform.data, ignore_errors=True)
    assert not failures, failures


@pytest.fixture(scope="session")
def platform(start_platform: Callable[..., PlatformUnderTest]) -> PlatformUnderTest:
    """One platform for every test that harms nobody."""
    return start_platform("--cpu-fallback", environ={"KEEPWARM_ALLOW_PRIVATE_WEBHOOKS": "1"})


@pytest.fixture(scope="session")
def s3() -> Iterator[dict[str, str]]:
    """Variables that name a bucket on a real S3 server."""
    with s3_server() as variables:
        yield variables
