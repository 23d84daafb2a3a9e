"""Deploys: what is checked before anything is built, and what the caller hears of the build."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fal._spec import EnvironmentSpec, HealthCheckSpec, ScalingSpec

from envbuilder.key import environment_key
from scheduler.store.records import EnvironmentRecord, EnvironmentState, HostRecord, RevisionState
from tests.gateway.platform import HELLO, HOST, OWNER, RunningGateway
from tests.support.waiting import wait_until

SOURCE = b"import fal\n"
SHA = hashlib.sha256(SOURCE).hexdigest()


@pytest.fixture
def client(gateway: RunningGateway) -> Iterator[httpx.Client]:
    gateway.call(gateway.store.hosts.report(HOST, ttl_s=600))
    with gateway.owner_client() as client:
        yield client


def deployment(**changes: Any) -> dict[str, Any]:
    """The body of a deploy whose file is uploaded already."""
    spec = replace(HELLO, **changes).to_json()
    return {"spec": spec, "files": [{"path": "hello.py", "sha256": SHA, "size": len(SOURCE)}]}


def upload(client: httpx.Client) -> None:
    assert client.put(f"/api/v1/bundles/objects/{SHA}", content=SOURCE).status_code == 204


def events(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in answer.iter_lines():
        if line.startswith("data: "):
            yield json.loads(line[6:])


def test_files_are_sent_once_and_checked(client: httpx.Client) -> None:
    fresh = b"print('fresh')\n"
    sha = hashlib.sha256(fresh).hexdigest()
    asked = {"hashes": [sha, sha]}
    assert client.post("/api/v1/bundles/missing", json=asked).json() == {"missing": [sha]}
    assert client.put(f"/api/v1/bundles/objects/{sha}", content=b"something else").status_code == 400
    assert client.put(f"/api/v1/bundles/objects/{sha}", content=fresh).status_code == 204
    assert client.post("/api/v1/bundles/missing", json=asked).json() == {"missing": []}
    for hashes in ("abc", [1], ["../../etc/passwd"], None):
        assert client.post("/api/v1/bundles/missing", json={"hashes": hashes}).status_code == 400
    assert client.put("/api/v1/bundles/objects/nonsense", content=b"").status_code == 400


def test_a_deploy_is_stored_and_its_environment_asked_for(gateway: RunningGateway, client: httpx.Client) -> None:
    upload(client)
    body = {**deployment(name="stored", scaling=ScalingSpec(keep_alive=5)), "message": "first", "reset_scale": True}
    answer = client.post("/api/v1/deployments", json=body)
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert (made["app"], made["state"]) == (f"{OWNER}/stored", "BUILDING")
    assert made["urls"] == {
        "sync": f"{gateway.url}/tester/stored",
        "queue": f"{gateway.url}/queue/tester/stored",
        "endpoints": {
            "/": {"sync": f"{gateway.url}/tester/stored", "queue": f"{gateway.url}/queue/tester/stored"},
            "/generate": {
                "sync": f"{gateway.url}/tester/stored/generate",
                "queue": f"{gateway.url}/queue/tester/stored/generate",
            },
        },
    }
    record = gateway.call(gateway.store.apps.revision(made["app"], made["revision"]))
    assert record is not None
    assert (record.state, record.message) == (RevisionState.BUILDING, "first")
    assert record.spec.scaling.keep_alive == 5
    assert record.files[0].path == "hello.py"
    waiting = gateway.call(gateway.store.environments.waiting(made["environment_key"]))
    assert [(each.app, each.ephemeral, each.reset_scale) for each in waiting if each.app == made["app"]] == [
        (made["app"], False, True)
    ]
    called = client.post("/tester/stored", content=b"{}")
    assert called.status_code == 404
    assert "still being built" in called.json()["detail"]


def test_a_run_gets_a_name_that_nobody_can_guess(gateway: RunningGateway, client: httpx.Client) -> None:
    upload(client)
    made = [client.post("/api/v1/deployments", json={**deployment(), "ephemeral": True}).json() for _ in range(2)]
    assert made[0]["app"] != made[1]["app"]
    assert len(made[0]["app"]) == len(f"{OWNER}/") + 36
    record = gateway.call(gateway.store.apps.revision(made[0]["app"], made[0]["revision"]))
    assert record is not None
    assert record.spec.auth == "public"
    asked_for = {**deployment(auth="private"), "ephemeral": True}
    private = client.post("/api/v1/deployments", json=asked_for).json()
    record = gateway.call(gateway.store.apps.revision(private["app"], private["revision"]))
    assert record is not None
    assert record.spec.auth == "private"


def test_a_run_that_reloads_keeps_its_name(gateway: RunningGateway, client: httpx.Client) -> None:
    """A revision for somebody else's app, a deployed one or one that is gone must not come into being."""
    upload(client)
    app, deployed = gateway.app(ephemeral=True), gateway.app()
    body = {**deployment(), "ephemeral": True}
    made = client.post("/api/v1/deployments", json={**body, "replaces": app})
    assert (made.status_code, made.json()["app"]) == (201, app)
    gone = f"{OWNER}/{'0' * 8}-1111-4222-8333-444455556666"
    refusals = {deployed: 404, gone: 404, f"{OWNER}/../x": 404, "somebody/else": 403, 7: 400}
    for given, status in refusals.items():
        assert client.post("/api/v1/deployments", json={**body, "replaces": given}).status_code == status, given
    assert client.post("/api/v1/deployments", json={**deployment(), "replaces": app}).status_code == 400


def test_a_machine_type_that_no_host_offers_is_refused_at_once(gateway: RunningGateway, client: httpx.Client) -> None:
    upload(client)
    answer = client.post("/api/v1/deployments", json=deployment(machine_types=("GPU-A100",)))
    assert answer.status_code == 409
    detail = answer.json()["detail"]
    assert detail.startswith("No host offers GPU-A100. This host offers CPU types XS, S, M, L, XL. Next:")
    either = client.post("/api/v1/deployments", json=deployment(machine_types=("GPU-A100", "M")))
    assert either.status_code == 201


def test_a_cpu_that_stands_in_for_a_gpu_is_said(gateway: RunningGateway, client: httpx.Client) -> None:
    upload(client)
    gateway.call(gateway.store.hosts.report(HostRecord("slow-host", ("S",), (), True, 2, 4096), ttl_s=600))
    try:
        made = client.post("/api/v1/deployments", json=deployment(name="stand-in", machine_types=("GPU-A100",))).json()
        gateway.call(gateway.store.apps.set_revision_state(made["app"], made["revision"], RevisionState.READY))
        path = f"/api/v1/deployments/{made['app']}/{made['revision']}/events"
        with client.stream("GET", path) as answer:
            final = list(events(answer))[-1]
        assert final["notes"]["cpu_fallback"] == "no host offers GPU-A100; a CPU stands in for it, which is slow"
    finally:
        gateway.call(gateway.store.hosts.report(HostRecord("slow-host", ("S",), (), False, 2, 4096), ttl_s=600))


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no class": ({"class_name": "not a name"}, "Class name"),
    "an entry file outside": ({"entry_file": "../hello.py"}, "entry_file"),
    "an entry file that is not there": ({"entry_file": "other.py"}, "not among"),
    "a name that is none": ({"name": "Hello World"}, "App name"),
    "no machine": ({"machine_types": ()}, "machine_type is empty."),
    "an unknown auth": ({"auth": "everybody"}, "auth"),
    "min above max": ({"scaling": ScalingSpec(min_concurrency=3, max_concurrency=2)}, "above max_concurrency"),
    "max of nothing": (
        {"scaling": ScalingSpec(max_concurrency=0)},
        "max_concurrency is 0; it must be a whole number, at least 1 and at most 10000.",
    ),
    "keep_alive below zero": ({"scaling": ScalingSpec(keep_alive=-1)}, "keep_alive is -1; it must be"),
    "no time to run": ({"scaling": ScalingSpec(request_timeout=0)}, "request_timeout is 0"),
    "a requirement that is none": (
        {"environment": replace(HELLO.environment, requirements=(("torch >>> 2",),))},
        "torch >>> 2",
    ),
    "a python of the past": ({"environment": replace(HELLO.environment, python_version="2.7")}, "python_version"),
    "an endpoint without a slash": ({"endpoints": (replace(HELLO.endpoints[0], path="run"),)}, "Endpoint path"),
    "a health check of nothing": ({"health_check": HealthCheckSpec("/nowhere")}, "'/nowhere' is no endpoint"),
    "a health check by another method": ({"health_check": HealthCheckSpec("/check", "GET")}, "endpoints answer POST"),
    "a health check without time": (
        {"health_check": HealthCheckSpec("/health", "GET", timeout_seconds=0)},
        "timeout_seconds is 0.0; it must be a number of seconds",
    ),
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_spec_that_cannot_work_gets_one_clear_message(client: httpx.Client, what: str) -> None:
    changes, said = FAULTS[what]
    upload(client)
    answer = client.post("/api/v1/deployments", json=deployment(**changes))
    assert (answer.status_code, answer.json()["error_type"]) == (400, "bad_request")
    assert said in answer.json()["detail"]
    assert "\n" not in answer.json()["detail"]


def test_types_are_checked_with_the_place_of_the_fault(client: httpx.Client) -> None:
    body = deployment()
    body["spec"]["scaling"]["max_concurrency"] = "many"
    answer = client.post("/api/v1/deployments", json=body)
    assert answer.status_code == 400
    assert "scaling.max_concurrency: Input should be a valid integer" in answer.json()["detail"]
    for wrong in (b"", b"{", b"[]", b'{"spec": 1}', b"\xff"):
        assert client.post("/api/v1/deployments", content=wrong).status_code == 400
    assert client.post("/api/v1/deployments", json={**deployment(), "ephemeral": "yes"}).status_code == 400
    assert client.post("/api/v1/deployments", json={**deployment(), "message": 5}).status_code == 400


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../up.py", "a/../../b.py", "a//b.py", "a\\b.py", "./a.py", "", "a\x00b", "x" * 2000]
)
def test_paths_stay_inside_the_bundle(client: httpx.Client, path: str) -> None:
    upload(client)
    body = deployment()
    body["files"].append({"path": path, "sha256": SHA, "size": 1})
    assert client.post("/api/v1/deployments", json=body).status_code == 400


def test_files_are_listed_once_and_were_sent(client: httpx.Client) -> None:
    upload(client)
    twice = deployment()
    twice["files"].append(twice["files"][0])
    assert client.post("/api/v1/deployments", json=twice).status_code == 400
    both = deployment()
    both["files"].append({"path": "hello.py/inside", "sha256": SHA, "size": 1})
    assert client.post("/api/v1/deployments", json=both).status_code == 400
    never = deployment()
    never["files"].append({"path": "never.py", "sha256": "1" * 64, "size": 1})
    answer = client.post("/api/v1/deployments", json=never)
    assert (answer.status_code, "never.py" in answer.json()["detail"]) == (409, True)


@pytest.mark.parametrize("ending", [RevisionState.READY, RevisionState.FAILED])
def test_the_build_is_told_from_the_beginning_to_its_end(
    gateway: RunningGateway, client: httpx.Client, ending: RevisionState
) -> None:
    upload(client)
    environment = replace(HELLO.environment, requirements=((f"told-{ending.value.lower()}",),))
    made = client.post("/api/v1/deployments", json=deployment(name="told", environment=environment)).json()
    key, store = made["environment_key"], gateway.store
    gateway.call(store.environments.append_log(key, "Resolved 3 packages"))
    path = f"/api/v1/deployments/{made['app']}/{made['revision']}/events"
    with client.stream("GET", path) as answer:
        told = events(answer)
        first = next(told)
        assert (first["type"], first["message"]) == ("log", "Resolved 3 packages")
        gateway.call(store.environments.append_log(key, "Installed"))
        assert next(told)["message"] == "Installed"
        gateway.call(store.environments.put(EnvironmentRecord(key, EnvironmentState.READY, notes={"dated": "yes"})))
        gateway.call(store.environments.append_log(key, "The last line"))
        error = "no such package" if ending is RevisionState.FAILED else None
        gateway.call(store.apps.set_revision_state(made["app"], made["revision"], ending, error))
        rest = list(told)
    assert [event["type"] for event in rest] == ["log", "state"]
    assert (rest[-1]["state"], rest[-1]["error"]) == (ending.value, error)
    assert rest[-1]["urls"]["endpoints"]["/generate"]["sync"] == f"{gateway.url}/tester/told/generate"
    assert rest[-1]["notes"] == {"dated": "yes"}
    assert client.get(f"/api/v1/deployments/{made['app']}/unknown/events").status_code == 404


def test_a_build_that_nobody_follows_any_more_costs_nothing(gateway: RunningGateway, client: httpx.Client) -> None:
    upload(client)
    made = client.post("/api/v1/deployments", json=deployment(name="unfollowed")).json()
    before = gateway.gateway.limits.waiting
    with client.stream("GET", f"/api/v1/deployments/{made['app']}/{made['revision']}/events"):
        wait_until(lambda: gateway.gateway.limits.waiting == before + 1, "the stream is counted")
    wait_until(lambda: gateway.gateway.limits.waiting == before, "the stream has ended")


def test_a_large_source_file_goes_to_the_disk_as_it_comes(redis_server: str, tmp_path: Path) -> None:
    """A file that comes with an app was held to the limit of request bodies, and was in memory as a whole: weights of
    100 MB could not be deployed. Nothing is kept of what is too large, or not what its name says."""
    gateway = RunningGateway(redis_server, tmp_path, max_body_bytes=100_000, max_object_bytes=5_000_000).start()
    try:
        content = bytes(range(256)) * 15_000
        name = hashlib.sha256(content).hexdigest()
        other = hashlib.sha256(b"other").hexdigest()

        def pieces(data: bytes) -> Iterator[bytes]:  # without a declared length
            for start in range(0, len(data), 100_000):
                yield data[start : start + 100_000]

        with gateway.owner_client() as client:
            for body in (content, pieces(content)):
                assert client.put(f"/api/v1/bundles/objects/{name}", content=body).status_code == 204
            assert client.put(f"/api/v1/bundles/objects/{other}", content=pieces(content)).status_code == 400
            for body in (bytes(5_000_001), pieces(bytes(6_000_000))):
                refused = client.put(f"/api/v1/bundles/objects/{other}", content=body)
                assert refused.status_code == 413
                assert "5000000 bytes" in refused.json()["detail"]
        folder = tmp_path / "bundles" / "objects"
        assert [path.name for path in folder.iterdir()] == [name]
        assert (folder / name).read_bytes() == content
    finally:
        gateway.stop()


def test_no_cache_builds_an_environment_of_its_own(gateway: RunningGateway, client: httpx.Client) -> None:
    """``fal deploy --no-cache`` was refused. It gets another environment beside the one that workers run in; deploys
    after it stay with the new one, and changed requirements leave it."""
    upload(client)

    def deploy(**body: Any) -> str:
        made = client.post("/api/v1/deployments", json={**deployment(name="anew"), **body})
        assert made.status_code == 201, made.text
        revision = made.json()["revision"]
        gateway.call(
            gateway.store.apps.point(
                f"{OWNER}/anew", revision, auth="public", scaling=ScalingSpec(), ephemeral=False, session_ttl_s=None
            )
        )
        key: str = made.json()["environment_key"]
        return key

    first, again = deploy(), deploy()
    fresh = deploy(no_cache=True)
    after = deploy()
    changed = deploy(**deployment(name="anew", environment=EnvironmentSpec("3.11", (("numpy",),))))
    assert first == again != fresh == after
    assert changed not in (first, fresh)
    assert changed == environment_key(EnvironmentSpec("3.11", (("numpy",),)))


def test_an_app_of_a_named_environment_carries_its_mark(gateway: RunningGateway, client: httpx.Client) -> None:
    upload(client)
    unknown = client.post("/api/v1/deployments", json=deployment(env="staging"))
    assert unknown.status_code == 404
    assert "there is main" in unknown.json()["detail"]
    client.post("/api/v1/environments", json={"name": "staging"})
    client.post("/api/v1/secrets", params={"env": "staging"}, json={"values": {"ONE": "1"}})
    for name in ("painter", "painter--staging"):
        made = client.post("/api/v1/deployments", json=deployment(name=name, env="staging", secrets=["ONE", "TWO"]))
        assert made.status_code == 201
        assert (made.json()["app"], made.json()["missing_secrets"]) == (f"{OWNER}/painter--staging", ["TWO"])
    of_main = client.post("/api/v1/deployments", json=deployment(name="painter--staging"))
    assert of_main.status_code == 400
    assert "--env staging" in of_main.json()["detail"]
    long = client.post("/api/v1/deployments", json=deployment(name="x" * 60, env="staging"))
    assert long.status_code == 400


def test_an_environment_that_a_secret_opened_the_way_to_is_its_owners(
    gateway: RunningGateway, client: httpx.Client
) -> None:
    """Environments are shared by their inputs: whoever wrote another owner's requirements got what that one's token
    had fetched."""
    upload(client)
    environment = replace(HELLO.environment, requirements=(("--extra-index-url=https://${TOKEN}@host/simple", "kit"),))
    made = client.post("/api/v1/deployments", json=deployment(name="guarded", environment=environment)).json()
    assert made["environment_key"] == environment_key(replace(environment, built_anew=f"{OWNER}/main"))
    again = client.post("/api/v1/deployments", json=deployment(name="guarded", environment=environment)).json()
    assert again["environment_key"] == made["environment_key"]
    plain = client.post("/api/v1/deployments", json=deployment(name="plain")).json()
    assert plain["environment_key"] == environment_key(HELLO.environment)


def test_a_check_tells_what_would_change_and_does_nothing(gateway: RunningGateway, client: httpx.Client) -> None:
    app = gateway.app("checked", auth="shared")
    gateway.call(gateway.store.apps.set_scaling(app, ScalingSpec(keep_alive=9)))
    body = deployment(name="checked", scaling=ScalingSpec(keep_alive=5), machine_types=("M",), secrets=["NEVER_SET"])
    answer = client.post("/api/v1/deployments/check", json=body).json()
    rows = {row["setting"]: row for row in answer["settings"]}
    assert rows["machine_types"] == {"setting": "machine_types", "now": ["S"], "after": ["M"]}
    assert rows["keep_alive"] == {"setting": "keep_alive", "now": 9, "after": 9, "ignored": 5}
    assert (rows["auth"]["now"], rows["auth"]["after"]) == ("shared", "shared")
    assert rows["file hello.py"]["after"] == "changed"
    assert (answer["missing_secrets"], answer["environment_is_built"]) == (["NEVER_SET"], False)
    reset = client.post("/api/v1/deployments/check", json={**body, "reset_scale": True}).json()["settings"]
    assert {"setting": "keep_alive", "now": 9, "after": 5} in reset
    fresh = client.post("/api/v1/deployments/check", json=deployment(name="never-was")).json()
    assert fresh["revision"] is None
    assert {"setting": "auth", "now": None, "after": "private"} in fresh["settings"]
    gpu = client.post("/api/v1/deployments/check", json=deployment(machine_types=("GPU-A100",)))
    assert gpu.status_code == 409
    assert len(gateway.call(gateway.store.apps.revisions(app))) == 1
    assert gateway.call(gateway.store.apps.revisions(f"{OWNER}/never-was")) == []


def test_the_strategy_of_a_deploy_is_kept_for_the_time_when_the_alias_moves(
    gateway: RunningGateway, client: httpx.Client
) -> None:
    upload(client)
    made = client.post("/api/v1/deployments", json={**deployment(name="recreated"), "strategy": "recreate"}).json()
    waiting = gateway.call(gateway.store.environments.waiting(made["environment_key"]))
    assert [each.recreate for each in waiting if each.app == made["app"]] == [True]
    assert client.post("/api/v1/deployments", json={**deployment(), "strategy": "sudden"}).status_code == 400
