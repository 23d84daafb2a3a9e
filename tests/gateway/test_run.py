"""Direct calls: the app's answer unchanged, over one connection."""

from __future__ import annotations

from tests.gateway.platform import RunningGateway


def test_a_post_gets_the_apps_answer(gateway: RunningGateway) -> None:
    app = gateway.app()
    gateway.worker(app)
    with gateway.client() as client:
        answer = client.post(f"/{app}", json={"prompt": "rhino"})
    assert (answer.status_code, answer.json()) == (200, {"prompt": "rhino"})
    assert answer.headers["x-fal-request-id"]
