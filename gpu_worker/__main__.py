"""``python -m gpu_worker``: the host agent. One per host and data folder."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import sys
from typing import TextIO

import uvloop

from envbuilder import BuildSettings
from gpu_worker.agent import HostAgent
from gpu_worker.settings import AgentSettings
from scheduler.store import Store
from scheduler.store.errors import StoreError


def main() -> int:
    """Run the agent until a signal; returns the exit status."""
    try:
        settings = AgentSettings.from_env(os.environ)
        builds = BuildSettings.from_env(os.environ)
        lock = _lock(settings)
        logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
        logging.getLogger("gpu_worker").setLevel(settings.log_level)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
            loop.run(_run(settings, builds))
        lock.close()
    except (ValueError, StoreError) as error:
        print(f"gpu_worker: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


async def _run(settings: AgentSettings, builds: BuildSettings) -> None:
    store = await Store.connect(settings.redis_url, settings.data_dir)
    try:
        agent = HostAgent(settings, store, builds)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, agent.stop)
        await agent.run()
    finally:
        await store.close()


def _lock(settings: AgentSettings) -> TextIO:
    """Held while the agent lives: two agents of one name would start every order twice."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    path = settings.data_dir / f"agent-{settings.host_id.replace(os.sep, '_')}.lock"
    handle = path.open("a", encoding="ascii")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise ValueError(
            f"an agent for host {settings.host_id!r} already runs on {settings.data_dir}; "
            "give this one another name with KEEPWARM_HOST_ID"
        ) from None
    return handle


if __name__ == "__main__":
    sys.exit(main())
