"""The claims of one worker: waiting for work, finishing with the next claim in the same round trip, keeping leases.

Owns what this process believes to hold. Work arrives three ways: handed over by a submit, as the answer of a finish, or
by asking; what a lost connection swallowed is read again from the leases. Retrying is ``Requests.retry``.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import replace

import msgpack

from . import keys
from .blobs import BlobStore
from .connection import Arg, Redis
from .errors import InboxClosed, StoreUnavailable
from .outcomes import INLINE_BYTES, OVERDUE, headers_of, infrastructure_error, pack_outcome
from .records import Claimed, Mode, Outcome
from .requests import Requests
from .scripts import SCRIPTS
from .subscriptions import Subscriber, Subscription

#: Seconds between looks when nothing is pushed.
POLL_S = 1.0
#: Seconds for which a result is offered to a Redis that does not answer.
FINISH_PATIENCE_S = 300.0

_FINISH = SCRIPTS["finish"]


class Inbox:
    """Work for one worker of one revision; made by ``Store.open_inbox``.

    Attributes:
        cancelled: called with the request id when a request that was handed out has been cancelled.
        heard: called with the request id when the caller of a connection has sent something.
        stop_requested: called with ``"drain"``, ``"kill"``, ``"suspend"`` or ``"resume"``: what this worker shall do.
        command_asked: called with the id of a command that its owner wants to run; more than once for the same one.
    """

    def __init__(
        self, redis: Redis, requests: Requests, blobs: BlobStore, app: str, worker_id: str, lease_ms: int
    ) -> None:
        self.cancelled: Callable[[str], None] | None = None
        self.heard: Callable[[str], None] | None = None
        self.stop_requested: Callable[[str], None] | None = None
        self.command_asked: Callable[[str], None] | None = None
        self._redis = redis
        self._blobs = blobs
        self._app = app
        self._worker_id = worker_id
        self._lease_ms = lease_ms
        self._requests = requests
        self._retention_ms = requests.retention_ms
        self._held: dict[str, int] = {}
        self._ready: deque[Claimed] = deque()
        self._running: set[tuple[str, int]] = set()  # handed out by next() and not ended
        self._ticks = 0  # how often somebody said that there is work
        self._solo = False  # the one handed out must stay alone
        self._seen: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._loop = asyncio.get_running_loop()
        self._poll_timer: asyncio.TimerHandle | None = None
        self._parked = False
        self._asking = False
        self._asked_at = 0.0
        self._closed = False
        self._resting = False
        self._subscription: Subscription | None = None

    async def open(self, subscriber: Subscriber) -> None:
        """Starts to listen.

        Raises:
            StoreUnavailable.
        """
        self._subscription = await subscriber.subscribe(
            {
                keys.channel_worker(self._worker_id): self._on_message,
                keys.channel_work(self._app): self._on_work,
            },
            self._on_reconnect,
        )

    async def close(self) -> None:
        """Stops to listen. What is still held keeps its lease until it is retried or runs out."""
        self.close_to_new()
        if self._poll_timer is not None:
            self._poll_timer.cancel()
            self._poll_timer = None
        if self._subscription is not None:
            await self._subscription.close()

    @property
    def held(self) -> list[tuple[str, int]]:
        """``(request id, attempt)`` of everything leased to this worker as far as it knows."""
        return list(self._held.items())

    # --- taking ---------------------------------------------------------------------------------------------------

    async def next(self) -> Claimed:
        """The next attempt to run; waits for one.

        Raises:
            InboxClosed: closed to new work, and nothing is held any more.
            StoreError: Redis refuses for good; while it only does not answer, this waits.
        """
        while True:
            if self._ready and self._may_hand_out():
                claim = await self._hand_out(self._ready.popleft())
                if claim is not None:
                    return claim
                continue
            if self._closed and not self._held:
                self._wake(len(self._waiters))
                raise InboxClosed
            if not (self._parked or self._asking or self._closed or self._resting or self._ready or self._solo):
                await self._ask()
            else:
                await self._wait()

    def _may_hand_out(self) -> bool:
        return not self._running or not (self._solo or self._ready[0].solo)

    async def _hand_out(self, claim: Claimed) -> Claimed | None:
        """Marks the claim as running and fetches its body; None when that is gone, which ends the request."""
        self._running.add((claim.request_id, claim.attempt))
        self._solo = claim.solo
        if claim.body_ref is None:
            return claim
        try:
            return replace(claim, body=await asyncio.to_thread(self._blobs.get, claim.body_ref))
        except OSError as error:
            lost = infrastructure_error(500, "internal_error", f"The request's body cannot be read: {error.strerror}.")
            await self.finish(claim, lost)
            return None

    async def _wait(self) -> None:
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        if self._poll_timer is None:
            self._poll_timer = self._loop.call_later(POLL_S, self._poll)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            raise

    def _poll(self) -> None:
        """One timer for all waits: it runs on while requests come and go, and stops when nobody waits."""
        self._poll_timer = None
        if not self._waiters:
            return
        if self._loop.time() - self._asked_at >= POLL_S / 2:
            self._parked = False
        self._poll_timer = self._loop.call_later(POLL_S, self._poll)
        self._wake()

    def _wake(self, count: int = 1) -> None:
        while count and self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                count -= 1

    async def _ask(self) -> None:
        """Claims for one free slot, saying what is held, so that leases given to us unheard come to light."""
        self._asking, ticks = True, self._ticks
        self._asked_at = self._loop.time()
        held: list[Arg] = [f"{request_id} {attempt}" for request_id, attempt in self._held.items()]
        try:
            answer = await SCRIPTS["claim"](
                self._redis,
                self._app,
                worker_id=self._worker_id,
                lease_ms=self._lease_ms,
                overdue=OVERDUE,
                retention_ms=self._retention_ms,
                rest=held,
            )
            for message in answer if type(answer) is list else (answer,):
                self._take(message, ticks)
        except StoreUnavailable:
            self._parked = True  # until the next poll
        finally:
            self._asking = False
            self._wake()

    def _take(self, answer: bytes, ticks: int) -> None:
        """Digests what a claim answered that was sent when ``ticks`` ticks had been heard."""
        if answer.startswith(b"claim "):
            self._parked = False
            self._accept(answer)
        else:
            # "empty" is parked by the server; "stopped" and "gone" get nothing, which the next poll asks again.
            # A tick since then may be about work that came after this answer was made.
            self._parked = ticks == self._ticks

    def _accept(self, message: bytes) -> None:
        head, _, rest = message.partition(b"\n")
        _, request_id, attempt_text, mode, submitted, gateway, solo, call_size = head.decode().split(" ")
        attempt = int(attempt_text)
        key = (request_id, attempt)
        if key in self._seen:
            return
        self._seen[key] = None
        if len(self._seen) > 512:
            self._seen.popitem(last=False)
        size = int(call_size)
        method, path, query, headers, base_url, body_ref, retries = msgpack.unpackb(rest[:size])
        mode_name: Mode = "direct" if mode == "direct" else "queued"
        self._held[request_id] = attempt
        claim = Claimed(
            self._app,
            request_id,
            attempt,
            mode_name,
            method,
            path,
            query,
            headers_of(headers),
            rest[size:],
            base_url,
            gateway or None,
            int(submitted),
            self._worker_id,
            solo == "1",
            body_ref,
            retries,
        )
        self._ready.append(claim)
        self._wake(2)  # one takes it; another, if there is one, asks for more or parks the worker again

    # --- ending ---------------------------------------------------------------------------------------------------

    async def finish(self, claim: Claimed, outcome: Outcome, *, claim_next: bool = True) -> bool:
        """Stores how an attempt ended; with ``claim_next`` the next request is taken in the same round trip.

        Returns:
            False when the attempt was cancelled or superseded: the result is thrown away.

        Raises:
            StoreUnavailable: Redis stayed away for five minutes.
        """
        body_ref = None
        if len(outcome.body) > INLINE_BYTES:
            body_ref = await asyncio.to_thread(
                self._blobs.put, outcome.body, app=claim.app, request_id=claim.request_id
            )
        failed = outcome.error_type is not None or outcome.status >= 400
        take_more = claim_next and not (self._closed or self._resting or self._ready)
        ticks = self._ticks
        kept, answer = await _FINISH(
            self._redis,
            claim.app,
            patience=FINISH_PATIENCE_S,
            request_id=claim.request_id,
            attempt=claim.attempt,
            worker_id=self._worker_id,
            status="ERROR" if failed else "COMPLETED",
            result=pack_outcome(outcome, body_ref),
            error_type=outcome.error_type or "",
            retention_ms=self._retention_ms,
            claim_more="1" if take_more else "0",
            lease_ms=self._lease_ms,
            overdue=OVERDUE,
            bytes=len(outcome.body),
        )
        self.release(claim)
        if answer:
            self._take(answer, ticks)
        spent = claim.body_ref if kept else body_ref  # of a superseded attempt only its own result is for nobody
        if spent is not None:
            await asyncio.to_thread(self._blobs.delete, spent)
        return bool(kept)

    def release(self, claim: Claimed) -> None:
        """Forgets a claim that has ended otherwise, by ``Requests.retry``; twice is fine."""
        self._release(claim.request_id, claim.attempt)

    def _release(self, request_id: str, attempt: int) -> None:
        if self._held.get(request_id) == attempt:
            del self._held[request_id]
        self._running.discard((request_id, attempt))
        if not self._running:
            self._solo = False
        if self._closed or self._ready or not self._held:
            self._wake(len(self._waiters))

    async def heartbeat(self) -> list[tuple[str, int]]:
        """Renews every lease held; returns ``(request id, attempt)`` of those that must stop, each once.

        Raises:
            StoreUnavailable.
        """
        if not self._held:
            return []
        pairs: list[Arg] = [value for item in self._held.items() for value in item]
        reply = await SCRIPTS["heartbeat"](
            self._redis, self._app, worker_id=self._worker_id, lease_ms=self._lease_ms, rest=pairs
        )
        stop = []
        for i in range(0, len(reply), 2):
            request_id, attempt = reply[i].decode(), int(reply[i + 1])
            if not self._forget_unstarted(request_id) and (request_id, attempt) in self._running:
                stop.append((request_id, attempt))
            self._release(request_id, attempt)
        return stop

    def close_to_new(self) -> None:
        """Takes nothing new from now on; ``next`` hands out what is leased already and then raises InboxClosed."""
        self._closed = True
        self._wake(len(self._waiters))

    def rest(self) -> None:
        """Asks for nothing from now on, and stays open: ``next`` waits. What was on its way is still handed out."""
        self._resting = True

    # --- pushed ---------------------------------------------------------------------------------------------------

    def _on_message(self, message: bytes) -> None:
        if message.startswith(b"claim "):
            self._ticks += 1
            self._parked = False
            self._accept(message)
        elif message.startswith(b"cancel "):
            request_id = message[7:].decode()
            if not self._forget_unstarted(request_id) and request_id in self._held and self.cancelled is not None:
                self.cancelled(request_id)
        elif message.startswith(b"input ") and self.heard is not None:
            self.heard(message[6:].decode())
        elif message.startswith(b"stop ") and self.stop_requested is not None:
            self.stop_requested(message[5:].decode())
        elif message.startswith(b"command ") and self.command_asked is not None:
            self.command_asked(message[8:].decode())

    def _forget_unstarted(self, request_id: str) -> bool:
        """Drops a claim that next() has not handed out yet; False if it was none."""
        for claim in self._ready:
            if claim.request_id == request_id:
                self._ready.remove(claim)
                self._held.pop(request_id, None)
                self._wake(len(self._waiters))
                return True
        return False

    def _on_work(self, message: bytes) -> None:
        self._ticks += 1
        self._parked = False
        self._wake()

    def _on_reconnect(self) -> None:
        self._ticks += 1
        self._parked = False
        self._wake()
