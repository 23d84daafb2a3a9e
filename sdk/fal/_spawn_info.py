"""A call that was begun, as its caller sees it. Leaves making it to ``fal._remote_calls``. Standard library only."""

from __future__ import annotations

from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any


class SpawnInfo:
    """A call that was begun.

    ``future`` has its value, or what it raised; ``logs`` the lines that it printed, as dicts (``message``, ``level``,
    ``timestamp``), once it has ended.
    """

    future: Future[Any]

    def __init__(self) -> None:
        self.logs: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self._place: Future[tuple[str, str]] = Future()

    def runs_in(self, app: str, url: str) -> None:
        """The app that it goes to is there."""
        if self._place.done():  # the first one turned out to be gone
            self._place = Future()
        self._place.set_result((app, url))

    def not_run(self, error: Exception) -> None:
        """There will be none."""
        if not self._place.done():
            self._place.set_exception(error)

    @property
    def application(self) -> str:
        """``owner/name`` of the app that runs it; waits until it is there."""
        return self._place.result()[0]

    @property
    def url(self) -> str:
        """Where that app answers; waits until it is there."""
        return self._place.result()[1]

    @property
    def return_value(self) -> Any:
        """Waits for the value; raises what the call raised."""
        return self.future.result()

    def wait(self, timeout: float | None = None) -> Any:
        """The same, for so many seconds at most.

        Raises:
            TimeoutError: it has not ended by then, and goes on.
        """
        return self.future.result(timeout)
