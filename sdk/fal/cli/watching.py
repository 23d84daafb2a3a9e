"""Runners of an app as they come and go, told in the log of a ``fal run``.

Owns asking and comparing. Leaves the app's own lines to the session.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from fal._problem import Problem
from fal.cli.console import Screen

_LOOK_SECONDS = 1.0


class RunnerWatch:
    """Looks once a second, in a thread, and says what has changed.

    Args:
        api: the server; ``app`` is ``owner/name``.
    """

    def __init__(self, api: Any, app: str, screen: Screen) -> None:
        self._api = api
        self._path = api.app_path(app, "/workers")
        self._screen = screen
        self._known: dict[str, dict[str, Any]] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="runner-watch")

    def __enter__(self) -> RunnerWatch:
        self._thread.start()
        return self

    def __exit__(self, *reason: object) -> None:
        # Not joined: it may wait for a server that has just gone, and Ctrl-C must not.
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.wait(_LOOK_SECONDS):
            try:
                self.once()
            except Problem:
                continue  # the session notices a server that is gone

    def once(self) -> None:
        """Look, and say what is new.

        Raises:
            Problem: the server does not answer.
        """
        seen = {str(item.get("worker_id")): item for item in self._api.items(self._path)}
        if self._stopping.is_set():
            return
        for worker_id, worker in seen.items():
            before = self._known.get(worker_id, {}).get("state")
            if text := _news(worker, before):
                self._say(worker_id, text)
        for worker_id in self._known.keys() - seen.keys():
            if self._known[worker_id].get("state") != "TERMINATED":
                self._say(worker_id, "has stopped")
        self._known = seen

    def _say(self, worker_id: str, text: str) -> None:
        self._screen.log({"at": time.time(), "level": "debug", "message": f"runner {worker_id[:8]} {text}"})


def _news(worker: dict[str, Any], before: Any) -> str | None:
    """What a user should hear of a runner that was in state ``before``; None when that is nothing."""
    state = worker.get("state")
    if state == before:
        return None
    if state in ("PENDING", "SETUP"):
        standing = worker.get("cpu_fallback_for")
        where = f"the CPU of {worker.get('host')}, standing in for {standing}: slow" if standing else ""
        where = where or f"{worker.get('machine_type')} of {worker.get('host')}"
        return f"starts on {where}" if before is None else "runs setup()"
    if state in ("IDLE", "RUNNING"):
        return f"is ready{start_times(worker)}" if before in (None, "PENDING", "SETUP") else None
    if state == "DRAINING":
        return "finishes what it has and stops" + _reason(worker)
    return "has stopped" + _reason(worker) if state == "TERMINATED" else None


def _reason(worker: dict[str, Any]) -> str:
    return f": {worker['reason']}" if worker.get("reason") else ""


def start_times(worker: dict[str, Any]) -> str:
    """`` after 2.4 s (zygote; import 0.3, setup 1.9)``; empty when nothing was measured."""
    stages = {k: v for k, v in (worker.get("stages") or {}).items() if isinstance(v, (int, float))}
    total = stages.pop("total", None)
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in stages.items() if seconds >= 0.05)
    text = f" after {total:.1f} s" if total is not None else ""
    details = "; ".join(part for part in (worker.get("start_kind"), parts) if part)
    return text + (f" ({details})" if details else "")
