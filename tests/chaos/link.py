"""A bad network instead of bad processes: everything between the platform's services and Redis goes through a proxy
that resets, swallows, delays, chops and loses replies (F16-F18)."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from scheduler.store.scripts import SCRIPTS
from tests.chaos.ledger import Ledger
from tests.store.fault_proxy import FaultProxy, fault_proxy

#: Replies to these are lost: the verbs of gateway, supervisor and scheduler that move requests.
LOST = ("submit", "claim", "finish", "heartbeat", "retry", "promote", "cancel", "observe", "lead", "place")


@dataclass(frozen=True)
class LinkFault:
    """What is switched on at the proxy, and for how many seconds; one that loses a reply is over when it has."""

    name: str
    begin: Callable[[FaultProxy], object]
    lasts: float


def _losing(verb: str) -> Callable[[FaultProxy], object]:
    sha = SCRIPTS[verb].sha.encode()
    return lambda proxy: setattr(proxy, "lose_replies_to", sha)


#: Silent for longer than the clients' patience with an answer (5 s), and shorter.
FAULTS = (
    *(LinkFault(f"lose a reply to {verb}", _losing(verb), 2.0) for verb in LOST),
    *(LinkFault("reset", FaultProxy.drop_all, 0.5) for _ in range(3)),
    LinkFault("blackhole", lambda proxy: setattr(proxy, "silent", True), 7.0),
    LinkFault("blackhole", lambda proxy: setattr(proxy, "silent", True), 2.0),
    LinkFault("200 ms", lambda proxy: setattr(proxy, "latency_s", 0.2), 3.0),
    LinkFault("one byte per write", lambda proxy: setattr(proxy, "piece_bytes", 1), 2.0),
    LinkFault("20 KB/s", lambda proxy: setattr(proxy, "bytes_per_s", 20_000), 3.0),
)


@dataclass
class LinkTrouble:
    """One fault of the link after the other, healed in between."""

    proxy: FaultProxy
    loop: asyncio.AbstractEventLoop
    draw: random.Random
    ledger: Ledger

    async def one_round(self) -> None:
        faults = list(FAULTS)
        self.draw.shuffle(faults)
        for fault in faults:
            self.ledger.noted(fault.name)
            self.loop.call_soon_threadsafe(fault.begin, self.proxy)
            await self._over(fault)
            self.end()
            await asyncio.sleep(self.draw.uniform(0.1, 0.5))

    async def _over(self, fault: LinkFault) -> None:
        lost = self.proxy.lost
        for _ in range(20):
            await asyncio.sleep(fault.lasts / 20)
            if self.proxy.lost > lost:
                break

    def end(self) -> None:
        self.loop.call_soon_threadsafe(self.proxy.heal)


@contextlib.contextmanager
def proxy_thread(redis_url: str, folder: Path) -> Iterator[tuple[FaultProxy, asyncio.AbstractEventLoop, str]]:
    """A proxy on a loop of its own, for services that start before the test's loop does."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="fault-proxy")
    thread.start()
    manager = fault_proxy(redis_url, folder)
    try:
        proxy, url = asyncio.run_coroutine_threadsafe(manager.__aenter__(), loop).result(10)
        try:
            yield proxy, loop, url
        finally:
            asyncio.run_coroutine_threadsafe(manager.__aexit__(None, None, None), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
