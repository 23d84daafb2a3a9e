"""What a caller waited for, as ``Server-Timing``: the queue, and a start that happened meanwhile, by its stages.

The W3C's header, which browsers show beside a request; durations are milliseconds. Calls that did not wait carry none,
so that a warm call costs nothing.
"""

from __future__ import annotations

import re

from scheduler.store import Store
from scheduler.store.errors import StoreError
from scheduler.store.records import RequestRecord

from .asgi import Headers

#: A wait that is worth a look at the worker: no warm app makes anybody wait for so long.
WORTH_TELLING_MS = 100
_NAME = re.compile(r"[a-z]{1,32}")


async def start_times(store: Store, record: RequestRecord) -> Headers:
    """The header of an answer, or nothing; the answer counts all the same when the store is away."""
    if record.started_at_ms is None or record.worker_id is None:
        return []
    waited = record.started_at_ms - record.submitted_at_ms
    if waited < WORTH_TELLING_MS:
        return []
    parts = [f"queue;dur={waited}"]
    try:
        worker = await store.workers.get(record.app, record.worker_id)
    except StoreError:
        worker = None
    if worker is not None and worker.ready_at_ms is not None and worker.ready_at_ms >= record.submitted_at_ms:
        stages = {name: seconds for name, seconds in worker.stages.items() if _NAME.fullmatch(name)}
        total = stages.pop("total", None)
        parts += [f"{name};dur={seconds * 1000:.0f}" for name, seconds in stages.items()]
        if total is not None:
            kind = f";desc={worker.start_kind}" if worker.start_kind in ("zygote", "spawn") else ""
            parts.append(f"start{kind};dur={total * 1000:.0f}")
    return [(b"server-timing", ", ".join(parts).encode("ascii"))]
