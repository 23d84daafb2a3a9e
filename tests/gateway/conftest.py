"""Running gateways: one for all tests of a module, and others with settings of their own.

Starting and stopping one takes a fifth of a second, so that tests share it and each uses apps of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import emptied
from tests.gateway.platform import RunningGateway

StartGateway = Callable[..., RunningGateway]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of a module's gateways."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def gateway(redis_server: str, data_dir: Path) -> Iterator[RunningGateway]:
    """One gateway with the usual settings, on a server that holds nothing of another module's."""
    started = RunningGateway(emptied(redis_server), data_dir).start()
    yield started
    started.stop()


@pytest.fixture
def start_gateway(redis_server: str, data_dir: Path) -> Iterator[StartGateway]:
    """Starts gateways with the settings given; all share Redis and the data folder."""
    running: list[RunningGateway] = []

    def start(**settings: Any) -> RunningGateway:
        started = RunningGateway(redis_server, data_dir, **settings).start()
        running.append(started)
        return started

    yield start
    for started in running:
        started.stop()
