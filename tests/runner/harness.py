"""Drives a real runner process over a real socketpair, as the supervisor does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import fal
from fal._runner.protocol import (
    FrameBuffer,
    Headers,
    Hello,
    Log,
    Message,
    Ready,
    Request,
    Response,
    Start,
    encode,
)

from gpu_worker import process_tree
from tests.support.adopted import Adopted

M = TypeVar("M", bound=Message)
SDK = Path(fal.__file__).parents[1]
BASE_URL = "http://platform.test:8000"
#: The runner's interpreter; another one than the tests' own in test_pythons.
PYTHON = os.environ.get("KEEPWARM_TEST_RUNNER_PYTHON", sys.executable)
#: Every runner of the tests is then forked from a zygote: the whole folder must pass both ways.
STARTS_FROM_ZYGOTES = os.environ.get("KEEPWARM_TESTS_START") == "zygote"


@dataclass
class Runner:
    """A runner process and everything that it has said."""

    process: subprocess.Popen[bytes] | Adopted
    sock: socket.socket
    files_dir: Path
    heard: list[Message] = field(default_factory=list)
    _frames: FrameBuffer = field(default_factory=FrameBuffer)
    _unread: list[Message] = field(default_factory=list)

    def send(self, message: Message) -> None:
        self.sock.sendall(encode(message))

    def hear(self, timeout: float = 30.0) -> Message:
        """The next message; EOFError when the runner's end is closed."""
        deadline = time.monotonic() + timeout
        while not self._unread:
            self.sock.settimeout(max(0.01, deadline - time.monotonic()))
            data = self.sock.recv(1 << 20)
            if not data:
                raise EOFError(f"the runner has gone; it said {self.heard[-5:]}; exit code {self.process.wait(10)}")
            self._unread.extend(self._frames.feed(data))
        message = self._unread.pop(0)
        self.heard.append(message)
        return message

    def expect(self, kind: type[M], timeout: float = 30.0) -> M:
        """The next message of ``kind``; others stay in ``heard``."""
        while True:
            message = self.hear(timeout)
            if isinstance(message, kind):
                return message

    def all(self, kind: type[M]) -> list[M]:
        return [message for message in self.heard if isinstance(message, kind)]

    def logs(self, level: str | None = None) -> list[str]:
        return [log.message for log in self.all(Log) if level is None or log.level == level]

    def ready(self) -> Ready:
        return self.expect(Ready)

    def request(
        self,
        id: str = "r1",
        body: bytes = b"",
        path: str = "/",
        *,
        method: str = "POST",
        headers: Iterable[tuple[bytes, bytes]] = ((b"content-type", b"application/json"),),
        query: bytes = b"",
        stream: bool = True,
    ) -> None:
        self.send(Request(id, 1, method, path, query, list(headers), body, BASE_URL, stream))

    def call(self, body: bytes = b"", path: str = "/", *, id: str = "r1", **options: Any) -> Response:
        self.request(id, body, path, **options)
        return self.expect(Response)

    def wait(self, timeout: float = 20.0) -> int:
        return self.process.wait(timeout)

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sock.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


def header(headers: Headers, name: bytes) -> bytes | None:
    return next((value for key, value in headers if key.lower() == name), None)


def spawn(folder: Path, *, python: str = PYTHON, environment: dict[str, str] | None = None) -> Runner:
    """A runner process that has said Hello and waits for Start. ``folder`` gets a bundle and a files folder."""
    ours, theirs = socket.socketpair()
    (folder / "files").mkdir(exist_ok=True)
    env = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(SDK), "FAL_DATA_DIR": str(folder / "data")}
    if STARTS_FROM_ZYGOTES:
        theirs.close()
        ours.close()
        return fork(folder, python, {**env, **(environment or {})})
    process = subprocess.Popen(
        [python, "-m", "fal._runner", "--fd", str(theirs.fileno())],
        cwd=folder,
        env={**env, **(environment or {})},
        pass_fds=[theirs.fileno()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    theirs.close()
    runner = Runner(process, ours, folder / "files")
    runner.expect(Hello)
    return runner


def fork(folder: Path, python: str, environ: dict[str, str], *modules: str) -> Runner:
    """The same, forked from a zygote that has imported ``modules``; ours to wait for, as its supervisor's parent is."""
    process_tree.adopt_orphans()
    (folder / "bundle").mkdir(exist_ok=True)
    lessons = folder / "lessons.json"
    lessons.write_text(json.dumps({"modules": modules}))
    agent, zygotes = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    popen = subprocess.Popen(
        [python, "-m", "fal._runner", "--zygote", str(zygotes.fileno()), str(lessons)],
        cwd=folder,
        env=environ,
        pass_fds=[zygotes.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    zygotes.close()
    agent.settimeout(60)
    assert "ready" in json.loads(agent.recv(65536))
    ours, theirs = socket.socketpair()
    (output, output_end), (errors, errors_end), (report, report_end) = os.pipe(), os.pipe(), os.pipe()
    # In the supervisor's place stands a program that ends at once and leaves the runner to us.
    order = {"parent": os.getpid(), "command": ["/bin/true"], "environ": {}, "cwd": "/", "oom_score_adj": 0}
    given = [0, 1, 2, ours.fileno(), output, errors, theirs.fileno(), output_end, errors_end, report_end]
    socket.send_fds(agent, [json.dumps(order).encode()], given)
    theirs.close()
    for descriptor in (output_end, errors_end, report_end):
        os.close(descriptor)
    with open(report, "rb") as told:
        supervisor = Adopted(int(told.read().removeprefix(b"born: ")))
    assert supervisor.wait() == 0
    agent.close()
    popen.wait()
    word = {"parent": os.getpid(), "environ": environ, "cwd": str(folder), "bundle_dir": str(folder / "bundle")}
    text = json.dumps({**word, "entry_file": "app.py"}).encode()
    ours.sendall(len(text).to_bytes(4, "big") + text)
    process = Adopted(-1, open(output, "rb", 0), open(errors, "rb", 0))  # noqa: SIM115 - closed with the runner
    runner = Runner(process, ours, folder / "files")
    hello = runner.expect(Hello)
    assert hello.start_kind == "zygote"
    process.pid = hello.pid
    return runner


def start(
    folder: Path,
    source: str | None = None,
    class_name: str = "Demo",
    *,
    entry_file: str = "app.py",
    python: str = PYTHON,
    environment: dict[str, str] | None = None,
    **fields: Any,
) -> Runner:
    """A runner that has been told to load ``source`` (written to ``entry_file`` of the bundle)."""
    bundle = folder / "bundle"
    if source is not None:
        (bundle / entry_file).parent.mkdir(parents=True, exist_ok=True)
        (bundle / entry_file).write_text(source)
    runner = spawn(folder, python=python, environment=environment)
    runner.send(
        Start(
            app="me/demo",
            entry_file=entry_file,
            class_name=class_name,
            bundle_dir=str(bundle),
            files_dir=str(folder / "files"),
            revision="rev1",
            worker_id="w1",
            machine_type="S",
            **fields,
        )
    )
    return runner
