"""A whole platform as a user starts it: the ``keepwarm`` and ``fal`` commands as processes, nothing in-process."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def command_environ(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a user's shell: an own HOME, the commands on PATH, none of our settings."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("KEEPWARM_", "FAL_"))}
    environ |= {"HOME": str(home), "PATH": f"{BIN}{os.pathsep}{environ.get('PATH', '')}", "PYTHONUNBUFFERED": "1"}
    return environ | dict(extra or {})


@dataclass
class PlatformUnderTest:
    """``keepwarm up`` on a data folder of its own.

    Args:
        data: the data folder; ``environments`` and ``uv-cache`` may be links to folders that several tests share.
        arguments: further arguments of ``keepwarm up``.
    """

    data: Path
    arguments: tuple[str, ...] = ()
    environ: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    url: str = ""
    key: str = ""

    def start(self) -> PlatformUnderTest:
        self.data.mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(str(BIN / "keepwarm"), "up", "--port", "0", "--data", str(self.data)),
                    *("--owner", "tester", "--fsync", "everysec"),
                    *self.arguments,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=command_environ(self.data, self.environ),
                cwd=self.data,
            )
        self.url = wait_until(self._up, f"keepwarm up on {self.data}", timeout=60)["url"]
        self.key = (self.data / "admin.key").read_text().strip()
        return self

    @property
    def log(self) -> Path:
        return self.data / "logs" / "up.log"

    def _up(self) -> dict[str, Any]:
        """What platform.json says once it is this process's own: a killed platform leaves its file behind."""
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"keepwarm up ended: {self.log.read_text()[-4000:]}")
        file = self.data / "platform.json"
        record: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        return record if record.get("pid") == self.process.pid else {}

    def stop(self) -> None:
        """As Ctrl-C does; fails when it does not end or leaves a process behind."""
        process = self.process
        if process is None or process.poll() is not None:
            return
        below = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        process.wait(60)
        _, left = psutil.wait_procs(below, timeout=10)
        assert not left, f"left running: {[p.cmdline() for p in left if p.is_running()]}"

    def shell(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """A developer's shell that knows this platform."""
        known = {"KEEPWARM_URL": self.url, "FAL_KEY": self.key, "KEEPWARM_DATA": str(self.data)}
        return command_environ(self.data, known | dict(extra or {}))

    def env(self) -> dict[str, str]:
        """What ``keepwarm env`` tells a shell to export."""
        command = [str(BIN / "keepwarm"), "env", "--data", str(self.data)]
        done = subprocess.run(command, env=command_environ(self.data), capture_output=True, text=True, check=True)
        return dict(line.split("=", 1) for line in done.stdout.splitlines())

    def fal(self, *arguments: str, check: bool = True, timeout: float = 900) -> subprocess.CompletedProcess[str]:
        """Run the ``fal`` command against this platform, from the project's root."""
        return self.fal_in(self.shell(), *arguments, check=check, timeout=timeout)

    def fal_in(
        self, shell: Mapping[str, str], *arguments: str, check: bool = True, timeout: float = 900
    ) -> subprocess.CompletedProcess[str]:
        """The same in a shell with other variables."""
        done = subprocess.run(
            [str(BIN / "fal"), *arguments],
            env=dict(shell),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check:
            assert done.returncode == 0, f"fal {' '.join(arguments)}: {done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done

    def deploy(self, file: str | Path, name: str, *arguments: str, auth: str = "public") -> str:
        """Deploy ``file::name`` and return the URL to POST to."""
        done = self.fal("deploy", f"{file}::{name}", "--auth", auth, "--json", *arguments)
        app = json.loads(done.stdout.strip().splitlines()[-1])["app_name"]
        return f"{self.url}/{app if '/' in app else f'tester/{app}'}"

    def client(self, **options: Any) -> httpx.Client:
        """An HTTP client that carries the platform's key."""
        options.setdefault("timeout", 120.0)
        if self.url.startswith("https:"):
            options.setdefault("verify", ssl.create_default_context(cafile=str(self.data / "tls" / "roots.pem")))
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Key {self.key}"}, trust_env=False, **options)

    def workers(self, app: str) -> list[dict[str, Any]]:
        """The app's workers as the control API shows them; ``app`` is ``owner/name``."""
        with self.client() as client:
            answer = client.get(f"/api/v1/apps/{app}/workers")
            answer.raise_for_status()
            items: list[dict[str, Any]] = answer.json()["items"]
            return items
