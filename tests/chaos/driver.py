"""One run of chaos against a platform that is up: callers, havoc and watch at once, then rest, then the verdict."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx

from keepwarm import redis_server
from tests.chaos.havoc import ROUND, Fault, Havoc
from tests.chaos.ledger import Ledger, read_journal
from tests.chaos.traffic import Callers
from tests.chaos.verdict import Verdict, judge
from tests.chaos.watch import Watch
from tests.scheduler.receiver import Received, Receiver
from tests.support.platform import PlatformUnderTest

APPS = Path(__file__).with_name("app.py")
#: Survives kill -9 of Redis: with ``everysec`` the server may hold a write back while the disk is busy.
ARGUMENTS = ("--fsync", "always")
ENVIRON = {"KEEPWARM_ALLOW_PRIVATE_WEBHOOKS": "1"}
#: Seconds within which everything must have ended once the last fault is over: a restart's pause (10), a lease (30) and
#: the back-off of an app whose workers were shot (60).
REST_S = 120.0


@dataclass(frozen=True)
class Size:
    """How much of it: ``spread_s`` is the time over which requests begin."""

    requests: int = 250
    spread_s: float = 40.0
    pause_s: float = 2.0
    round: tuple[Fault, ...] = ROUND
    rest_s: float = REST_S


def seed_of(environ: dict[str, str] | None = None) -> int:
    """CHAOS_SEED, else a random one: printed either way, so that the same plan can be made again."""
    given = (os.environ if environ is None else environ).get("CHAOS_SEED")
    return int(given) if given else random.SystemRandom().randrange(1_000_000)


class Trouble(Protocol):
    """What is done to the platform meanwhile."""

    async def one_round(self) -> None:
        """Everything once, in random order."""

    def end(self) -> None:
        """Whatever happened: from here on everything works."""


class FlakyReceiver(Receiver):
    """Refuses the first webhook of every fifth request, and takes what comes again."""

    async def _answer(self, request: Received, writer: asyncio.StreamWriter) -> None:
        request_id = request.headers["x-fal-webhook-request-id"]
        first = sum(r.headers["x-fal-webhook-request-id"] == request_id for r in self.received) == 1
        kind = "/500" if first and int(request_id[:4], 16) % 5 == 0 else "/200"
        await super()._answer(Received(kind, request.headers, request.body), writer)


@contextlib.asynccontextmanager
async def flaky_receiver() -> AsyncIterator[FlakyReceiver]:
    found = FlakyReceiver()
    server = await asyncio.start_server(found._serve, "127.0.0.1", 0)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        server.close()
        await server.wait_closed()


class Chaos:
    """A platform, its apps and one ledger; ``run`` may be called several times.

    Args:
        platform: started with ARGUMENTS and ENVIRON.
        folder: for ledger and journal.
        redis_url: where the watch finds Redis; None for the platform's own.
    """

    def __init__(self, platform: PlatformUnderTest, folder: Path, seed: int, redis_url: str | None = None) -> None:
        self.platform = platform
        self.seed = seed
        self.draw = random.Random(seed)
        self.ledger = Ledger(folder / "ledger.jsonl")
        self.journal = folder / "journal"
        self.paths = tuple(
            platform.deploy(APPS, name, auth="private").removeprefix(platform.url) for name in ("Alone", "Shared")
        )
        redis_url = redis_url or f"unix://{redis_server.socket_path(platform.data)}"
        self.watch = Watch(redis_url, platform.data, tuple(path.removeprefix("/") for path in self.paths))
        self.faults: dict[str, int] = {}
        self.rested_in = 0.0
        self._run_id = uuid.uuid4().hex

    async def run(self, size: Size, havoc: Trouble | None = None) -> Verdict:
        """Traffic and one round of faults, then rest; the verdict is over everything since the beginning."""
        assert self.platform.process is not None
        if havoc is None:
            havoc = Havoc(self.platform.process.pid, self.draw, self.ledger, size.round, size.pause_s, self.faults)
        headers = {"authorization": f"Key {self.platform.key}"}
        limits = httpx.Limits(max_connections=200, max_keepalive_connections=20)
        async with (
            flaky_receiver() as receiver,
            httpx.AsyncClient(
                base_url=self.platform.url, headers=headers, trust_env=False, timeout=60, limits=limits
            ) as client,
        ):
            hook = receiver.url("/200")
            callers = Callers(client, self.paths, self.ledger, self.journal, self.draw, hook, self._run_id)
            watching = asyncio.create_task(self.watch.run())
            calling = asyncio.create_task(callers.send(size.requests, size.spread_s))
            try:
                await havoc.one_round()
            finally:
                havoc.end()
            self.ledger.noted("the last fault is over")
            left = await self._rest(calling, callers, size.rest_s)
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            for received in receiver.received:
                self.ledger.hooked(received.headers["x-fal-webhook-request-id"], received.body.decode())
        wrong = [*sorted(set(self.watch.wrong)), *(f"{count} left in {key}" for key, count in left.items())]
        return judge(self.ledger, read_journal(self.journal), wrong, self.seed)

    async def _rest(self, calling: asyncio.Task[None], callers: Callers, limit_s: float) -> dict[str, int]:
        """Waits for every result and for Redis to hold nothing that is owed; returns what it holds all the same."""
        began = time.monotonic()
        left: dict[str, int] = {"not looked": 1}
        while (not calling.done() or left) and time.monotonic() < began + limit_s:
            await asyncio.wait({calling}, timeout=0.5)
            left = await self.watch.left()
        callers.collecting.set()
        await calling
        self.rested_in = time.monotonic() - began
        return left


@contextlib.contextmanager
def own_platform() -> Iterator[tuple[PlatformUnderTest, Path]]:
    """A platform for this process, and the folder for ledger and journal, which stays."""
    data = Path(tempfile.mkdtemp(prefix="kwt-"))
    platform = PlatformUnderTest(data, ARGUMENTS, ENVIRON)
    try:
        yield platform.start(), Path(tempfile.mkdtemp(prefix="kwt-chaos-"))
    finally:
        platform.stop()
        shutil.rmtree(data, ignore_errors=True)
