"""Sending an app to the server and showing its build: what ``fal run`` and ``fal deploy`` have in common.

Leaves where the server is to ``fal._platform`` and what is printed afterwards to the two commands.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fal._loading import LoadedApp
from fal._problem import Problem
from fal._server import ControlApi, StreamBroken
from fal.cli.console import Screen, amount

#: Reconnects to a build's event stream before giving up; a gateway that restarts is back within seconds.
_RECONNECTS = 10
#: Seconds for the alias to follow a finished build.
_POINT_SECONDS = 15.0


@dataclass(frozen=True)
class Built:
    """A revision whose environment is ready. ``app`` is ``owner/name``."""

    app: str
    revision: str
    urls: Mapping[str, Any]
    auth: str

    def endpoint_urls(self, path: str) -> tuple[str, str]:
        """Where to POST to one endpoint: waiting for the result, and through the queue."""
        known = self.urls.get("endpoints", {}).get(path)
        if known:
            return str(known["sync"]), str(known["queue"])
        suffix = "" if path == "/" else path
        return f"{self.urls['sync']}{suffix}", f"{self.urls['queue']}{suffix}"


@dataclass
class Delivery:
    """One app on its way to one server. ``app`` is known as soon as the server has registered it."""

    api: ControlApi
    screen: Screen
    app: str | None = None

    def begin(
        self,
        loaded: LoadedApp,
        *,
        ephemeral: bool,
        message: str | None = None,
        reset_scale: bool = False,
        no_cache: bool = False,
        strategy: str = "rolling",
    ) -> dict[str, Any]:
        """Upload what is missing and register; a second ephemeral one is a new revision of the same app.

        Returns:
            What the server says of the revision, which it builds from now on: for ``finish``.

        Raises:
            Problem: refused.
        """
        self._upload(loaded.uploads)
        registered = self.api.deploy(
            loaded.spec.to_json(),
            [asdict(file) for file in loaded.bundle.files],
            ephemeral=ephemeral,
            message=message,
            reset_scale=reset_scale,
            no_cache=no_cache,
            replaces=self.app if ephemeral else None,
            strategy=strategy,
        )
        warn_of_missing_secrets(self.screen, registered, loaded.spec.env)
        self.app = str(registered["app"])
        return registered

    def finish(self, loaded: LoadedApp, registered: Mapping[str, Any]) -> Built:
        """Wait for the environment of what has begun, and show its build.

        Raises:
            Problem: the build failed (its lines have been shown).
        """
        app, revision = str(registered["app"]), str(registered["revision"])
        final = self._watch(app, revision, self.api.server_time or time.time())
        urls = {**registered.get("urls", {}), **(final.get("urls") or {})}
        alias = self._wait_pointed(app, revision)
        return Built(app, revision, urls, str(alias.get("auth") or loaded.spec.auth or "private"))

    def _upload(self, uploads: Mapping[str, Path]) -> None:
        missing = self.api.missing(uploads)
        size = sum(uploads[sha256].stat().st_size for sha256 in missing)
        with self.screen.progress("Sending files", size) as advance:
            for sha256 in missing:
                self.api.upload(sha256, uploads[sha256], advance)
        if missing:
            self.screen.line(f"Sent {len(missing)} file{'s' * (len(missing) != 1)} ({amount(size)})", "dim")

    def _wait_pointed(self, app: str, revision: str) -> dict[str, Any]:
        """The alias, once it points at the revision: a URL that is shown must answer."""
        deadline = time.monotonic() + _POINT_SECONDS
        alias: dict[str, Any] = {}
        while time.monotonic() < deadline:
            response = self.api.request("GET", self.api.app_path(app), allow=(404,))
            if response.status_code == 200:
                alias = response.json()
                if alias.get("revision") == revision:
                    return alias
            time.sleep(0.05)
        if not alias:
            raise Problem(
                f"{app} was built, but the server does not serve it.",
                why=f"revision {revision} got no address within {_POINT_SECONDS:.0f} seconds.",
                next_step="run the same command again; the operator finds more in the jobs service's log.",
            )
        return alias  # another deploy was faster

    def _watch(self, app: str, revision: str, asked_at: float) -> dict[str, Any]:
        """Show the build's lines until its state is final; lines of a build that was made earlier are held back."""
        self.screen.line("Building environment...", "bold")
        begun = time.monotonic()
        lines: list[dict[str, Any]] = []
        for attempt in range(_RECONNECTS):
            seen = 0
            try:
                for event in self.api.build_events(app, revision):
                    if event.get("type") == "state":
                        return self._finished(event, time.monotonic() - begun, lines, asked_at)
                    seen += event.get("type") == "log"
                    if event.get("type") == "log" and seen > len(lines):  # a new connection begins at the beginning
                        lines.append(event)
                        if not _is_old(event, asked_at):
                            self.screen.log(event)
            except StreamBroken:
                pass
            time.sleep(min(0.2 * 2**attempt, 3.0))
        raise Problem(
            f"The connection to {self.api.target.url} was lost during the build of {app}.",
            next_step="run the same command again: what is built already is kept.",
        )

    def _finished(
        self, event: dict[str, Any], seconds: float, lines: list[dict[str, Any]], asked_at: float
    ) -> dict[str, Any]:
        if event.get("state") != "READY":
            # Another deploy's build of the same environment may have failed before this one asked.
            if all(_is_old(line, asked_at) for line in lines):
                for line in lines:
                    self.screen.log(line)
            raise _build_problem(str(event.get("error") or "The builder gave no reason."), lines)
        notes = event.get("notes") or {}
        for text in _worth_saying(notes):
            self.screen.note(text)
        old = bool(lines) and _is_old(lines[-1], asked_at)
        self.screen.tick("Build complete " + ("(built before)" if old else f"({seconds:.1f} s)"))
        return event


def warn_of_missing_secrets(screen: Screen, answer: Mapping[str, Any], env: str) -> None:
    """Secrets that the app lists and nobody has set."""
    where = "" if env == "main" else f" --env {env}"
    for name in answer.get("missing_secrets", ()):
        screen.warning(f"the app lists the secret {name}, which is not set: `fal secrets set {name}{where}`.")


def _build_problem(error: str, lines: list[dict[str, Any]]) -> Problem:
    """The builder's reason, without what its log has just said."""
    said = "\n".join(str(line.get("message", "")) for line in lines)
    first, *rest = error.strip().split("\n")
    why, _, step = first.partition(" Next: ")
    return Problem(
        "The environment could not be built.",
        detail=[line for line in rest if line.strip() not in said],
        why="" if why in said else why,
        next_step=step or "correct `requirements` in the class and run the same command again.",
    )


def _is_old(line: dict[str, Any], asked_at: float) -> bool:
    """Whether a line was written before this deploy was asked for, by the server's clock."""
    at = line.get("at")
    return isinstance(at, (int, float)) and at < asked_at - 2.0


def _worth_saying(notes: Mapping[str, Any]) -> list[str]:
    """What a user should know of an environment: a set of versions that is not simply the newest, a slow stand-in."""
    said = []
    resolved = notes.get("resolved")
    if resolved and resolved != "as written":
        said.append(
            f"Versions resolved {resolved}; constraints = [...] or exclude_newer in the class decide otherwise."
        )
    if notes.get("cpu_only"):
        said.append("torch was installed in its CPU build: the builder's machine has no GPU.")
    if notes.get("cpu_fallback"):
        said.append(f"CPU fallback: {notes['cpu_fallback']}.")
    return said
