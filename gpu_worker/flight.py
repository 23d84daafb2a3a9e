"""One attempt at the runner, and the two ways in which it can end: the app answered, or it will not."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from fal._runner.protocol import GpuFault, Headers, ResponseStart

from gpu_worker.sockets import Socket
from gpu_worker.streams import AnswerStream
from scheduler.store.records import Claimed, Outcome
from scheduler.store.retry_rules import Condition


@dataclass(frozen=True, slots=True)
class Answer:
    """The app answered. ``broken`` says why a streamed answer ended early; its status has been sent by then."""

    status: int
    headers: Headers
    body: bytes
    broken: str | None = None


@dataclass(frozen=True, slots=True)
class Ending:
    """The runner ended, or must, before it answered.

    ``blames`` is True when whatever was in flight may be the cause. ``last_word`` is what the caller gets if there is
    no other attempt; ``condition`` which of the retry wishes applies (None: a retry that is nobody's fault);
    ``final``: another attempt would end the same way. ``unstarted``: the runner was never told of it.
    """

    why: str
    last_word: Outcome
    condition: Condition | None = None
    blames: bool = False
    final: bool = False
    unstarted: bool = False


@dataclass(slots=True, eq=False)
class Flight:
    """One attempt at the runner. ``due``: when it is out of time."""

    claim: Claimed
    done: asyncio.Future[Answer | Ending]
    began: float
    due: float = 0.0
    socket: Socket | None = None
    overtime: bool = False
    start: ResponseStart | None = None
    stream: AnswerStream | None = None
    forwarding: asyncio.Task[None] | None = None
    gathered: bytearray | None = None
    cancelled: bool = False
    fault: GpuFault | None = None

    def end(self, how: Answer | Ending) -> None:
        """The first ending counts."""
        if not self.done.done():
            self.done.set_result(how)
            if self.socket is not None:
                self.socket.stop()
