"""A running gateway for each test that asks for one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.platform import RunningGateway

StartGateway = Callable[..., RunningGateway]


@pytest.fixture
def start_gateway(redis_url: str, tmp_path: Path) -> Iterator[StartGateway]:
    """Starts gateways with the settings given; several share Redis and the data folder."""
    running: list[RunningGateway] = []

    def start(**settings: Any) -> RunningGateway:
        started = RunningGateway(redis_url, tmp_path, **settings).start()
        running.append(started)
        return started

    yield start
    for gateway in running:
        gateway.stop()


@pytest.fixture
def gateway(start_gateway: StartGateway) -> RunningGateway:
    """One gateway with the usual settings."""
    return start_gateway()
