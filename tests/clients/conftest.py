"""A platform with HTTPS, and the official Python client told of it by nothing but what ``keepwarm env`` prints."""

from __future__ import annotations

import importlib
import os
import subprocess
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest

from tests.support.platform import BIN, PlatformUnderTest, command_environ
from tests.support.waiting import wait_until

APPS = "tests/clients/apps.py"


@pytest.fixture(scope="session")
def secure(start_platform: Callable[..., PlatformUnderTest]) -> PlatformUnderTest:
    """A platform that serves HTTPS, with the private apps of ``apps.py``."""
    platform = start_platform("--tls", environ={"KEEPWARM_ALLOW_PRIVATE_WEBHOOKS": "1"})
    for name in ("Called", "Live", "Fragile", "Single"):
        platform.deploy(APPS, name, auth="private")
    return platform


@pytest.fixture(scope="session")
def exports(secure: PlatformUnderTest) -> dict[str, str]:
    """What ``keepwarm env`` prints."""
    return secure.env()


@pytest.fixture(scope="session")
def proxy(secure: PlatformUnderTest) -> Iterator[str]:
    """The address of a running ``keepwarm proxy``."""
    said = secure.data / "logs" / "proxy.log"
    with said.open("wb") as log:
        process = subprocess.Popen(
            [str(BIN / "keepwarm"), "proxy", "--port", "0", "--data", str(secure.data)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=command_environ(secure.data),
        )
    try:
        yield wait_until(lambda: said.read_text().partition("HTTPS_PROXY=")[2].strip(), "keepwarm proxy to listen")
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def fal_client(exports: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The official client as it is on PyPI, in a process with those variables."""
    for name in [name for name in os.environ if name.startswith(("FAL_", "KEEPWARM_"))]:
        monkeypatch.delenv(name)
    for name, value in exports.items():
        monkeypatch.setenv(name, value)
    module = importlib.import_module("fal_client")
    address = importlib.import_module("fal_client.client").RUN_URL_FORMAT
    assert address == f"https://{exports['FAL_RUN_HOST']}/", f"fal_client was imported before, for {address}"
    yield module
    # The module's own client keeps its connections, and the key that it was made with, for good.
    made = vars(module.sync_client)
    if "_client" in made:
        made["_client"].close()
    for name in ("_client", "_auth", "_token_manager"):
        made.pop(name, None)


@pytest.fixture
def proxied(fal_client: ModuleType, proxy: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The client with HTTPS_PROXY set as well, for what goes to rest.fal.ai and v3.fal.media."""
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    return fal_client
