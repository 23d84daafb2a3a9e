"""Chores by the clock: payloads and files that nobody needs, environments that nobody uses."""

from __future__ import annotations

import asyncio

import structlog

import envbuilder
from envbuilder import BuildSettings
from scheduler.store import Store

#: Seconds after which a payload whose request is forgotten is deleted.
BLOB_AGE_S = 3600.0
DAY_S = 86_400.0

log = structlog.get_logger("jobs")


async def sweep_payloads(store: Store) -> int:
    """Delete large payloads of requests that are no longer known; returns how many."""
    count = await store.sweep_blobs(BLOB_AGE_S)
    if count:
        log.info("payloads deleted", count=count)
    return count


async def sweep_files(store: Store, keep_days: float | None) -> int:
    """Delete users' files whose own time is over, and those older than ``keep_days``; None keeps them for ever. Uploads
    that nobody completed go after a day. Returns how many files."""
    count = await asyncio.to_thread(store.files.sweep_expired)
    if keep_days is not None:
        count += await asyncio.to_thread(store.files.sweep, keep_days * DAY_S)
    if count:
        log.info("files deleted", count=count, older_than_days=keep_days)
    if given_up := await asyncio.to_thread(store.uploads.sweep, DAY_S):
        log.info("unfinished uploads deleted", count=given_up)
    return count


async def evict_environments(settings: BuildSettings, max_bytes: int | None, unused_days: float | None) -> int:
    """Delete environments beyond ``max_bytes`` in all or unused for ``unused_days``; returns how many.

    An app that needs a deleted one again has it rebuilt by its next request.
    """
    unused_for = None if unused_days is None else unused_days * DAY_S
    evicted = await asyncio.to_thread(envbuilder.evict, settings, max_bytes=max_bytes, unused_for=unused_for)
    for one in evicted:
        log.info("environment deleted", environment=one.key, size=one.size, reason=one.reason)
    return len(evicted)
