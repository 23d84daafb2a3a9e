"""The commands that look after apps, as a user types them, against a server that answers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import click
import pytest
from fal.cli import cli

from tests.cli.conftest import Fal
from tests.cli.control_server import KEY, ControlServer

APP = {
    "app": "tester/hello",
    "revision": "rev1",
    "auth": "private",
    "ephemeral": False,
    "scaling": {"keep_alive": 60, "min_concurrency": 0, "max_concurrency": 2},
    "created_at": "2025-01-02T03:04:05+00:00",
    "workers": [{"state": "IDLE"}],
}


@pytest.fixture
def deployed(control: ControlServer) -> ControlServer:
    control.apps["tester/hello"] = dict(APP)
    control.apps["tester/1f2e"] = {**APP, "app": "tester/1f2e", "ephemeral": True}
    return control


def test_help_is_instant_and_names_every_command(fal: Fal, environ: dict[str, str]) -> None:
    shown = fal("--help", environ=environ).stdout
    looking_after = ["apps", "runners", "logs", "queue", "files", "api"]
    settings = ["secrets", "environments", "keys", "profile", "doctor", "completion"]
    for name in ["run", "deploy", *looking_after, *settings]:
        assert f"  {name} " in shown
        assert fal(name, "--help", environ=environ).stdout.startswith(f"Usage: fal {name}")


def test_help_imports_nothing_slow(fal: Fal, environ: dict[str, str]) -> None:
    shown = fal("--help", environ=environ | {"PYTHONPROFILEIMPORTTIME": "1"}).stderr
    imported = {line.rsplit("|", 1)[-1].strip() for line in shown.splitlines()}
    assert "click" in imported
    assert not imported & {"httpx", "rich", "rich.console", "pydantic", "fastapi", "fal.app", "asyncio"}


def test_version_and_unknown_commands(fal: Fal, environ: dict[str, str]) -> None:
    assert fal("--version", environ=environ).stdout.startswith("fal ")
    assert "did you mean `fal deploy`?" in fal("deplyo", environ=environ, code=2).stderr
    assert "did you mean `fal run`?" in fal("app.py::X", environ=environ, code=2).stderr


def test_apps_list_show_and_json(fal: Fal, deployed: ControlServer) -> None:
    shown = fal("apps", "list").stdout
    assert "tester/hello" in shown
    assert "1f2e" not in shown
    assert [app["app"] for app in json.loads(fal("apps", "list", "--all", "--json").stdout)] == list(deployed.apps)
    shown = fal("apps", "show", "hello").stdout
    assert all(part in shown for part in ("tester/hello", "rev1", "keep_alive", "IDLE"))
    assert json.loads(fal("apps", "show", "tester/hello", "--json").stdout) == APP


def test_an_unknown_app_is_one_clear_line(fal: Fal) -> None:
    done = fal("apps", "show", "nope", code=1)
    assert done.stderr == '✗ There is no app "tester/nope".\n'
    assert done.stdout == ""


def test_revisions_and_rollback(fal: Fal, deployed: ControlServer) -> None:
    shown = fal("apps", "list-rev", "hello").stdout
    assert "→" in shown
    assert "rev1" in shown
    fal("apps", "set-rev", "hello", "rev0")
    body = {"revision": "rev0", "strategy": "rolling"}
    assert deployed.changes == [{"path": "/api/v1/apps/tester/hello/revision", "body": body}]


def test_scale_sends_only_what_was_given(fal: Fal, deployed: ControlServer) -> None:
    fal("apps", "scale", "hello", "--keep-alive", "300", "--max-concurrency", "4")
    body = {"keep_alive": 300, "max_concurrency": 4}
    assert deployed.changes == [{"path": "/api/v1/apps/tester/hello/scaling", "body": body}]
    assert "Nothing to change" in fal("apps", "scale", "hello", code=1).stderr


def test_delete(fal: Fal, deployed: ControlServer) -> None:
    fal("apps", "delete", "hello")
    assert deployed.deleted == ["tester/hello"]


def test_runners(fal: Fal, deployed: ControlServer) -> None:
    shown = fal("runners", "list", "hello").stdout
    assert all(part in shown for part in ("w1", "IDLE", "1.4 s (zygote; fork 0.1, setup 1.2)"))
    assert json.loads(fal("apps", "runners", "hello", "--json").stdout)[0]["worker_id"] == "w1"


def test_logs(fal: Fal, deployed: ControlServer) -> None:
    deployed.session_log = [
        {"at": 1735787045.5, "level": "info", "message": "one\ntwo", "worker_id": "w1"},
        {"at": 1735787045.6, "level": "error", "message": "three", "worker_id": "w2"},
    ]
    lines = fal("logs", "hello").stdout.splitlines()
    assert [line.split()[-1] for line in lines] == ["one", "two", "three"]
    assert fal("logs", "hello", "--runner", "w2").stdout.split()[-1] == "three"
    assert "one" not in fal("runners", "logs", "w2", "--app", "hello").stdout
    entries = [json.loads(line) for line in fal("logs", "hello", "--json").stdout.splitlines()]
    assert [entry["worker_id"] for entry in entries] == ["w1", "w2"]


def test_logs_of_a_time_and_with_a_word(fal: Fal, deployed: ControlServer) -> None:
    now = time.time()
    deployed.session_log = [{"at": now - ago, "level": "info", "message": f"{ago} s ago"} for ago in (7200, 600, 5)]
    for options, shown in (
        (("--since", "15m"), ["600 s ago", "5 s ago"]),
        (("--since", "15m", "-n", "1"), ["5 s ago"]),
        (("--until", "1h"), ["7200 s ago"]),
        (("--search", "600"), ["600 s ago"]),
        (("--since", datetime.fromtimestamp(now - 60).isoformat()), ["5 s ago"]),
    ):
        lines = fal("logs", "hello", *options).stdout.splitlines()
        assert [" ".join(line.split()[1:]) for line in lines] == shown, options
    assert "write 15m, 2h or" in fal("logs", "hello", "--since", "yesterday", code=2).stderr


def test_every_command_that_answers_can_answer_in_json() -> None:
    def leaves(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
        if not isinstance(command, click.Group):
            yield path, command
            return
        for name in command.list_commands(click.Context(command)):
            inner = command.get_command(click.Context(command), name)
            assert inner is not None
            yield from leaves(inner, f"{path} {name}".strip())

    without = {
        path for path, command in leaves(cli, "") if not any("--json" in option.opts for option in command.params)
    }
    # `api` prints the app's own JSON; a run and a command beside a runner pass on what others print.
    settings = {f"profile {verb}" for verb in ("set", "create", "unset", "key", "host", "delete")}
    assert without == {"api", "run", "runners exec", "runners shell", "completion"} | settings


def test_queue(fal: Fal) -> None:
    assert fal("queue", "size", "hello").stdout == "7\n"
    by_user = fal("queue", "size", "hello", "--by-user").stdout.split()
    assert by_user == ["USER", "WAITING", "tester", "4", "friend", "3"]
    assert "Dropped 7 waiting requests of tester/hello" in fal("queue", "flush", "hello").stdout
    assert "Dropped 3 waiting requests" in fal("queue", "flush", "hello", "--caller-user-id", "friend").stdout


def test_keys(fal: Fal, control: ControlServer) -> None:
    assert "FAL_KEY='k2:s2'" in fal("keys", "create", "--name", "ci").stdout
    assert json.loads(fal("keys", "create", "--json").stdout)["key"] == "k2:s2"
    for given, made in (("api", "API"), ("ADMIN", "FULL"), ("serverless", "DEPLOY")):
        assert json.loads(fal("keys", "create", "--json", "--scope", given).stdout)["scope"] == made
    for given, says in (("BILLING", "nobody is billed"), ("all", "choose one of FULL, API, DEPLOY, READONLY")):
        assert says in fal("keys", "create", "--preset", given, code=1).stderr
    listed = fal("keys", "list").stdout
    assert "revoked" in listed
    assert "API" in listed
    fal("keys", "revoke", "k2:s2")
    assert control.changes == [{"path": "/api/v1/keys/k2", "body": None}]


def test_api_calls_through_the_queue(fal: Fal, deployed: ControlServer) -> None:
    done = fal("api", "hello/images/up", "prompt=a rhino", "steps=4", "size[width]=512", "tags[]=a", "tags[]=b")
    body = {"prompt": "a rhino", "steps": 4, "size": {"width": 512}, "tags": ["a", "b"]}
    assert deployed.queued == [{"path": "/queue/tester/hello/images/up", "body": body}]
    assert json.loads(done.stdout) == {"echo": body}
    assert "from the app" in done.stderr
    assert "COMPLETED" in done.stderr


def test_api_shows_a_failed_request(fal: Fal, deployed: ControlServer) -> None:
    done = fal("api", "tester/hello", "prompt=fail", code=1)
    assert "The request failed (500): it broke" in done.stderr
    assert "runner_server_error" in done.stderr


@pytest.mark.parametrize("arguments", [["prompt"], ["a=1", "a[b]=2"], ["--data", "{"], ["a=1", "--data", "{}"]])
def test_api_with_arguments_that_cannot_be_meant(fal: Fal, deployed: ControlServer, arguments: list[str]) -> None:
    fal("api", "hello", *arguments, code=1)
    assert deployed.queued == []


def test_profiles(fal: Fal, control: ControlServer, environ: dict[str, str]) -> None:
    assert "No profiles" in fal("profile", "list", environ=environ).stdout
    fal("profile", "set", "box", environ=environ)
    fal("profile", "host", control.url, environ=environ)
    fal("profile", "key", f"FAL_KEY='{KEY}'", environ=environ)
    shown = json.loads(fal("profile", "list", "--json", environ=environ).stdout)
    assert shown == [{"name": "box", "chosen": True, "host": control.url, "has_key": True}]
    assert "No apps" in fal("apps", "list", environ=environ).stdout
    fal("profile", "set", "other", environ=environ)
    assert "No platform" in fal("apps", "list", environ=environ, code=1).stderr
    fal("apps", "list", environ=environ | {"FAL_PROFILE": "box"})
    assert "did you mean 'other'" in fal("profile", "delete", "othr", environ=environ, code=1).stderr
    fal("profile", "delete", "box", environ=environ)
    fal("profile", "unset", environ=environ)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"FAL_KEY": "wrong:key"}, ["was refused (401)", "Invalid key", "keepwarm keys create"]),
        ({"FAL_KEY": ""}, ["is missing (401)", "A key is needed"]),
        ({"KEEPWARM_URL": "http://127.0.0.1:9"}, ["No server answers at http://127.0.0.1:9", "KEEPWARM_URL"]),
        ({"KEEPWARM_URL": "ftp://x"}, ["'ftp://x' is not the address of a server"]),
        ({"KEEPWARM_URL": ""}, ["No platform to talk to", "keepwarm up", "KEEPWARM_URL"]),
    ],
    ids=["wrong key", "no key", "nobody there", "no address", "nothing configured"],
)
def test_a_server_that_cannot_be_used(fal: Fal, known: dict[str, str], change: dict[str, str], says: list[str]) -> None:
    done = fal("apps", "list", environ=known | change, code=1)
    assert all(part in done.stderr for part in says), done.stderr


def test_doctor(fal: Fal, known: dict[str, str]) -> None:
    report = json.loads(fal("doctor", "--json").stdout)
    assert report["healthy"]
    assert "acts for 'tester'" in fal("doctor").stdout
    done = fal("doctor", environ=known | {"FAL_KEY": "wrong:key"}, code=1)
    assert "✗ key" in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(fal: Fal, environ: dict[str, str], shell: str) -> None:
    assert "_FAL_COMPLETE" in fal("completion", shell, environ=environ).stdout


def test_a_machine_without_the_gpu_is_refused_quickly(fal: Fal, tmp_path: Path, environ: dict[str, str]) -> None:
    (tmp_path / "app.py").write_text(
        "import fal\nclass Big(fal.App):\n    machine_type = 'GPU-H9000'\n"
        "    @fal.endpoint('/')\n    def run(self) -> int:\n        return 1\n"
    )
    begun = time.monotonic()
    for command in ("run", "deploy"):
        done = fal(command, "app.py::Big", environ=environ, code=1)
        assert "✗ No host offers GPU-H9000. This host offers CPU types XS, S, M, L, XL." in done.stderr
        assert "Next:" in done.stderr
    assert time.monotonic() - begun < 30  # a bound for a hang; the time itself is a benchmark's business
    assert not (Path(environ["HOME"]) / ".keepwarm" / "platform.json").exists()
