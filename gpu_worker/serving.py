"""The requests of one worker: claims become frames to the runner, its answers become outcomes in the store.

Up to ``max_multiplexing`` at once, one slot each; a busy slot costs one round trip to Redis per request, because
``finish`` hands out the next claim. Leaves starting and ending the runner to ``worker_life``, and what follows from an
answer to ``outcomes``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from fal._runner.protocol import (
    Cancel,
    Credit,
    GpuFault,
    Message,
    ProtocolError,
    Request,
    Response,
    ResponseChunk,
    ResponseEnd,
    ResponseStart,
    SocketAccept,
    SocketClose,
    SocketMessage,
    SocketTaken,
)
from fal._spec import WEBSOCKET

from gpu_worker import outcomes
from gpu_worker.flight import Answer, Ending, Flight
from gpu_worker.health import DOUBTFUL, HealthChecks
from gpu_worker.log_lines import LAST_LINES
from gpu_worker.outcomes import StopRunner
from gpu_worker.runner_talk import RunnerTalk
from gpu_worker.sockets import Socket
from gpu_worker.streams import AnswerStream, StreamBroken
from scheduler.store import Inbox, InboxClosed, Store, StoreError, StoreFull, StoreUnavailable
from scheduler.store.outcomes import infrastructure_error
from scheduler.store.records import Claimed, Outcome
from scheduler.store.retry_rules import RetryRules

#: Most that a queued request's streamed answer may gather, in bytes.
MOST_GATHERED = 64 * 1024 * 1024
#: Seconds after which a cancelled request whose code does not react counts as left over: its slot is of no use.
LEFTOVER_SECONDS = 0.2
#: Seconds that an app has to end a connection that was open for longer than ``request_timeout``.
OVERTIME_SECONDS = 10.0
_SOCKET = (SocketMessage, SocketTaken, SocketAccept, SocketClose)


@dataclass(frozen=True)
class Limits:
    """The app's own settings that matter here. Seconds; ``cancel_grace`` None: a cancelled request is waited for.

    ``checked``: a runner is asked for its health all the time, so that one good answer alone proves nothing.
    """

    slots: int
    request_timeout: float
    rules: RetryRules
    cancel_grace: float | None = None
    checked: bool = False


class Serving:
    """Serves one ready runner until the inbox closes.

    Args:
        stop: called with how and why when the runner must go: ``("kill", ...)`` ends it at once.
        leftover_changed: called when a cancelled request's code turns out to run on, and when it has ended.
        revision: the app's version that this runner has loaded.
        card: names the GPU, for telling a broken one from a request that breaks each.
    """

    def __init__(
        self,
        store: Store,
        inbox: Inbox,
        talk: RunnerTalk,
        limits: Limits,
        stop: Callable[[StopRunner, str], None],
        leftover_changed: Callable[[], None],
        *,
        revision: str,
        card: str,
    ) -> None:
        self._store = store
        self._inbox = inbox
        self._talk = talk
        self._limits = limits
        self._stop = stop
        self._leftover_changed = leftover_changed
        self._revision = revision
        self._card = card
        self._flights: dict[tuple[str, int], Flight] = {}
        self._ending: Ending | None = None
        self._suspects = 0
        self.answered = 0
        #: told of answers that are no request's, and of those that make a check worth while
        self.health: HealthChecks | None = None
        self._last_answer_at = 0.0
        self._last_answered_began = 0.0
        self._served_well_at: float | None = None
        self._leaving: Ending | None = None
        self._proved = False
        self._watch: asyncio.TimerHandle | None = None
        self._connections_end: tuple[int, str] | None = None
        self._loop = asyncio.get_running_loop()
        inbox.cancelled = self._cancelled
        inbox.heard = self._heard

    @property
    def in_flight(self) -> int:
        """Attempts at the runner right now."""
        return len(self._flights)

    def busy_since(self, at: float) -> bool:
        """Whether a request has been at the runner at any moment since then (of the loop's time)."""
        return bool(self._flights) or self._last_answer_at >= at

    def overtaken(self, at: float) -> bool:
        """Whether a request that was sent after that moment has been answered."""
        return self._last_answered_began > at

    async def run(self) -> None:
        """Claim and serve until the inbox is closed and everything held has ended.

        Raises:
            StoreError: Redis refused for good; leases run out and others take over.
        """
        try:
            async with asyncio.TaskGroup() as slots:
                for _ in range(self._limits.slots):
                    slots.create_task(self._slot())
        finally:
            if self._watch is not None:
                self._watch.cancel()

    def runner_ended(self, ending: Ending) -> None:
        """The runner answers nothing any more: everything in flight ends with ``ending``, and so does what still
        comes out of the inbox."""
        if self._ending is None:
            self._ending = ending
            self._suspects = len(self._flights)
            self._inbox.close_to_new()
        for flight in list(self._flights.values()):
            flight.end(ending)
            if flight.stream is not None:
                flight.stream.end(ending.why)

    def end_connections(self, code: int, reason: str) -> None:
        """End every connection: they last as long as their callers like, and this runner must go."""
        self._connections_end = (code, reason)
        for flight in self._flights.values():
            if flight.socket is not None:
                flight.socket.end(code, reason)

    def must_stop(self, request_id: str, attempt: int) -> None:
        """The store says that this attempt counts no more."""
        if (flight := self._flights.get((request_id, attempt))) is not None:
            self._cancel(flight)

    # --- one slot -----------------------------------------------------------------------------------------------------

    async def _slot(self) -> None:
        while True:
            try:
                claim = await self._inbox.next()
            except InboxClosed:
                return
            except StoreUnavailable:
                await asyncio.sleep(0.2)
                continue
            await self._attempt(claim)

    async def _attempt(self, claim: Claimed) -> None:
        flight = Flight(claim, self._loop.create_future(), 0.0)
        key = (claim.request_id, claim.attempt)
        self._flights[key] = flight
        self._send(flight)
        try:
            how = await flight.done
        finally:
            del self._flights[key]
            if flight.cancelled:
                self._leftover_changed()
        if flight.forwarding is not None:
            await flight.forwarding
        if self._talk.files.busy:
            await self._talk.files.settled()
        if type(how) is Answer:
            self.answered += 1
            await self._answered(flight, how)
        else:
            assert isinstance(how, Ending)
            await self._unanswered(flight, how)

    def _send(self, flight: Flight) -> None:
        ending = self._ending or self._leaving
        if ending is not None:
            flight.end(replace(ending, blames=False, unstarted=True))
            return
        claim = flight.claim
        flight.began = self._loop.time()
        flight.due = flight.began + self._limits.request_timeout
        if claim.method == WEBSOCKET:
            self._connect(flight)
        if self._watch is None:
            self._watch = self._loop.call_later(self._limits.request_timeout, self._look_at_times)
        try:
            self._talk.send(
                Request(
                    claim.request_id,
                    claim.attempt,
                    claim.method,
                    claim.path,
                    claim.query.encode("latin-1"),
                    [(name.encode("latin-1"), value.encode("latin-1")) for name, value in claim.headers],
                    claim.body,
                    claim.base_url,
                    stream=claim.mode == "direct",
                )
            )
        except UnicodeEncodeError as error:
            # Whatever one caller managed to send, it must not take the slot, and with it the worker, from the others.
            why = f"The address or a header of the request cannot be passed on to the app: {error}."
            flight.end(Ending(why, infrastructure_error(400, "bad_request", why), final=True))
        except ProtocolError as error:
            flight.end(Ending(str(error), infrastructure_error(413, "bad_request", str(error)), final=True))

    def _connect(self, flight: Flight) -> None:
        flight.socket = Socket(flight.claim, self._store, self._talk.send)
        flight.forwarding = self._loop.create_task(flight.socket.run())
        if self._connections_end is not None:
            flight.socket.end(*self._connections_end)

    async def _answered(self, flight: Flight, answer: Answer) -> None:
        claim = flight.claim
        now = self._last_answer_at = self._loop.time()
        seconds = now - flight.began
        self._last_answered_began = max(self._last_answered_began, flight.began)
        rules, fault = self._limits.rules, flight.fault
        verdict = outcomes.judge(
            answer.status,
            answer.headers,
            answer.body,
            rules,
            seconds,
            claim.retries,
            fault.kind if fault is not None else None,
        )
        if verdict.stop == "kill":
            # Before anything is awaited: what is pushed to another slot meanwhile must not die with this runner.
            why = f"the app answered {answer.status} and needs a new runner"
            self._leaving = Ending(why, outcomes.runner_disconnected(why))
            self._inbox.close_to_new()
        outcome = verdict.outcome
        if answer.broken is not None:
            outcome = outcomes.incomplete_response(answer.broken)
        if verdict.retry and claim.mode == "queued" and answer.broken is None:
            why = _gpu_failed(fault) if fault is not None else f"the app answered {answer.status}"
            delay = outcomes.retry_delay_ms(claim.attempt)
            await self._retry(claim, why, outcome, verdict.condition, verdict.budget, delay_ms=delay, fault=fault)
        else:
            await self._finish(claim, outcome, more=verdict.stop == "no")
        if not self._proved and fault is None and answer.status < 500:
            if self._limits.checked:
                self._served_well_at = self._served_well_at or now
            else:
                await self.prove()
        if self.health is not None and (verdict.check or answer.status in DOUBTFUL):
            self.health.ask_soon()
        if verdict.stop != "no":
            why = f"the app answered {answer.status} and needs a new runner"
            self._leave(verdict.stop, _gpu_failed(fault) if fault is not None else why)

    async def _unanswered(self, flight: Flight, ending: Ending) -> None:
        claim = flight.claim
        condition = ending.condition
        budget = self._limits.rules.budget(condition, claim.retries) if condition is not None else None
        if ending.unstarted:
            await self._retry(claim, ending.why, ending.last_word, None, None, delay_ms=0, unstarted=True)
            return
        if ending.final or budget == 0:
            await self._finish(claim, ending.last_word, more=ending.final)
            return
        delay = outcomes.retry_delay_ms(claim.attempt) if condition is not None else 0
        suspects = self._suspects if ending.blames else 0
        await self._retry(claim, ending.why, ending.last_word, condition, budget, suspects=suspects, delay_ms=delay)

    async def prove(self) -> None:
        """This runner can serve: whatever its revision's other workers died of, the next one need not wait."""
        self._proved = True
        with contextlib.suppress(StoreError):
            await self._store.apps.crash_streak_ended(self._talk.app, self._revision)

    async def found_healthy(self, at: float) -> None:
        """A check that was sent at that time passed: what the runner had served by then did it no harm."""
        if not self._proved and self._served_well_at is not None and self._served_well_at < at:
            await self.prove()

    def leave_hung(self, why: str) -> None:
        """End the runner, which does not react though it has nothing to do; what still comes goes to another one."""
        self._leaving = Ending(why, outcomes.runner_disconnected(why))
        self._leave("kill", why)

    def _leave(self, how: StopRunner, why: str) -> None:
        """The runner must go; from this moment no finish brings another request to it."""
        self._inbox.close_to_new()
        self._stop(how, why)

    # --- the store ----------------------------------------------------------------------------------------------------

    async def _finish(self, claim: Claimed, outcome: Outcome, *, more: bool) -> None:
        if self._talk.logs.pending():
            # The lines leave in the same write as the result, ahead of it: whoever sees the end has all of the log.
            flushed = asyncio.ensure_future(self._talk.logs.flush())
            await asyncio.sleep(0)
        else:
            flushed = None
        while True:
            try:
                await self._inbox.finish(claim, outcome, claim_next=more)
                break
            except StoreUnavailable:
                # The result is all the work there was: keep it while this process lives. A lease that runs out
                # meanwhile makes the store refuse it.
                await asyncio.sleep(0.5)
            except StoreFull as error:
                outcome = _too_large(error)
                await asyncio.sleep(0.05)
        if flushed is not None:
            await flushed

    async def _retry(
        self,
        claim: Claimed,
        why: str,
        last_word: Outcome,
        condition: str | None,
        budget: int | None,
        *,
        suspects: int = 0,
        delay_ms: int,
        fault: GpuFault | None = None,
        unstarted: bool = False,
    ) -> None:
        """Back to the queue; ``suspects`` is how many were in flight when the runner died of one of them.

        What was heard of the attempt goes ahead, for the dead letter if this was the last one.
        """
        words, faulted_on = None, None
        if fault is not None:
            words = fault.error
            if fault.kind != "out_of_memory":
                suspects = len(self._flights) + 1
                # A new process has a new context: what fails there too is the request, unless the card is broken.
                faulted_on = self._card if fault.kind == "broken_card" else claim.worker_id
        elif suspects and claim.mode == "queued":
            words = await self._talk.last_words(LAST_LINES)
        await self._talk.logs.flush()
        while True:
            try:
                await self._store.requests.retry(
                    claim.app,
                    claim.request_id,
                    claim.attempt,
                    worker_id=claim.worker_id,
                    reason=why,
                    crashed=suspects > 0,
                    suspects=max(1, suspects),
                    delay_ms=delay_ms,
                    fallback=last_word,
                    words=words,
                    exit_code=self._talk.exit_code,
                    condition=condition,
                    budget=budget,
                    faulted_on=faulted_on,
                    unstarted=unstarted,
                )
                self._inbox.release(claim)
                return
            except StoreUnavailable:
                await asyncio.sleep(0.5)
            except StoreFull as error:
                last_word = _too_large(error)

    # --- events -------------------------------------------------------------------------------------------------------

    def _look_at_times(self) -> None:
        """One timer for all attempts, as all have the same limit: it rings when the oldest one's time is up."""
        self._watch = None
        limit, now = self._limits.request_timeout, self._loop.time()
        left = [limit]
        for flight in list(self._flights.values()):
            if flight.done.done():
                continue
            if flight.due <= now:
                self._timed_out(flight)
            if flight.due > now:
                left.append(flight.due - now)
        if self._flights:
            self._watch = self._loop.call_later(min(left), self._look_at_times)

    def _timed_out(self, flight: Flight) -> None:
        seconds = self._limits.request_timeout
        if flight.socket is not None and not flight.overtime:
            # Its caller may simply have stayed on: the app is asked to end it before its runner pays for it.
            flight.overtime = True
            flight.due = self._loop.time() + OVERTIME_SECONDS
            flight.socket.end(1008, f"The connection was open for longer than request_timeout ({seconds:g} s).")
            return
        why = f"a request took longer than request_timeout ({seconds:g} s)"
        flight.end(Ending(why, outcomes.request_timeout(seconds), condition="timeout"))
        if flight.stream is not None:
            flight.stream.end(why)
        # A computation on a GPU cannot be interrupted in any other way.
        self._leave("kill", why)

    def _cancelled(self, request_id: str) -> None:
        for (held, _), flight in self._flights.items():
            if held == request_id:
                self._cancel(flight)

    def _heard(self, request_id: str) -> None:
        for (held, _), flight in self._flights.items():
            if held == request_id and flight.socket is not None:
                flight.socket.heard()

    def _cancel(self, flight: Flight) -> None:
        """Ask the app to stop; where it wishes so, its runner ends when it has not done it in time."""
        self._talk.send(Cancel(flight.claim.request_id))
        if flight.cancelled:
            return
        flight.cancelled = True
        self._loop.call_later(LEFTOVER_SECONDS, self._runs_on, flight)
        if self._limits.cancel_grace is not None:
            self._loop.call_later(self._limits.cancel_grace, self._not_stopped, flight)

    def _runs_on(self, flight: Flight) -> None:
        if not flight.done.done():
            self._leftover_changed()

    def _not_stopped(self, flight: Flight) -> None:
        if flight.done.done() or self._ending is not None:
            return
        why = f"a cancelled request did not end within cancel_grace_seconds ({self._limits.cancel_grace:g} s)"
        flight.end(Ending(why, outcomes.runner_disconnected(why), final=True))  # its end is in the store already
        self._leave("kill", why)

    def receive(self, message: Message) -> None:
        """Take an answer, or a part of one, from the runner; answers to unknown attempts are dropped."""
        kind = type(message)
        if kind is GpuFault:
            assert isinstance(message, GpuFault)
            self._fault(message)
            return
        flight = self._flights.get((message.id, message.attempt))  # type: ignore[attr-defined]
        if flight is None:
            if kind is Response and self.health is not None:
                assert isinstance(message, Response)
                self.health.receive(message)
            return
        if kind is Response:
            assert isinstance(message, Response)
            flight.end(Answer(message.status, message.headers, message.body))
        elif kind in _SOCKET:
            self._of_socket(flight, message)
        elif kind is ResponseStart:
            assert isinstance(message, ResponseStart)
            self._begin_stream(flight, message)
        elif kind is ResponseChunk:
            assert isinstance(message, ResponseChunk)
            self._chunk(flight, message.body)
        elif kind is ResponseEnd:
            assert isinstance(message, ResponseEnd)
            self._end_stream(flight, message.error)

    def _of_socket(self, flight: Flight, message: Message) -> None:
        if flight.socket is not None:
            try:
                flight.socket.receive(message)
            except StreamBroken as error:
                self._leave("kill", str(error))

    def _fault(self, fault: GpuFault) -> None:
        """The GPU failed under an attempt, whose answer usually follows."""
        flight = self._flights.get((fault.id, fault.attempt))
        if flight is not None and not flight.cancelled:
            flight.fault = flight.fault or fault
        elif fault.kind != "out_of_memory":
            self._leave("kill", _gpu_failed(fault))

    def _begin_stream(self, flight: Flight, message: ResponseStart) -> None:
        if flight.start is not None:
            return
        flight.start = message
        request_id = flight.claim.request_id
        if flight.claim.mode == "queued":
            flight.gathered = bytearray()
            return
        flight.stream = AnswerStream(
            flight.claim,
            self._store.requests.append_output,
            self._store.requests.unread_output,
            lambda chunks: self._talk.send(Credit(request_id, chunks)),
        )
        flight.forwarding = self._loop.create_task(self._forward(flight, flight.stream, message))

    async def _forward(self, flight: Flight, stream: AnswerStream, start: ResponseStart) -> None:
        # A file that the app saved before it began to answer is in the store before its URL reaches the caller.
        if self._talk.files.busy:
            await self._talk.files.settled()
        if not await stream.run(start.status, start.headers):
            flight.end(Answer(start.status, start.headers, b"", broken="it could not be passed on"))
            self._talk.send(Cancel(flight.claim.request_id))

    def _chunk(self, flight: Flight, body: bytes) -> None:
        if flight.stream is not None:
            try:
                flight.stream.chunk(body)
            except StreamBroken as error:
                self._leave("kill", str(error))
        elif flight.gathered is not None:
            if len(flight.gathered) + len(body) > MOST_GATHERED:
                limit = MOST_GATHERED // (1024 * 1024)
                assert flight.start is not None
                why = f"it is larger than {limit} MiB"
                flight.end(Answer(flight.start.status, flight.start.headers, b"", broken=why))
                self._talk.send(Cancel(flight.claim.request_id))
                return
            flight.gathered += body
            self._talk.send(Credit(flight.claim.request_id, 1))

    def _end_stream(self, flight: Flight, error: str | None) -> None:
        start = flight.start
        if start is None:
            return
        body = b""
        if flight.stream is not None:
            flight.stream.end(error)
        elif flight.gathered is not None:
            body = bytes(flight.gathered)
        flight.end(Answer(start.status, start.headers, body, error))


def _too_large(error: StoreFull) -> Outcome:
    """For a result that the disk has no room for: the work is lost either way, and the caller must not wait for it."""
    return infrastructure_error(507, "internal_error", f"The result could not be stored: {error}")


def _gpu_failed(fault: GpuFault) -> str:
    return f"the GPU failed: {fault.error}"
