"""Files that an app has saved: taken from the runner's folder into the platform's store, before anything that follows.

What lies under the name that the runner gives is user code's choice; the store takes plain files only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fal._runner.protocol import FileSaved

from scheduler.store import Lifecycle
from scheduler.store.errors import StoreError
from scheduler.store.lifecycle import parse_lifecycle


class SavedFiles:
    """The files of one runner.

    Args:
        folder: where the runner leaves them.
        owner: of the app, who may always fetch them.
        adopt: moves one into the store: ``(path, file_id, name, content_type, lifecycle)``; blocking.
        complain: takes a line about a file that could not be stored.
    """

    def __init__(
        self,
        folder: Path,
        owner: str,
        adopt: Callable[[Path, str, str, str, Lifecycle], object],
        complain: Callable[[str, str | None], None],
    ) -> None:
        self._folder = folder
        self._owner = owner
        self._adopt = adopt
        self._complain = complain
        self._under_way: set[asyncio.Future[None]] = set()

    def saved(self, message: FileSaved) -> None:
        """Begin to store a file; ``settled`` waits for it."""
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(None, self._store, message)
        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)

    @property
    def busy(self) -> bool:
        """Whether files are being stored right now."""
        return bool(self._under_way)

    async def settled(self) -> None:
        """Wait until every file announced so far is in the store (or was refused)."""
        if self._under_way:
            await asyncio.wait(set(self._under_way))

    def _store(self, message: FileSaved) -> None:
        path = self._folder / message.file_id
        try:
            self._adopt(path, message.file_id, message.name, message.content_type, self._lifecycle(message))
        except (OSError, ValueError, StoreError) as error:
            self._complain(f"the file {message.name!r} could not be stored: {error}", message.request_id)

    def _lifecycle(self, message: FileSaved) -> Lifecycle:
        """As the gateway checked it; what user code wrote there instead can only take from itself."""
        if message.lifecycle is None:
            return Lifecycle()
        wanted = parse_lifecycle(message.lifecycle, self._owner)
        if message.caller is None or wanted.default == "allow":
            return wanted
        return replace(wanted, decisions=(*wanted.decisions, (message.caller, "allow")))
