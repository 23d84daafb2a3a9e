"""`fal run` in the background, as a user's terminal has it."""

from __future__ import annotations

import re
import signal
import subprocess
import threading
from pathlib import Path

import psutil

from tests.support.platform import BIN, ROOT, command_environ
from tests.support.waiting import wait_until


class Running:
    """A `fal run` in the background whose output is collected."""

    def __init__(self, home: Path, *arguments: str) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [str(BIN / "fal"), "run", *arguments],
            cwd=ROOT,
            env=command_environ(home),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                self.lines.append(line.rstrip("\n"))

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def url(self) -> str:
        def find() -> str | None:
            for line in list(self.lines):
                if match := re.fullmatch(r"Access your exposed service at (\S+)", line.strip()):
                    return match[1]
            assert self.process.poll() is None, self.output
            return None

        return wait_until(find, "the line with the service's address", timeout=120) or ""

    def forget_url(self) -> None:
        """What was said so far is no answer to `url()` any more."""
        self.lines = [line for line in self.lines if not line.startswith("Access your")]

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(60)
        self.reader.join(10)
        return code


def processes_of(home: Path) -> list[psutil.Process]:
    """Processes whose environment names that HOME or a folder in it."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        try:
            if any(str(home) in value for value in process.environ().values()):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def curl(*arguments: str) -> str:
    done = subprocess.run(
        ["curl", "-sS", "--noproxy", "*", *arguments], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout
