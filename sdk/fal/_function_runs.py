"""The apps that one process runs for the functions that it calls: made once per definition, gone with the process.

Owns when they are made and removed, and showing their logs. Leaves servers and sessions to ``fal._ephemeral``.
"""

from __future__ import annotations

import atexit
import os
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import httpx

from fal._config import Target
from fal._ephemeral import Platform, platform_for
from fal._function_loading import load_function
from fal._platform import trusted_roots
from fal._problem import Problem
from fal.cli.building import Delivery
from fal.cli.console import Screen

if TYPE_CHECKING:
    from fal._functions import IsolatedFunction

_PAGE = 1000


#: Of a connection that carries nothing while the function runs: looks for a caller or gateway that has vanished.
_KEEP_ALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), n)
        for name, n in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10))
        if hasattr(socket, name)
    ),
]


class Run:
    """One app. ``app`` is ``owner/name``; ``url`` is where it answers, ``http`` who asks it there.

    Args:
        screen: what to show its log on.
        at_once: calls of it that may be under way together.
    """

    def __init__(self, platform: Platform, app: str, url: str, screen: Callable[[], Screen], at_once: int) -> None:
        self.app = app
        self.url = url
        #: the app or its platform has gone
        self.gone = False
        self._platform = platform
        self._screen = screen
        self._shown = (0, 0)
        self._showing = threading.Lock()
        self._wishes = count(1)
        self._newest_wish = self._fulfilled = 0
        self.http = _client(platform.api.target, at_once)
        threading.Thread(target=self._hold, daemon=True, name=f"fal-session-{app}").start()

    def _hold(self) -> None:
        try:
            for event in self._platform.log_while_it_lasts(self.app):
                with self._showing:
                    self._show(event)
        except Problem:
            self.gone = True  # the next call makes another one, or says what is wrong
        except Exception:  # noqa: BLE001 - the client is closed under it when the process ends
            self.gone = True

    def _show(self, line: dict[str, Any]) -> None:
        milliseconds, _, number = str(line.get("id", "0-0")).partition("-")
        place = (int(milliseconds), int(number or 0))
        if place > self._shown:
            self._shown = place
            with suppress(ValueError, OSError):  # standard error is closed: the value is worth more than its log
                self._screen().log(line)

    def show_log(self) -> None:
        """Show what the app has printed up to now: all of a call that has ended."""
        path = self._platform.api.app_path(self.app, "/logs")
        mine = self._newest_wish = next(self._wishes)
        with self._showing:
            if self._fulfilled >= mine:
                return  # somebody has looked since this call ended
            fulfilled = self._newest_wish
            while True:
                after = "-".join(map(str, self._shown))
                try:
                    answer = self._platform.api.json("GET", path, params={"after": after, "limit": _PAGE})
                except Problem:
                    return
                for line in answer["items"]:
                    self._show(line)
                if len(answer["items"]) < _PAGE:
                    self._fulfilled = max(self._fulfilled, fulfilled)
                    return

    def lines_of(self, request_id: str) -> list[dict[str, Any]]:
        """What one call has printed."""
        path = self._platform.api.app_path(self.app, "/logs")
        try:
            answer = self._platform.api.json("GET", path, params={"request_id": request_id, "limit": _PAGE})
        except Problem:
            return []
        lines: list[dict[str, Any]] = answer["items"]
        return lines

    def remove(self) -> None:
        """Delete the app."""
        if not self.gone and (left := self._platform.remove(self.app)):
            self._screen().note(left)
        self.http.close()


def _client(target: Target, at_once: int) -> httpx.Client:
    # The function may run for hours: the platform ends it, not this side.
    timeout = httpx.Timeout(None, connect=10.0)
    limits = httpx.Limits(max_connections=at_once, keepalive_expiry=30.0)
    transport = httpx.HTTPTransport(verify=trusted_roots(target.url), limits=limits, socket_options=_KEEP_ALIVE)
    headers = {"Authorization": f"Key {target.key}"} if target.key else {}
    return httpx.Client(transport=transport, headers=headers, timeout=timeout)


@dataclass
class _Made:
    """A definition and the app that was, or is being, made for it."""

    options: dict[str, Any]
    run: Future[Run]


class Runs:
    """All apps of this process."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._starting = threading.Lock()
        self._stack = ExitStack()
        self._platform: Platform | None = None
        self._made: dict[Any, list[_Made]] = {}
        self._all: list[Run] = []
        self._shown_on: Any = None
        self._grace = 0.0
        atexit.register(self.end)

    def of(self, function: IsolatedFunction[Any, Any]) -> Run:
        """The app for calls of a function with these settings; made by the first who asks, others wait for that.

        Raises:
            Problem: it cannot be made, as told to whoever waited for it.
        """
        with self._lock:
            known = self._made.setdefault(function.raw_func, [])
            known[:] = [made for made in known if not _is_gone(made.run)]
            made = next((made for made in known if made.options == function.options), None)
            if made is not None:
                first = False
            else:
                made, first = _Made(function.options, Future()), True
                known.append(made)
        if first:
            try:
                made.run.set_result(self._make(function))
            except BaseException as error:
                with self._lock:
                    known.remove(made)
                made.run.set_exception(error)
                raise
        return made.run.result()

    def _screen(self) -> Screen:
        """Standard error as it is now: programs put others in its place."""
        if self._shown_on is None or self._shown_on[0] is not sys.stderr:
            self._shown_on = (sys.stderr, Screen(to_stderr=True))
        screen: Screen = self._shown_on[1]
        return screen

    def forget(self, run: Run) -> None:
        """The app is gone; the next call makes another one."""
        run.gone = True

    def _make(self, function: IsolatedFunction[Any, Any]) -> Run:
        loaded = load_function(function)
        with self._starting:
            self._grace = max(self._grace, loaded.spec.termination_grace_period_seconds)
            if self._platform is not None and self._platform.embedded is not None and self._platform.embedded.ended:
                self._stack.close()  # it has died; its successor's apps are others
                self._platform = None
            if self._platform is None:
                types = loaded.spec.machine_types
                self._platform = self._stack.enter_context(platform_for(types, lambda: self._grace, self._screen()))
            platform = self._platform
        delivery = Delivery(platform.api, self._screen())
        try:
            built = delivery.finish(loaded, delivery.begin(loaded, ephemeral=True))
        except BaseException:
            if delivery.app is not None:
                platform.remove(delivery.app)
            raise
        run = Run(platform, built.app, str(built.urls["sync"]), self._screen, self._at_once)
        with self._lock:
            self._all.append(run)
        return run

    def end(self) -> None:
        """Remove every app, and let a platform that was started for them go."""
        if self._pid != os.getpid():
            return  # a fork: all of this is its parent's
        try:
            for run in self._all:
                run.remove()
            self._made.clear()
            if self._platform is not None:
                self._platform.api.close()
                self._platform = None
            self._all.clear()
            self._stack.close()
        except KeyboardInterrupt:
            return


def _is_gone(run: Future[Run]) -> bool:
    return run.done() and (run.exception() is not None or run.result().gone)
