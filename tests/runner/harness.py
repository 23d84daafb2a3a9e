"""Drives a real runner process over a real socketpair, as the supervisor does."""

from __future__ import annotations

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

M = TypeVar("M", bound=Message)
SDK = Path(fal.__file__).parents[1]
BASE_URL = "http://platform.test:8000"
#: The runner's interpreter; another one than the tests' own in test_pythons.
PYTHON = os.environ.get("KEEPWARM_TEST_RUNNER_PYTHON", sys.executable)


@dataclass
class Runner:
    """A runner process and everything that it has said."""

    process: subprocess.Popen[bytes]
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
