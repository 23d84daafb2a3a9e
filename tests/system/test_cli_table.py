"""Commands of `fal` against a whole platform; `rows.py` says which test is whose."""

from __future__ import annotations

import http.server
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.platform import BIN, PlatformUnderTest
from tests.support.waiting import wait_until
from tests.system.running import Running

APPS = "tests/system/apps/spoken_to.py"
APP = "commanded"


@pytest.fixture(scope="module")
def url(platform: PlatformUnderTest) -> str:
    return platform.deploy(APPS, "SpokenTo", "--app-name", APP, "-m", "the first", "--annotation", "ticket=OPS-7")


def post(url: str, **body: Any) -> httpx.Response:
    return httpx.post(url, json=body, trust_env=False, timeout=60)


def answer(platform: PlatformUnderTest, *arguments: str) -> Any:
    return json.loads(platform.fal(*arguments, "--json").stdout.splitlines()[-1])


# --- build ------------------------------------------------------------------------------------------------------------


def test_create_run_and_its_limit(home: Path, tmp_path: Path) -> None:
    """What `fal create app` writes runs as it is; with --local and a limit the command ends by itself."""
    made = subprocess.run(
        [str(BIN / "fal"), "create", "app", "MyEcho", "-C", str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "my_echo.py" in made.stdout
    again = subprocess.run(made.args, capture_output=True, text=True, check=False)
    assert (again.returncode, "is there already" in again.stderr) == (1, True)
    wrong = subprocess.run([str(BIN / "fal"), "create", "app", "my-echo"], capture_output=True, check=False)
    assert (wrong.returncode, b"beginning with a capital" in wrong.stderr) == (1, True)
    limits = ("--local", "--exposed-port", "0", "--limit-max-requests", "1")
    running = Running(home, str(tmp_path / "my_echo.py"), *limits)
    assert post(running.url(), prompt="hello").json() == {"text": "You said: hello"}
    assert running.process.wait(30) == 0, running.output


def test_deploy_keeps_a_message_and_annotations(platform: PlatformUnderTest, url: str) -> None:
    (revision,) = answer(platform, "apps", "list-rev", APP)
    assert (revision["message"], revision["annotations"]) == ("the first", {"ticket": "OPS-7"})
    refused = platform.fal("deploy", f"{APPS}::SpokenTo", "--annotation", "ticket", check=False)
    assert "is not KEY=VALUE" in refused.stderr


def test_deploy_detached_is_done_later(platform: PlatformUnderTest) -> None:
    made = answer(platform, "deploy", f"{APPS}::SpokenTo", "--app-name", "later", "--detach")
    assert made["status"] == "Deploying"

    def ready() -> bool:
        return bool(answer(platform, "apps", "list-rev", "later")[0]["state"] == "READY")

    wait_until(ready, "the revision to be built", timeout=60)
    assert [app["revision"] for app in answer(platform, "apps", "list", "--filter", "later")] == [made["revision"]]


def test_deploy_check_and_reset_scale(platform: PlatformUnderTest, url: str) -> None:
    platform.fal("apps", "scale", APP, "--keep-alive", "33")
    rows = answer(platform, "deploy", f"{APPS}::SpokenTo", "--app-name", APP, "--check")["settings"]
    checked = {row["setting"]: row for row in rows}
    assert (checked["keep_alive"]["after"], checked["keep_alive"]["ignored"]) == (33, 120)
    kept = platform.fal("deploy", f"{APPS}::SpokenTo", "--app-name", APP)
    assert "--reset-scale" in kept.stdout
    platform.fal("deploy", f"{APPS}::SpokenTo", "--app-name", APP, "--reset-scale", "--strategy", "recreate")
    assert answer(platform, "apps", "show", APP)["scaling"]["keep_alive"] == 120


# --- apps -------------------------------------------------------------------------------------------------------------


def test_apps_list_sifts_and_sorts(platform: PlatformUnderTest, url: str) -> None:
    assert [app["app"] for app in answer(platform, "apps", "list", "--filter", APP)] == [f"tester/{APP}"]
    assert answer(platform, "apps", "list", "--env", "no-such") == []
    sorted_apps = answer(platform, "apps", "list", "--sort-by-runners", "--regions", "us-east")
    counts = [len(app["workers"]) for app in sorted_apps]
    assert counts == sorted(counts, reverse=True)


def test_revisions_back_and_forth_and_gone(platform: PlatformUnderTest, url: str) -> None:
    platform.fal("deploy", f"{APPS}::SpokenTo", "--app-name", APP, "-m", "another")
    newest, *older = [revision["revision"] for revision in answer(platform, "apps", "list-rev", APP)]
    platform.fal("apps", "set-rev", APP, older[0], "--auth", "shared", "--strategy", "recreate")
    shown = answer(platform, "apps", "show", APP)
    assert (shown["revision"], shown["auth"]) == (older[0], "shared")
    platform.fal("apps", "delete-rev", APP, newest)
    assert newest not in [revision["revision"] for revision in answer(platform, "apps", "list-rev", APP)]
    platform.fal("apps", "set-rev", APP, older[0], "--auth", "public")
    assert post(url, text="a").json() == {"said": "a"}


def test_every_scaling_setting(platform: PlatformUnderTest, url: str) -> None:
    """Those of the code make a revision, and are said to pass with the next deploy."""
    alias = {
        "keep-alive": "120", "min-concurrency": "0", "max-concurrency": "2", "concurrency-buffer": "0",
        "concurrency-buffer-perc": "0", "scaling-delay": "0", "request-timeout": "99", "request-start-timeout": "0",
    }  # fmt: skip
    of_the_code = {"max-multiplexing": "2", "startup-timeout": "77", "machine-types": "S,XS"}
    given = [word for name, value in {**alias, **of_the_code}.items() for word in (f"--{name}", value)]
    done = platform.fal("apps", "scale", APP, *given, "--regions", "us-east")
    assert "max_multiplexing, startup_timeout, machine_types: as the code says again after the next deploy" in " ".join(
        done.stdout.split()
    )
    shown = answer(platform, "apps", "show", APP)
    assert (shown["scaling"]["request_timeout"], shown["machine_types"]) == (99, ["S", "XS"])


def test_rollout_waits_until_the_old_ones_are_gone(platform: PlatformUnderTest, url: str) -> None:
    assert post(url).status_code == 200
    old = {worker["worker_id"] for worker in answer(platform, "apps", "runners", APP)}
    done = platform.fal("apps", "rollout", APP, "--strategy", "recreate", "--wait")
    assert f"Replaced 1 runner of tester/{APP}." in done.stdout
    assert not old & {worker["worker_id"] for worker in answer(platform, "apps", "runners", APP)}
    assert post(url).status_code == 200
    assert "Replacing 1 runner" in platform.fal("apps", "rollout", APP, "--force").stdout


def test_runners_of_an_app_and_what_they_have(platform: PlatformUnderTest, url: str) -> None:
    with platform.client() as client:
        made = client.post(f"/queue/tester/{APP}", json={"seconds": 4}).json()

        def table() -> str:
            return platform.fal("apps", "runners", APP).stdout

        shown = wait_until(lambda: table() if made["request_id"] in table() else "", "the request in the table")
        assert re.search(r"Request\s+Runner\s+Kind\s+Attempt\s+Began", shown)
        assert answer(platform, "apps", "runners", APP, "--state", "running", "--since", "10m")
        assert answer(platform, "apps", "runners", APP, "--since", "2999-01-01") == []
        client.put(made["cancel_url"])


def test_gpus(platform: PlatformUnderTest, url: str) -> None:
    assert "hold no GPU" in platform.fal("apps", "gpus", APP).stdout
    assert answer(platform, "apps", "gpus", APP) == {"total": 0, "gpus": {}}
    assert "No runner holds a GPU" in platform.fal("runners", "gpus").stdout
    assert "no app" in platform.fal("apps", "gpus", "no-such-app", check=False).stderr


def test_delete(platform: PlatformUnderTest) -> None:
    gone = platform.deploy(APPS, "SpokenTo", "--app-name", "to-be-gone")
    platform.fal("apps", "delete", "to-be-gone", "--yes")
    wait_until(lambda: post(gone).status_code == 404, "its URL to be gone")


# --- runners, queue ---------------------------------------------------------------------------------------------------


def test_runners_and_their_logs(platform: PlatformUnderTest, url: str) -> None:
    for word in ("one", "two", "three"):
        assert post(url, text=f"log-{word}").status_code == 200
    runner = answer(platform, "runners", "list", APP, "--since", "10m", "--state", "idle")[0]["worker_id"]

    def lines(*options: str) -> list[str]:
        return re.findall(r"asked to say log-(\w+)", platform.fal("runners", "logs", runner, *options).stdout)

    wait_until(lambda: lines() == ["one", "two", "three"], "the lines to be kept")
    assert lines("--search", "log-", "-n", "2") == ["two", "three"]
    assert lines("--search", "log-", "-n", "+2") == ["one", "two"]
    assert lines("--since", "10m", "--until", "1s") in (["one", "two", "three"], ["one", "two"], ["one"], [])
    assert lines("--since", "2999-01-01") == []
    wrong = platform.fal("runners", "logs", runner, "-n", "many", check=False)
    assert (wrong.returncode, "+N shows the first N" in wrong.stderr) == (2, True)
    platform.fal("runners", "stop", runner, "--replace-first")


def test_queue_size_and_flush(platform: PlatformUnderTest, url: str) -> None:
    platform.fal("apps", "scale", APP, "--max-concurrency", "1", "--max-multiplexing", "1")
    with platform.client() as client:
        made = [client.post(f"/queue/tester/{APP}", json={"seconds": 3}).json() for _ in range(3)]

        def waiting() -> bool:
            return platform.fal("queue", "size", APP).stdout.strip() == "2"

        wait_until(waiting, "two to wait behind one", timeout=30)
        assert platform.fal("queue", "size", APP, "--by-user").stdout.split() == ["USER", "WAITING", "anonymous", "2"]
        assert "Dropped 0 waiting" in platform.fal("queue", "flush", APP, "--caller-user-id", "tester", "--yes").stdout
        assert "Dropped 2 waiting requests" in platform.fal("queue", "flush", APP, "--yes").stdout
        client.put(made[0]["cancel_url"])
        assert client.get(made[2]["response_url"]).json()["error_type"] == "client_cancelled"


# --- settings ---------------------------------------------------------------------------------------------------------


def test_secrets(platform: PlatformUnderTest) -> None:
    platform.fal("secrets", "set", "ONE=1", "TWO=2", "--not-exposed-by-default")
    listed = {secret["name"]: secret["exposed"] for secret in answer(platform, "secrets", "list")}
    assert (listed["ONE"], listed["TWO"]) == (False, False)
    platform.fal("secrets", "unset", "ONE", "TWO")
    assert not {"ONE", "TWO"} & {secret["name"] for secret in answer(platform, "secrets", "list")}


@pytest.mark.parametrize(
    ("scope", "calls", "looks", "changes"),
    [("API", 200, 403, 403), ("DEPLOY", 403, 200, 200)],
)
def test_scopes_of_keys(
    platform: PlatformUnderTest, url: str, scope: str, calls: int, looks: int, changes: int
) -> None:
    platform.fal("apps", "set-rev", APP, answer(platform, "apps", "show", APP)["revision"], "--auth", "private")
    printed = platform.fal("keys", "create", "--scope", scope, "--desc", "of the table").stdout
    key = re.search(r"FAL_KEY='([^']+)'", printed)
    assert key is not None
    shell = platform.shell({"FAL_KEY": key[1]})

    def allowed(*arguments: str) -> int:
        done = platform.fal_in(shell, *arguments, check=False)
        assert done.returncode == 0 or f"has the scope {scope} and may only" in done.stderr, done.stderr
        return 200 if done.returncode == 0 else 403

    assert allowed("api", f"tester/{APP}", "text=a") == calls
    assert allowed("apps", "list") == looks
    assert allowed("apps", "scale", APP, "--keep-alive", "120") == changes
    assert allowed("keys", "create") == 403
    key_id = key[1].split(":")[0]
    listed = {item["key_id"]: item["scope"] for item in answer(platform, "keys", "list")}
    assert listed[key_id] == scope
    platform.fal("keys", "revoke", key[1])
    platform.fal("apps", "set-rev", APP, answer(platform, "apps", "show", APP)["revision"], "--auth", "public")


def test_environments_by_both_names(platform: PlatformUnderTest) -> None:
    platform.fal("envs", "create", "preview", "--description", "to look at")
    assert "preview" in [each["name"] for each in answer(platform, "environments", "list")]
    platform.fal("environments", "delete", "preview", "--yes")


class _Served(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def files_of(tmp_path: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *arguments: _Served(*arguments, directory=str(tmp_path))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join(10)


def test_files(platform: PlatformUnderTest, tmp_path: Path, files_of: str) -> None:
    (tmp_path / "note.txt").write_text("a note")
    platform.fal("files", "upload", str(tmp_path / "note.txt"), "table/")
    platform.fal("files", "mv", "table/note.txt", "table/moved.txt")
    assert "/data/table/moved.txt" in platform.fal("files", "ls", "table").stdout
    platform.fal("files", "download", "table/moved.txt", str(tmp_path / "back.txt"))
    assert (tmp_path / "back.txt").read_text() == "a note"
    platform.fal("files", "rm", "table/moved.txt", "--yes")
    platform.fal("files", "upload-url", f"{files_of}/note.txt", "table/")
    assert (platform.data / "data" / "table" / "note.txt").read_text() == "a note"
    nameless = platform.fal("files", "upload-url", "https://example.com/", check=False)
    assert "does not say what the file is to be called" in nameless.stderr


def test_api_with_nested_arguments_and_a_stream(platform: PlatformUnderTest, url: str) -> None:
    done = platform.fal("api", APP, "text=hello")
    assert json.loads(done.stdout) == {"said": "hello"}
    assert "COMPLETED" in done.stderr
    assert "asked to say hello" in done.stderr
    assert platform.fal("api", f"{APP}/letters/stream", "text=ab").stdout.split() == ["a", "b"]


def test_profiles(platform: PlatformUnderTest, tmp_path: Path) -> None:
    environ = {k: v for k, v in platform.shell().items() if not k.startswith(("KEEPWARM_", "FAL_"))}
    environ |= {"HOME": str(tmp_path)}

    def fal(*arguments: str, code: int = 0) -> str:
        done = platform.fal_in(environ, *arguments, check=False)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    fal("profile", "create", "box")
    assert "already" in fal("profile", "create", "box", code=1)
    fal("profile", "set", "box")
    fal("profile", "host", platform.url)
    fal("profile", "key", platform.key)
    assert "tester" in fal("apps", "list", "--all")
    assert "box" in fal("profile", "list")
    fal("profile", "unset")
    fal("profile", "delete", "box")


def test_doctor_completion_version_and_looking_into_the_command(platform: PlatformUnderTest) -> None:
    assert answer(platform, "doctor")
    for shell in ("bash", "zsh", "fish"):
        assert "_FAL_COMPLETE" in platform.fal("completion", shell).stdout
    assert platform.fal("--version").stdout.startswith("fal ")
    assert "Traceback" in platform.fal("--debug", "apps", "show", "no-such", check=False).stderr
    assert "cumulative" in platform.fal("--cprofile", "apps", "list").stderr
    looked = subprocess.run(
        [str(BIN / "fal"), "--pdb", "apps", "show", "no-such"],
        env=platform.shell(), input="p 40 + 2\nq\n", capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "(Pdb) 42" in looked.stdout


@pytest.mark.parametrize(
    ("command", "says"), [("auth", "keys are enough"), ("account", "fal profile"), ("team", "there are no teams")]
)
def test_commands_that_have_no_meaning_here(platform: PlatformUnderTest, command: str, says: str) -> None:
    done = platform.fal(command, "login", check=False)
    assert (done.returncode, says in done.stderr) == (2, True)
