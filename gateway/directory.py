"""Apps as this process knows them, never older than a second; an unknown name is answered with the nearest known one.

Leaves all app state to the store.
"""

from __future__ import annotations

import asyncio
import difflib
import time

from scheduler.store import Store
from scheduler.store.errors import StoreError
from scheduler.store.records import ApiKeyRecord, AppRecord, RevisionState

from .errors import Refusal

#: An entry is used without asking for so long; a change of an alias or its auth is seen by then.
FRESH_SECONDS = 1.0
#: From this age on an entry in use is renewed in the background, so that busy apps never wait for a look-up.
_RENEW_SECONDS = 0.5
_MOST_ENTRIES = 4096
#: Names among which a near one is looked for; comparing costs the time of every caller.
_MOST_COMPARED = 300


class Directory:
    """A cache of aliases. Only known apps are kept: names that do not exist cost a look-up each."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, tuple[float, AppRecord]] = {}
        self._renewing: dict[str, asyncio.Task[None]] = {}
        self._listed: tuple[float, list[AppRecord]] = (-FRESH_SECONDS, [])

    def fresh(self, app: str) -> AppRecord | None:
        """The record when it is known and young enough; starts a renewal when it is getting old."""
        entry = self._known.get(app)
        if entry is None:
            return None
        age = time.monotonic() - entry[0]
        if age > _RENEW_SECONDS:
            if age > FRESH_SECONDS:
                return None
            if app not in self._renewing:
                task = asyncio.get_running_loop().create_task(self._renew(app))
                self._renewing[app] = task
        return entry[1]

    async def find(self, app: str) -> AppRecord | None:
        """The record, asking the store when need be."""
        return self.fresh(app) or await self._fetch(app)

    def forget(self, app: str) -> None:
        """The alias was changed through this process: look again."""
        self._known.pop(app, None)
        self._listed = (-FRESH_SECONDS, [])

    async def missing(self, app: str, key: ApiKeyRecord | None) -> Refusal:
        """The 404 for an app that does not exist, as helpful as this caller may have it.

        Private names are suggested to their owner alone, names of ``fal run`` apps to nobody: they are secrets.
        """
        owner = app.split("/", 1)[0]
        revisions = await self._store.apps.revisions(app) if key is not None and key.owner == owner else []
        if any(revision.state is RevisionState.BUILDING for revision in revisions):
            return Refusal(404, f'The first revision of "{app}" is still being built; try again when it is ready.')
        visible = [
            known.app
            for known in await self._list()
            if not known.ephemeral
            and (
                known.auth == "public"
                or (key is not None and (known.auth == "shared" or known.app.startswith(f"{key.owner}/")))
            )
        ]
        near = _nearest(app, visible)
        hint = f' Did you mean "{near}"?' if near else ' "fal apps list" shows the apps that exist.'
        return Refusal(404, f'There is no app "{app}".{hint}')

    async def _list(self) -> list[AppRecord]:
        """All apps, read at most once a second however many callers mistype."""
        at, listed = self._listed
        if time.monotonic() - at >= FRESH_SECONDS:
            listed = await self._store.apps.list()
            self._listed = (time.monotonic(), listed)
        return listed

    async def _fetch(self, app: str) -> AppRecord | None:
        record = await self._store.apps.get(app)
        if record is None:
            self._known.pop(app, None)
            return None
        if len(self._known) >= _MOST_ENTRIES:
            self._known.clear()
        self._known[app] = (time.monotonic(), record)
        return record

    async def _renew(self, app: str) -> None:
        try:
            await self._fetch(app)
        except StoreError:
            pass  # the next caller who finds the entry too old asks again, and hears of the trouble
        finally:
            self._renewing.pop(app, None)


def _nearest(app: str, known: list[str]) -> str | None:
    """The owner's app whose name is nearest, else any app that differs by hardly more than a slip."""
    owner, _, name = app.partition("/")
    own = [each.partition("/")[2] for each in known if each.startswith(f"{owner}/")]
    if near := difflib.get_close_matches(name, own[:_MOST_COMPARED], n=1, cutoff=0.6):
        return f"{owner}/{near[0]}"
    return next(iter(difflib.get_close_matches(app, known[:_MOST_COMPARED], n=1, cutoff=0.85)), None)
