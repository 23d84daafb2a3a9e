"""Our queue without HTTP and without a runner: the store's client as a gateway uses it, an inbox as a supervisor does.

Results come by one subscription per process, as in ``gateway/results.py``.
"""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import callers
import store_app  # beside the script that starts this one, which says so in PYTHONPATH

from scheduler.store import keys


class Keepwarm:
    @asynccontextmanager
    async def calling(self, url: str) -> AsyncIterator[callers.Call]:
        store = await store_app.connect(url, Path(tempfile.gettempdir()))
        gateway = uuid.uuid4().hex[:12]
        waiting: dict[str, asyncio.Future[bytes]] = {}
        loop = asyncio.get_running_loop()

        def on_push(message: bytes) -> None:
            request_id, record = store.requests.decode_push(message)
            assert record is not None
            assert record.outcome is not None
            waiting.pop(request_id).set_result(record.outcome.body)

        async def call(number: int) -> int:
            request_id = str(uuid.uuid4())
            result = waiting[request_id] = loop.create_future()
            await store.requests.submit(store_app.submission(request_id, b"%d" % number, gateway))
            return int(await result)

        try:
            await store.subscribe({keys.channel_gateway(gateway): on_push})
            yield call
        finally:
            await store.close()

    async def work(self, url: str, slots: int) -> None:
        store = await store_app.connect(url, Path(tempfile.gettempdir()))
        await store_app.deploy(store)
        async with store_app.worker(store, "worker-1") as inbox:
            await store_app.serve(inbox, slots)


if __name__ == "__main__":
    callers.main(Keepwarm())
