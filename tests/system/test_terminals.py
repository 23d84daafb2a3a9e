"""Shells beside a runner: `fal runners exec -it` and `fal runners shell`, from terminal to terminal."""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.support.platform import BIN, PlatformUnderTest
from tests.support.processes import command_of
from tests.support.waiting import wait_until
from tests.system.running import processes_of
from tests.system.terminal_user import TerminalUser

APPS = "tests/system/apps/spoken_to.py"
Sit = Callable[..., TerminalUser]


@pytest.fixture(scope="module")
def runner(platform: PlatformUnderTest) -> str:
    """The id of a runner that is up."""
    url = platform.deploy(APPS, "SpokenTo", "--app-name", "typed-at")
    with platform.client() as client:
        assert client.post(url, json={}).status_code == 200
    return str(platform.workers("tester/typed-at")[0]["worker_id"])


@pytest.fixture
def sit(platform: PlatformUnderTest) -> Iterator[Sit]:
    users: list[TerminalUser] = []

    def start(*arguments: str) -> TerminalUser:
        users.append(TerminalUser([str(BIN / "fal"), "runners", *arguments], platform.shell(), platform.data))
        return users[-1]

    yield start
    for user in users:
        user.leave()


def test_a_terminal_of_its_own(sit: Sit, runner: str) -> None:
    """The terminal's own size counts, whatever an environment says that was exported in another one."""
    user = sit("exec", "-it", "--app", "typed-at", runner, "sh", "-c", "PS1='ready> ' exec sh -i")
    user.reads("ready> ")
    user.type("stty size; echo at $(tty) $TERM; ls\n")
    user.reads("30 100\r\nat /dev/pts/")
    user.reads("xterm\r\n")
    user.reads("spoken_to.py")
    user.resize(41, 121)
    user.type("stty size\n")
    user.reads("41 121")
    # Not the echo of the line: a shell interrupted before it has forked waits for the sleep all the same.
    user.type("sh -c 'echo asleep; exec sleep 4567'\n")
    user.reads("asleep\r\n")
    user.type("\x03")
    user.reads("ready> ")
    user.type("exit 7\n")
    assert user.ends() == 7


def test_a_shell_and_what_becomes_of_one_whose_window_is_closed(
    sit: Sit, platform: PlatformUnderTest, runner: str
) -> None:
    user = sit("shell", runner)
    user.type("echo $((40 + 2)) in $FAL_APP_NAME\n")
    user.reads("42 in typed-at")
    user.type("exec sleep 4568\n")

    def sleeping() -> bool:
        return any("4568" in command_of(process) for process in processes_of(platform.data))

    wait_until(sleeping, "the command to run")
    user.leave()
    wait_until(lambda: not sleeping(), "it to be ended")


def test_a_signal_and_a_missing_command(sit: Sit, runner: str) -> None:
    user = sit("exec", "-t", runner, "sh", "-c", "echo here; kill -TERM $$")
    user.reads("here")
    assert user.ends() == 128 + 15
    user = sit("exec", "-it", runner, "no-such-command")
    user.reads("no-such-command: No such file or directory")
    assert user.ends() == 127


def test_input_from_a_pipe(platform: PlatformUnderTest, runner: str) -> None:
    data = b"\0\xff\n" * 400_000
    command = [str(BIN / "fal"), "runners", "exec", "-i", runner, "sh", "-c", "sha256sum; echo also >&2; exit 3"]
    done = subprocess.run(command, env=platform.shell(), input=data, capture_output=True, timeout=60, check=False)
    assert done.returncode == 3, done.stderr
    assert done.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()
    assert done.stderr == b"also\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("-it", "RUNNER", "sh"), "-t needs a terminal on both sides"),
        (("RUNNER", "-it", "sh"), "options stand before the runner"),
        (("-i", "nobody", "sh"), "No app has a runner 'nobody' now"),
        (("-i", "--app", "typed-at", "nobody", "sh"), 'no runner "nobody" now'),
    ],
)
def test_what_cannot_be(platform: PlatformUnderTest, runner: str, arguments: tuple[str, ...], says: str) -> None:
    words = [runner if word == "RUNNER" else word for word in arguments]
    done = platform.fal("runners", "exec", *words, check=False)
    assert done.returncode == 1
    assert says in done.stderr
    assert "Next:" in done.stderr or "fal runners list" in done.stderr


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([b"binary"], "JSON texts"),
        (["{"], "not valid JSON"),
        (['{"run": "ls"}'], "first message"),
        (['{"command": "ls"}'], "list of texts"),
        (['{"command": ["ls"], "terminal": {"rows": 0, "columns": 1}}'], "whole numbers"),
        (['{"command": ["ls"], "terminal": {"rows": 1, "columns": 1, "kind": "\\u0000"}}'], "as TERM does"),
        (['{"command": ["cat"]}', '{"type": "sing"}'], '"type" must be'),
        (['{"command": ["cat"]}', '{"type": "input", "data": "%"}'], "base64"),
    ],
)
def test_messages_that_cannot_be_meant(
    platform: PlatformUnderTest, runner: str, messages: list[Any], says: str
) -> None:
    with opened(platform, runner, platform.key) as socket:
        for message in messages:
            socket.send(message)
        with contextlib.suppress(ConnectionClosed):
            list(iter(partial(socket.recv, 20), None))
        assert (socket.close_code, says in socket.close_reason) == (1008, True), socket.close_reason


def test_who_may_not(platform: PlatformUnderTest, runner: str) -> None:
    readonly = json.loads(platform.fal("keys", "create", "--scope", "READONLY", "--json").stdout)["key"]
    for key, status, says in ((readonly, 403, "DEPLOY"), ("a:b", 401, "not valid"), ("", 401, "needs an API key")):
        with pytest.raises(InvalidStatus) as refused, opened(platform, runner, key):
            pass
        assert refused.value.response.status_code == status
        assert says in bytes(refused.value.response.body or b"").decode()


def opened(platform: PlatformUnderTest, runner: str, key: str) -> Any:
    url = f"{platform.url.replace('http', 'ws')}/api/v1/apps/tester/typed-at/workers/{runner}/exec"
    headers = {"Authorization": f"Key {key}"} if key else {}
    return connect(url, additional_headers=headers, proxy=None)
