"""``python -m scheduler``: the scheduler service. The first SIGTERM or SIGINT stops it, a second one forces it."""

from __future__ import annotations

import os
import sys

import uvloop

from scheduler.control.service import Scheduler, Settings
from scheduler.control.stderr_log import log_to_stderr
from scheduler.control.stopping import stop_on_signals
from scheduler.store import Store
from scheduler.store.errors import StoreError


async def _serve(settings: Settings) -> None:
    store = await Store.connect(settings.redis_url, settings.data_dir)
    try:
        scheduler = Scheduler(store, settings)
        stop_on_signals(scheduler.stop)
        await scheduler.run()
    finally:
        await store.close()


def main() -> int:
    """Run until a signal; returns the exit status."""
    log_to_stderr(os.environ)
    try:
        uvloop.run(_serve(Settings.from_env(os.environ)))
    except (StoreError, ValueError) as error:
        print(f"scheduler: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
