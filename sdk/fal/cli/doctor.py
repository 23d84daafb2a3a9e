"""``fal doctor``: is this machine's fal command set up, and does it reach a server that knows its key?

Leaves the server's own machine to ``keepwarm doctor``, whose findings are shown below when it is installed here.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import click

from fal.cli.options import json_option


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it stands, and the next step when it is not fine."""

    subject: str
    ok: bool
    detail: str
    next_step: str = ""


@click.command("doctor")
@json_option
def command(as_json: bool) -> None:
    """Check this machine and the way to the server; exits 1 when `fal deploy` could not work."""
    from fal.cli.console import Screen, print_json

    findings = examine()
    healthy = all(finding.ok for finding in findings)
    if as_json:
        print_json({"healthy": healthy, "findings": [asdict(finding) for finding in findings]})
    else:
        screen = Screen()
        for finding in findings:
            screen.parts(
                ("✓ " if finding.ok else "✗ ", "green" if finding.ok else "red"),
                (f"{finding.subject:<10} ", "bold"),
                (finding.detail, ""),
            )
            if finding.next_step and not finding.ok:
                screen.line(f"             → {finding.next_step}")
        if find_spec("keepwarm") is not None:
            screen.rule("keepwarm doctor", "dim")
            subprocess.run([sys.executable, "-m", "keepwarm", "doctor"], check=False)
    sys.exit(0 if healthy else 1)


def examine() -> list[Finding]:
    """Look at the command, its settings and its server; changes nothing."""
    from fal import __version__
    from fal._config import Config
    from fal._platform import find_server
    from fal._problem import Problem

    findings = [Finding("fal", True, f"{__version__}, Python {sys.version.split()[0]} ({sys.executable})")]
    try:
        config = Config.load()
        findings.append(Finding("settings", True, f"{config.path}, profile {config.profile or 'none'}"))
        target = find_server()
    except Problem as problem:
        return [*findings, Finding("server", False, problem.what, problem.next_step or problem.why)]
    return [*findings, *_ask(target)]


def _ask(target: Any) -> list[Finding]:
    from fal._platform import answers
    from fal._problem import Problem
    from fal._server import ControlApi

    where = f"{target.url} ({target.source})"
    if not answers(target.url):
        return [Finding("server", False, f"{where} does not answer", "start it, or set KEEPWARM_URL to one that runs.")]
    found = [Finding("server", True, where)]
    try:
        found.append(Finding("key", True, f"known; it acts for {ControlApi(target).owner()!r}"))
    except Problem as problem:
        found.append(Finding("key", False, problem.what, problem.next_step))
    return found
