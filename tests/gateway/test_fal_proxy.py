"""The JavaScript client's proxy protocol: where it leads, and where it does not."""

from __future__ import annotations

import pytest

from tests.gateway.platform import RunningGateway


@pytest.mark.parametrize("path", ["/fal/proxy", "/fal/proxy/"])
def test_calls_reach_the_services_that_their_targets_name(gateway: RunningGateway, path: str) -> None:
    app = gateway.app(auth="private")
    worker = gateway.worker(app)
    with gateway.owner_client() as client:

        def ask(target: str, method: str = "POST", **options: object) -> dict[str, object]:
            headers = {"x-fal-target-url": target}
            answer = client.request(method, path, headers=headers, **options)  # type: ignore[arg-type]
            assert answer.headers["x-fal-request-id"]
            assert answer.headers.get("access-control-allow-origin", "*") == "*"
            found: dict[str, object] = answer.json()
            return found

        assert ask(f"https://fal.run/{app}/sub?a=1%262", json={"x": 1}) == {"x": 1}
        assert (worker.claims[0].path, worker.claims[0].query) == ("/sub", "a=1%262")
        assert not any(name.startswith("x-fal-target") for name, _ in worker.claims[0].headers)
        queued = ask(f"https://queue.fal.run/{app}", json={})
        assert str(queued["status_url"]).startswith(f"{gateway.url}/queue/{app}/requests/")
        status = f"https://queue.fal.run/{app}/requests/{queued['request_id']}/status?logs=1"
        assert ask(status, "GET")["request_id"] == queued["request_id"]
        named = ask("https://rest.fal.ai/storage/upload/initiate?storage_type=fal-cdn-v3", json={"file_name": "a"})
        assert str(named["upload_url"]).startswith(f"{gateway.url}/cdn/uploads/")


def test_it_adds_no_key(gateway: RunningGateway) -> None:
    app = gateway.app(auth="private")
    with gateway.client() as anybody:
        answer = anybody.post("/fal/proxy", headers={"x-fal-target-url": f"https://fal.run/{app}"}, json={})
    assert answer.status_code == 401


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (None, 400),
        ("", 400),
        ("fal.run/o/a", 400),
        ("http://fal.run/o/a", 400),
        ("https://[fal.run/o/a", 400),
        ("https://fal.run:x/o/a", 400),
        ("https://me:you@fal.run/o/a", 400),
        ("https://example.com/", 403),
        ("https://127.0.0.1/", 403),
        ("https://fal.run.example.com/o/a", 403),
        ("https://fal.run:8443/o/a", 403),
        ("https://fal.run", 404),
        ("https://fal.run/fal/proxy", 404),
        ("https://FAL.RUN:443/nobody/here", 404),
    ],
)
def test_what_it_does_not_lead_to(gateway: RunningGateway, target: str | None, status: int) -> None:
    headers = {} if target is None else {"x-fal-target-url": target}
    with gateway.owner_client() as client:
        answer = client.post("/fal/proxy", headers=headers, json={})
    assert answer.status_code == status
    assert answer.json()["detail"]


def test_browsers_may_ask_first(gateway: RunningGateway) -> None:
    names = "authorization,content-type,x-fal-target-url,x-fal-queue-priority"
    headers = {
        "origin": "https://page.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": names,
    }
    with gateway.client() as browser:
        answer = browser.options("/fal/proxy", headers=headers)
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-headers"] == names
    assert answer.headers["access-control-allow-origin"] == "*"
