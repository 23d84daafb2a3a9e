"""An app that lasts as long as this process: the server for it, its session, its end.

Owns finding a server or starting one, and the open connection that keeps the app alive. Leaves reading and sending apps
to others, and what is printed to the screen that is given.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from fal._problem import Problem

if TYPE_CHECKING:
    from fal._embedded import EmbeddedPlatform
    from fal._platform import MachineCheck
    from fal._server import ControlApi, Json

#: Tries to get a broken session back; a gateway that restarts is back within seconds.
_RECONNECTS = 6


class Screen(Protocol):
    """Where it is said what happens."""

    def line(self, text: str = "", style: str = "") -> None: ...
    def note(self, text: str) -> None: ...


class Platform:
    """The server of one process, and whether it was started for it."""

    def __init__(self, api: ControlApi, embedded: EmbeddedPlatform | None = None) -> None:
        self.api = api
        self.embedded = embedded

    def gone(self, app: str) -> Problem:
        """Why the app ``owner/name`` does not answer any more."""
        from fal._platform import answers

        url = self.api.target.url
        if answers(url):
            return Problem(f"{app} is gone: it was deleted on the server, or the connection was lost for too long.")
        return Problem(
            f"The platform at {url} has stopped.", detail=self.embedded.last_lines() if self.embedded else ()
        )

    def log_while_it_lasts(self, app: str) -> Iterator[Json]:
        """The lines of the app's log as they come; the open connection is what keeps the app alive.

        Raises:
            Problem: the app or its platform went away.
        """
        from fal._server import StreamBroken

        path, last, failures = self.api.app_path(app, "/session"), "0", 0
        while failures < _RECONNECTS and not (self.embedded is not None and self.embedded.ended):
            begun = time.monotonic()
            try:
                for event in self.api.events(path, params={"after": last}):
                    if event.get("type") == "log":
                        last = str(event.get("id", last))
                        yield event
            except StreamBroken:
                pass
            except Problem as problem:
                if problem.status in (401, 403, 404, 409):
                    raise self.gone(app) from problem
            # A session that held for a while was a good one: its end starts the count anew.
            failures = 1 if time.monotonic() - begun > 10 else failures + 1
            time.sleep(min(0.1 * 2**failures, 3.0))
        raise self.gone(app)

    def remove(self, app: str) -> str | None:
        """Delete the app; a sentence when that failed. The server removes it as well, once its session is silent."""
        try:
            self.api.request("DELETE", self.api.app_path(app), allow=(404,), timeout=10.0)
        except Problem as problem:
            return f"{app} could not be removed now: {problem.what}"
        return None


@contextlib.contextmanager
def platform_for(
    machine_types: tuple[str, ...],
    grace: Callable[[], float],
    screen: Screen,
    *,
    cpu_fallback: bool = False,
    check: MachineCheck | None = None,
) -> Iterator[Platform]:
    """The configured server, else the one running here, else one started now and seen off afterwards.

    Args:
        machine_types: what the app asks for, which a platform that is started now must offer.
        grace: seconds that a request which still runs has at the end; for what is said then.
        check: an answer to that question that was begun before.

    Raises:
        Problem: there is none and none can be started.
    """
    from fal import _platform
    from fal._server import ControlApi

    target = _platform.configured_server()
    if target is not None:
        if cpu_fallback:
            screen.note("--cpu-fallback is the operator's choice on a running platform: `keepwarm up --cpu-fallback`.")
        yield Platform(ControlApi(target))
        return
    from fal._embedded import EmbeddedPlatform, RunLock

    lock = RunLock(_platform.data_dir())
    embedded: EmbeddedPlatform | None = None
    try:
        lock.acquire(lambda: screen.line("Waiting for the previous platform to be gone...", "dim"))
        with lock.starting():
            target = _platform.running_platform()
            if target is None:
                if not cpu_fallback:
                    _platform.check_machine(machine_types, check)
                screen.line("Starting a platform for this run...", "dim")
                embedded = EmbeddedPlatform(cpu_fallback=cpu_fallback)
                target = embedded.run()
            elif cpu_fallback:
                screen.note("a platform runs already, and --cpu-fallback is its operator's choice.")
        yield Platform(ControlApi(target), embedded)
    finally:
        lock.release()
        if embedded is not None and (left := embedded.wait_gone(lock, partial(_say_waiting, grace, screen))):
            screen.note(left)


def _say_waiting(grace: Callable[[], float], screen: Any) -> None:
    screen.line(
        f"Waiting for the platform to stop: a request that still runs has {grace():g} s to finish. Ctrl-C leaves it to "
        "itself.",
        "dim",
    )
