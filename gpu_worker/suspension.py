"""An idle runner's cards are freed without ending it: what it has there goes to the host's memory, and comes back.

Owns how that is done and tried out. Leaves when to do it to ``scheduler.control`` and what the store is told to
``worker_life``. With simulated cards the runner is stopped and continued, which nobody can overlook either.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import psutil

from gpu_worker import process_tree
from gpu_worker.gpu_usage import GpuUsage, ram_usage

#: Seconds for one call of the driver: as much as 80 GB take over a slow bus, and more.
CALL_SECONDS = 120.0
#: Seconds within which a resumed runner must react.
ANSWER_SECONDS = 10.0
#: The part of the host's memory that stays free of suspended runners.
MEMORY_LEFT = 0.1


class SuspensionFailed(Exception):
    """It cannot be done; the message says why. ``passing``: another time it may; it is not for what the app is."""

    def __init__(self, why: str, *, passing: bool = False) -> None:
        super().__init__(why)
        self.passing = passing


class Suspension:
    """One runner's.

    Args:
        pid: the runner's process.
        simulated: its cards are not there.
        usage: what it has on them.
        react: awaits a sign of life of the runner, sent after the call; a ConnectionError says that it has ended.
        memory_limit: bytes of RAM that its processes may have; 0: any number.
    """

    def __init__(
        self,
        pid: int,
        simulated: bool,
        usage: GpuUsage,
        react: Callable[[], Awaitable[None]],
        memory_limit: int = 0,
    ) -> None:
        self._memory_limit = memory_limit
        self._pid = pid
        self._simulated = simulated
        self._usage = usage
        self._react = react
        #: whether the runner stands still, or may
        self.standing = False

    async def suspend(self, *, proven: bool) -> None:
        """Free the cards.

        Args:
            proven: runners of this revision have come back before; else it is tried out first.

        Raises:
            SuspensionFailed.
        """
        self._look_for_room()
        await self._away()
        if not proven:
            await self._back()
            await self._away()

    async def resume(self) -> float:
        """Take the cards again; returns the seconds that it took until the runner reacted.

        Raises:
            SuspensionFailed: the runner is lost.
        """
        began = time.monotonic()
        await self._back()
        return time.monotonic() - began

    async def _away(self) -> None:
        self.standing = True
        try:
            await self._call("suspend")
        except SuspensionFailed:
            self.standing = False
            raise

    async def _back(self) -> None:
        try:
            await self._call("resume")
        except SuspensionFailed as failure:
            raise SuspensionFailed(f"it did not come back: {failure}") from None
        try:
            await asyncio.wait_for(self._react(), ANSWER_SECONDS)
        except TimeoutError:
            why = f"it did not react within {ANSWER_SECONDS:g} s after it was suspended"
            raise SuspensionFailed(why) from None
        except ConnectionError:
            raise SuspensionFailed("it ended when it was resumed") from None
        self.standing = False

    def _look_for_room(self) -> None:
        memory = psutil.virtual_memory()
        left = memory.available - self._usage.peak_mb * 1024 * 1024
        if not self._simulated and left < memory.total * MEMORY_LEFT:
            raise SuspensionFailed("the host has no memory left for what is on its cards", passing=True)
        pids = [self._pid, *process_tree.descendants(self._pid)]
        if self._memory_limit and sum(ram_usage(pids).values()) + self._usage.peak_mb > self._memory_limit // 1024**2:
            # the kernel would end it in the midst of being copied
            raise SuspensionFailed("KEEPWARM_RUNNER_MEMORY_GB leaves a runner no room for what is on its cards")

    async def _call(self, action: str) -> None:
        pids = [self._pid, *process_tree.descendants(self._pid)]
        if self._simulated:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP if action == "suspend" else signal.SIGCONT)
        else:
            await run_checkpoint(action, pids)


def memory_is_short() -> bool:
    """Whether suspended runners should give the host's memory back."""
    memory = psutil.virtual_memory()
    return bool(memory.available < memory.total * MEMORY_LEFT / 2)


async def run_checkpoint(action: str, pids: Sequence[int] = ()) -> None:
    """Have the driver do it, see ``gpu_worker.checkpoint``.

    Raises:
        SuspensionFailed: it cannot, or took too long.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "gpu_worker.checkpoint", action, *map(str, pids)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), CALL_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise SuspensionFailed(f"the NVIDIA driver took more than {CALL_SECONDS:g} s") from None
    try:
        error = json.loads(output).get("error")
    except (ValueError, AttributeError):
        error = f"{process_tree.describe_exit(process.returncode or 0)} of the driver's checkpoint call"
    if error:
        raise SuspensionFailed(str(error))
