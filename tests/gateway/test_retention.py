"""How long results are kept is the operator's choice, and the caller's by ``X-Fal-Store-IO``."""

from __future__ import annotations

import pytest

from scheduler.store import keys
from tests.gateway.conftest import StartGateway
from tests.gateway.platform import RunningGateway
from tests.support.waiting import wait_until

WISHES_NOTHING = {"x-fal-store-io": "0"}


def kept_for(gateway: RunningGateway, headers: dict[str, str], body: bytes = b"{}") -> float:
    """Hours for which a result is kept that is as large as its request."""
    app = gateway.app()
    gateway.worker(app)
    with gateway.owner_client() as client:
        made = client.post(f"/queue/{app}", content=body, headers=headers).json()
        wait_until(lambda: client.get(made["status_url"]).status_code == 200, "the request to be served")
    ms: int = gateway.call(gateway.store._redis.command("PTTL", keys.request(app, made["request_id"])))
    return round(ms / 3_600_000, 1)


@pytest.mark.parametrize(
    ("headers", "body", "hours"),
    [
        ({}, b"{}", 24),
        ({"x-fal-store-io": "1"}, bytes(300_000), 24),
        (WISHES_NOTHING, b"{}", 1),
        (WISHES_NOTHING, bytes(10 * 1024), 0.1),
        (WISHES_NOTHING, bytes(300_000), 0.1),
    ],
)
def test_a_caller_may_wish_for_less(
    gateway: RunningGateway, headers: dict[str, str], body: bytes, hours: float
) -> None:
    """Who sent X-Fal-Store-IO: 0 had everything kept for as long as everybody else."""
    assert kept_for(gateway, headers, body) == hours


def test_an_operator_may_keep_more(start_gateway: StartGateway) -> None:
    month = start_gateway(keep_results_hours=720)
    assert kept_for(month, {}) == 720
    assert kept_for(month, WISHES_NOTHING) == 1
