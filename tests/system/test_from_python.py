"""A platform used from Python: `fal.apps`, `fal.api.SyncServerlessClient`, `fal.sync_dir`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import fal
import httpx
import pytest
from fal import apps
from fal._problem import Problem
from fal.api import SyncServerlessClient

from tests.support.platform import ROOT, PlatformUnderTest
from tests.support.waiting import wait_until

APPS = str(ROOT / "tests/system/apps/spoken_to.py")


@pytest.fixture
def here(platform: PlatformUnderTest, monkeypatch: pytest.MonkeyPatch) -> Iterator[PlatformUnderTest]:
    """This process as a user's program on the platform's machine."""
    for name, value in platform.shell().items():
        monkeypatch.setenv(name, value)
    yield platform
    apps._connection_of.cache_clear()


@pytest.fixture(scope="module")
def spoken_to(platform: PlatformUnderTest) -> str:
    """The id of a private app."""
    platform.deploy(APPS, "SpokenTo", auth="private")
    return "tester/spoken-to"


def test_run_waits_and_tells_what_the_app_refused(here: PlatformUnderTest, spoken_to: str) -> None:
    assert apps.run(spoken_to, {"text": "hello"}) == {"said": "hello"}
    with pytest.raises(httpx.HTTPStatusError, match="422: text: not that word") as refused:
        apps.run(spoken_to, {"text": "x"}, path="/refuse")
    assert refused.value.response.status_code == 422

    def unknown() -> str:
        with pytest.raises(httpx.HTTPStatusError, match=r'404.*no app "tester/spoken-two"') as error:
            apps.run("tester/spoken-two", {})
        return str(error.value)

    wait_until(lambda: 'Did you mean "tester/spoken-to"' in unknown(), "the gateway to list the new app")


@pytest.mark.parametrize("app_id", ["tester/spoken-to", "tester-spoken-to", "spoken-to"])
def test_ids_with_a_slash_with_a_hyphen_and_without_an_owner(
    here: PlatformUnderTest, spoken_to: str, app_id: str
) -> None:
    handle = apps.submit(app_id, {"text": app_id})
    assert handle.app_id == spoken_to
    assert apps.RequestHandle(f"{spoken_to}/letters/stream", handle.request_id).get() == {"said": app_id}


def test_a_request_tells_its_statuses_in_order(here: PlatformUnderTest, spoken_to: str) -> None:
    holding = apps.submit(spoken_to, {"seconds": 1.5})
    handle = apps.submit(spoken_to, {"text": "later", "seconds": 0.3})
    behind = apps.submit(spoken_to, {"text": "never"})
    wait_until(lambda: isinstance(holding.status(), apps.InProgress), "the first to run")
    assert behind.status() == apps.Queued(position=1)
    behind.cancel()
    with pytest.raises(httpx.HTTPStatusError, match="400"):
        handle.fetch_result()
    seen = list(handle.iter_events(logs=True, _refresh_rate=0.02))
    kinds = list(dict.fromkeys(type(status).__name__ for status in seen))
    assert kinds == ["Queued", "InProgress", "Completed"]
    last = seen[-1]
    assert isinstance(last, apps.Completed)
    assert any("asked to say later" in line["message"] for line in last.logs or ())
    assert (handle.get(), last.error) == ({"said": "later"}, None)
    given_up = behind.status()
    assert isinstance(given_up, apps.Completed)
    assert given_up.error_type == "client_cancelled"


def test_stream_yields_lines_and_says_a_refusal(here: PlatformUnderTest, spoken_to: str) -> None:
    assert list(apps.stream(spoken_to, {"text": "ab"}, path="/letters/stream")) == ["data: a", "data: b"]
    assert (
        b"".join(part for part in apps.stream(spoken_to, {"text": "c"}) if isinstance(part, bytes)) == b'{"said":"c"}'
    )
    with pytest.raises(httpx.HTTPStatusError, match="422: text"):
        list(apps.stream(spoken_to, {"text": []}))


def test_calls_over_one_websocket(here: PlatformUnderTest, spoken_to: str) -> None:
    with apps.ws(spoken_to) as calls:
        assert calls.run({"text": "a"}) == b'{"said":"a"}'
        calls.send({"text": "b"})
        assert b"".join(part for part in calls.stream() if isinstance(part, bytes)) == b'{"said":"b"}'
    with pytest.raises(Problem, match="no app"), apps.ws("tester/nothing-here"):
        pass


def test_a_realtime_session(here: PlatformUnderTest, spoken_to: str) -> None:
    with apps._connect(spoken_to) as session:
        assert session.run({"text": "a"}) == {"said": "A"}
        session.send({"text": ""})
        with pytest.raises(ValueError, match="INTERNAL_ERROR"):
            session.recv()


def test_an_app_calls_another_one(here: PlatformUnderTest, spoken_to: str) -> None:
    """Once an app called the platform at the address in its caller's Host header, with its key: anybody could have
    read the key on a server of his own."""
    url = here.deploy(APPS, "Asking")
    for headers in ({}, {"host": "127.0.0.1:9"}):
        answer = httpx.post(url, json={"text": "well"}, headers=headers, trust_env=False, timeout=60)
        assert (answer.status_code, answer.json()) == (200, {"heard": {"said": "well"}}), answer.text


def test_an_apps_key_is_its_own_and_goes_with_it(here: PlatformUnderTest) -> None:
    url = here.deploy(APPS, "Asking", "--app-name", "going")

    def key_id() -> str:
        return str(httpx.post(f"{url}/whose", trust_env=False, timeout=60).json()["key_id"])

    client = SyncServerlessClient()
    assert key_id() == "tester/going"
    assert [key.scope for key in client.keys.list() if key.key_id == "tester/going"] == ["API"]
    client.keys.revoke("tester/going")
    client.secrets.set("FAL_KEY", here.key)
    client.apps.rollout("going")
    wait_until(lambda: key_id() == here.key.partition(":")[0], "runners with the key that its owner gives")
    client.secrets.unset("FAL_KEY")
    client.apps.rollout("going")
    wait_until(lambda: key_id() == "tester/going", "runners with a new key of the app's own")
    here.fal("apps", "delete", "going", "--yes")
    assert "tester/going" not in [key.key_id for key in client.keys.list()]


def test_the_client_lists_scales_and_rolls_out_apps(here: PlatformUnderTest, spoken_to: str) -> None:
    client = SyncServerlessClient()
    apps.run(spoken_to, {})
    assert [app.alias for app in client.apps.list(filter="spoken")] == ["spoken-to"]
    assert client.apps.list(environment_name="staging") == []
    assert client.apps.scale("spoken-to", keep_alive=130, max_concurrency=None).keep_alive == 130
    with pytest.raises(Problem, match="Nothing to change"):
        client.apps.scale("spoken-to")
    (runner,) = client.apps.runners("spoken-to", state=["idle"])
    assert client.apps.runners("spoken-to", since=datetime.now() + timedelta(hours=1)) == []
    assert runner.runner_id in {each.runner_id for each in client.runners.list()}
    assert client.apps.gpus("spoken-to") == client.runners.gpus() == {"gpus": {}, "total": 0}
    client.apps.rollout("spoken-to", force=True)

    def replaced() -> bool:
        return runner.runner_id not in {each.runner_id for each in client.apps.runners("spoken-to")}

    wait_until(replaced, "the runner to be gone", timeout=30)


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_the_client_stops_and_kills_runners(here: PlatformUnderTest, spoken_to: str, how: str) -> None:
    client = SyncServerlessClient(host=here.url, api_key=here.key)
    apps.run(spoken_to, {})
    (runner,) = client.apps.runners("spoken-to", state=["IDLE"])
    getattr(client.runners, how)(runner.runner_id)

    def gone() -> bool:
        return runner.runner_id not in {each.runner_id for each in client.runners.list()}

    wait_until(gone, "the runner to be gone", timeout=30)
    with pytest.raises(Problem, match="No app has a runner"):
        client.runners.kill(runner.runner_id)


def test_the_client_keeps_keys_secrets_and_environments(here: PlatformUnderTest) -> None:
    client = SyncServerlessClient()
    key_id, secret = client.keys.create(description="of a script")
    assert SyncServerlessClient(api_key=f"{key_id}:{secret}").apps.list() == client.apps.list()
    client.keys.revoke(key_id)
    assert [(k.alias, k.revoked) for k in client.keys.list() if k.key_id == key_id] == [("of a script", True)]

    assert client.environments.create("trial", "of a script").name == "trial"
    client.secrets.set("WORD", "abc", environment_name="trial", exposed_by_default=False)
    assert [(s.name, s.environment_name, s.exposed) for s in client.secrets.list("trial")] == [("WORD", "trial", False)]
    assert "WORD" not in {s.name for s in client.secrets.list()}
    client.secrets.unset("WORD", "trial")
    assert {"main", "trial"} <= {e.name for e in client.environments.list()}
    client.environments.delete("trial")
    with pytest.raises(Problem, match="no environment"):
        client.secrets.list("trial")


def test_the_client_deploys(here: PlatformUnderTest) -> None:
    made = SyncServerlessClient().deploy(
        f"{APPS}::SpokenTo", app_name="from-python", auth="public", message="by a script"
    )
    assert (made.app_id, made.app_name, made.auth_mode) == ("tester/from-python", "from-python", "public")
    answer = httpx.post(made.urls["sync"], json={"text": "up"}, trust_env=False, timeout=60)
    assert answer.json() == {"said": "up"}
    with pytest.raises(Problem, match="nowhere"):
        SyncServerlessClient().deploy("nowhere.py")


def test_whose_key_it_is(here: PlatformUnderTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert SyncServerlessClient(team="tester").apps.list() is not None
    with pytest.raises(Problem, match="no team 'others'"):
        SyncServerlessClient(team="others").apps.list()
    with pytest.raises(Problem, match="refused"):
        SyncServerlessClient(api_key="a:b").apps.list()
    monkeypatch.setenv("FAL_CONFIG_PATH", str(tmp_path / "config.toml"))
    (tmp_path / "config.toml").write_text(f'[ours]\nhost = "{here.url}"\nkey = "{here.key}"\n')
    monkeypatch.setenv("KEEPWARM_URL", "http://127.0.0.1:9")
    assert SyncServerlessClient(profile="ours").apps.list() is not None
    with pytest.raises(Problem, match="'theirs'"):
        SyncServerlessClient(profile="theirs").apps.list()


def test_sync_dir_sends_what_changed(
    here: PlatformUnderTest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "models"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a.bin").write_bytes(b"a" * 10)
    (folder / "b.txt").write_text("b")
    (folder / "secret.env").write_text("no")
    (folder / "cache").mkdir()
    (folder / "cache" / "c").write_text("no")
    (folder / ".gitignore").write_text("*.env\ncache/\n")
    there = here.data / "data" / "synced"

    def said() -> str:
        return capsys.readouterr().out

    assert fal.sync_dir(folder, "/data/synced") == "/data/synced"
    assert "sent 3 of 3" in said()
    assert (there / "deep" / "a.bin").read_bytes() == b"a" * 10
    assert not (there / "secret.env").exists()
    assert not (there / "cache").exists()
    (folder / "b.txt").write_text("changed")
    fal.sync_dir(str(folder), "/data/synced")
    assert "sent 1 of 3" in said()
    assert (there / "b.txt").read_text() == "changed"
    (there / "b.txt").unlink()
    fal.sync_dir(folder, "/data/synced")
    assert (there / "b.txt").read_text() == "changed"
    fal.sync_dir(folder, "/data/synced", force_upload=True)
    assert "sent 3 of 3" in said()
    with pytest.raises(ValueError, match="below /data"):
        fal.sync_dir(folder, "/models")
    with pytest.raises(ValueError, match="not a folder"):
        fal.sync_dir(folder / "b.txt", "/data/synced")


def test_names_that_are_only_there_to_say_what_to_do() -> None:
    from fal.toolkit.optimize import optimize

    image: Any = fal.ContainerImage.from_dockerfile_str("FROM python:3.11", build_args={"A": "1"})
    assert image.dockerfile_str == "FROM python:3.11"
    with pytest.raises(ImportError, match=r"DistributedRunner is not there on this platform: ask for num_gpus"):
        from fal.distributed import DistributedRunner  # noqa: F401
    with pytest.raises(ImportError, match=r"fal\.apps\.run"):
        fal.workflows.create_workflow  # noqa: B018
    with pytest.raises(ImportError, match=r"@fal\.realtime"):
        fal.wma.App  # noqa: B018
    with pytest.warns(DeprecationWarning, match=r"torch\.compile"):
        assert optimize("a module") == "a module"

    class Priced:
        def declaration(self) -> dict[str, Any]:
            return {}

    assert isinstance(Priced(), fal.BillingDeclaration)
