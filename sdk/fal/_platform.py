"""Which server the fal command talks to, configured or running on this machine, and what this machine offers.

Leaves starting a platform to ``fal._embedded`` and requests to ``fal._server``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import ssl
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fal._config import Config, Target, credentials, server_url
from fal._problem import Problem
from fal._spec import CPU_MACHINE_TYPES

_GPU_NAME = re.compile(r"""["'](GPU(?:-[A-Z0-9]+)*)["']""")


def data_dir(environ: Mapping[str, str] | None = None) -> Path:
    """The platform's data folder: ``KEEPWARM_DATA``, else ``~/.keepwarm``."""
    environ = os.environ if environ is None else environ
    return Path(environ.get("KEEPWARM_DATA") or "~/.keepwarm").expanduser().absolute()


def configured_server(environ: Mapping[str, str] | None = None, config: Config | None = None) -> Target | None:
    """The server that ``KEEPWARM_URL`` or the profile names, or None.

    A profile without ``host`` (a stock fal profile holds only a key for fal's cloud) names none.

    Raises:
        Problem: the address or the settings file is not usable.
    """
    environ = os.environ if environ is None else environ
    config = Config.load(environ) if config is None else config
    given = credentials(environ)
    if url := environ.get("KEEPWARM_URL", "").strip():
        return Target(server_url(url), given or _known_key(server_url(url), environ, config), "KEEPWARM_URL")
    if host := config.get("host"):
        return Target(server_url(host), given or config.get("key"), f"profile {config.profile!r} of {config.path}")
    return None


def _known_key(url: str, environ: Mapping[str, str], config: Config) -> str | None:
    """The key for ``url`` where no variable gives one: the profile's for that host, else this machine's own."""
    host = config.get("host")
    if host and server_url(host) == url and (key := config.get("key")):
        return key
    record = read_record(data_dir(environ))
    return read_admin_key(data_dir(environ)) if record and record.url == url else None


@dataclass(frozen=True)
class Record:
    """What a running platform says of itself in ``platform.json``."""

    url: str
    pid: int
    owner: str
    ephemeral: bool
    #: The roots to trust for ``url``, when the platform made its certificate itself.
    ca_bundle: str | None = None


def client_environ(url: str, *, official: bool) -> dict[str, str]:
    """The variables by which programs find the platform at ``url``; a key is not among them.

    Args:
        official: for the official Python client too, which speaks HTTPS whatever the address says.
    """
    environ = {"KEEPWARM_URL": url}
    if official:
        address = url.partition("://")[2]
        environ |= {"FAL_RUN_HOST": f"{address}/run", "FAL_QUEUE_RUN_HOST": f"{address}/queue"}
    return environ


def read_record(folder: Path) -> Record | None:
    """The platform that last ran on a data folder, or None; it may have died since."""
    try:
        content = json.loads((folder / "platform.json").read_text(encoding="utf-8"))
        return Record(
            str(content["url"]),
            int(content["pid"]),
            str(content["owner"]),
            bool(content.get("ephemeral", False)),
            content.get("ca_bundle"),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_admin_key(folder: Path) -> str | None:
    """The key that the platform made for this machine's user, or None."""
    try:
        return (folder / "admin.key").read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def running_platform(environ: Mapping[str, str] | None = None) -> Target | None:
    """The platform that runs on this machine's data folder and answers, or None."""
    environ = os.environ if environ is None else environ
    folder = data_dir(environ)
    record = read_record(folder)
    if record is None or not _exists(record.pid) or not answers(record.url):
        return None
    key = read_admin_key(folder) or credentials(environ)
    return Target(record.url, key, f"the platform running on {folder}", local=True)


def find_server(environ: Mapping[str, str] | None = None) -> Target:
    """The configured server (for an app, its host says ``KEEPWARM_URL``), else the one running on this machine.

    Raises:
        Problem: there is none.
    """
    target = configured_server(environ) or running_platform(environ)
    if target is None:
        raise Problem(
            "No platform to talk to.",
            why=f"KEEPWARM_URL is not set, no profile names a host, and none runs on {data_dir(environ)}.",
            next_step="start one with `keepwarm up` (it stays in the foreground), or set KEEPWARM_URL.",
        )
    return target


def server_for(host: str | None, key: str | None, profile: str | None) -> Target:
    """The server that a program names itself; what it leaves out comes from where the ``fal`` command has it.

    Raises:
        Problem: there is none, or the profile is unknown.
    """
    environ = dict(os.environ)
    if profile is not None:
        # A profile that is asked for counts more than what the shell was set up with.
        environ["FAL_PROFILE"] = profile
        for name in ("KEEPWARM_URL", "FAL_KEY", "FAL_KEY_ID", "FAL_KEY_SECRET"):
            environ.pop(name, None)
    if host is not None:
        environ["KEEPWARM_URL"] = host
    if key is not None:
        environ["FAL_KEY"] = key
    target = find_server(environ)
    return target if key is None else replace(target, key=key)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def trusted_roots(url: str, environ: Mapping[str, str] | None = None) -> ssl.SSLContext | bool:
    """What to verify ``url`` against, as httpx takes it: this machine's own platform may have made its certificate
    itself; True is the usual roots."""
    if not url.startswith("https:"):
        return True
    record = read_record(data_dir(environ))
    if record is None or record.url != url or not record.ca_bundle:
        return True
    try:
        return ssl.create_default_context(cafile=record.ca_bundle)
    except OSError:
        return True


def answers(url: str, timeout: float = 2.0) -> bool:
    """Whether ``GET /health`` says that requests can be taken."""
    import httpx

    loopback = Target(url, None, "").on_loopback
    try:
        verify = trusted_roots(url)
        return httpx.get(f"{url}/health", timeout=timeout, trust_env=not loopback, verify=verify).status_code == 200
    except httpx.HTTPError:
        return False


class MachineCheck:
    """The operator command's answer to "does this machine offer one of these types?", asked in the background.

    Started early, on a guess, it costs no time beside the reading of the app's file.
    """

    def __init__(self, machine_types: tuple[str, ...]) -> None:
        self.machine_types = machine_types
        command = [sys.executable, "-P", "-m", "keepwarm", "doctor", "--json"]
        for name in machine_types:
            command += ["--machine-type", name]
        self._process: subprocess.Popen[str] | None = None
        with contextlib.suppress(OSError):
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )

    def refusal(self) -> str | None:
        """The refusal; None when a type is offered, or when nobody here can say: then the platform itself decides."""
        if self._process is None:
            return None
        try:
            report = json.loads(self._process.communicate(timeout=20)[0])
        except (subprocess.TimeoutExpired, ValueError):
            return None
        finally:
            self.stop()
        text = report.get("refusal") if isinstance(report, dict) else None
        return text if isinstance(text, str) else None

    def stop(self) -> None:
        """The answer is not wanted any more."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def guess_check(file: Path, environ: Mapping[str, str] | None = None) -> MachineCheck | None:
    """Ask about the GPU type that a file seems to want, unless a server is likely to be there to ask."""
    environ = os.environ if environ is None else environ
    if environ.get("KEEPWARM_URL") or (data_dir(environ) / "platform.json").exists():
        return None
    try:
        names = set(_GPU_NAME.findall(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError):
        return None
    return MachineCheck((names.pop(),)) if len(names) == 1 else None


def check_machine(machine_types: tuple[str, ...], begun: MachineCheck | None = None) -> None:
    """Ask this machine whether it offers one of ``machine_types`` before anything is started for it.

    Args:
        begun: a check that was started on a guess; used when the guess was right.

    Raises:
        Problem: it offers none; the text is the operator command's own.
    """
    if any(name in CPU_MACHINE_TYPES for name in machine_types):
        return
    right = begun is not None and begun.machine_types == machine_types
    check = begun if begun is not None and right else MachineCheck(machine_types)
    if (text := check.refusal()) is not None:
        raise Problem.of_text(text)
