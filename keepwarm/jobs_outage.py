"""Redis away and back again, each said once however many duties of the process notice it."""

from __future__ import annotations

import time

import structlog

log = structlog.get_logger("jobs")


class Outage:
    """Whether Redis is away, as far as this process knows. Shared by all its duties."""

    def __init__(self) -> None:
        self._since: float | None = None

    @property
    def lasts(self) -> bool:
        """Whether it has begun and not ended."""
        return self._since is not None

    def noticed(self, error: Exception) -> None:
        """A call failed because Redis did not answer."""
        if self._since is None:
            self._since = time.monotonic()
            log.warning("Redis does not answer; everything waits for it", error=str(error))

    def over(self) -> None:
        """A call succeeded."""
        if self._since is not None:
            log.info("Redis answers again", away_s=round(time.monotonic() - self._since, 1))
            self._since = None
