"""The life of requests: store, look, cancel, retry, fail; and the pieces of streamed answers.

Every move between states is one Lua verb. Claiming and finishing, the workers' side, is in ``inbox``.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import uuid
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from . import keys
from .blobs import BlobStore
from .connection import Redis
from .errors import StoreError, StoreUnavailable
from .outcomes import (
    INLINE_BYTES,
    POISONED,
    app_deleted,
    body_ref_of,
    caller_of,
    cancelled,
    pack_call,
    pack_outcome,
    retries_of,
    unpack_outcome,
    with_body,
)
from .pieces import PieceKind, read_pieces
from .records import Claimed, Mode, Outcome, RequestRecord, RequestState, Submission, Submitted
from .scripts import SCRIPTS

Cancelled = Literal["cancelled_queued", "cancelled_running", "already_completed", "not_found"]
Retried = Literal["requeued", "failed", "superseded", "alive"]

_SUBMIT = SCRIPTS["submit"]
_BATCH = 200
_PAGE = 500
#: Bytes of a runner's last words that a dead letter keeps.
_MOST_WORDS = 16 * 1024
_WORD = re.compile(r"[A-Za-z0-9_.:-]{1,200}\Z")


class Requests:
    """Verbs on requests.

    Args:
        retention_s: seconds for which a finished request and its result are kept.
        max_queue: waiting requests of one app beyond which submit is refused.
    """

    def __init__(self, redis: Redis, blobs: BlobStore, retention_s: float, max_queue: int) -> None:
        self._redis = redis
        self._blobs = blobs
        self.retention_ms = int(retention_s * 1000)
        self._max_queue = max_queue
        self._output_sequence: dict[tuple[str, int], int] = {}

    async def submit(self, s: Submission) -> Submitted:
        """Stores a request; when this returns it survives what the server's persistence promises to survive.

        Asking twice with one request id stores once.

        Raises:
            ValueError: an id with characters other than letters, digits and ``_.:-``.
            NotFound: no such app. QueueFull: the caller's or the platform's limit. IdempotencyConflict.
            StoreFull: Redis is out of memory. StoreUnavailable: unknown whether it was stored; ask again.
        """
        check_id(s.request_id)
        if s.gateway is not None:
            check_id(s.gateway)
        body_ref = None
        if len(s.body) > INLINE_BYTES:
            body_ref = await asyncio.to_thread(self._blobs.put, s.body, app=s.app, request_id=s.request_id)
        try:
            reply = await self._store(s, body_ref)
        except StoreUnavailable:
            raise  # it may have been stored: the sweep will know
        except StoreError:
            if body_ref is not None:
                await asyncio.to_thread(self._blobs.delete, body_ref)
            raise
        if body_ref is not None and reply[0].decode() != s.request_id:  # its key led to an earlier request
            await asyncio.to_thread(self._blobs.delete, body_ref)
        return Submitted(reply[0].decode(), reply[1], reply[2] == 1)

    async def _store(self, s: Submission, body_ref: str | None) -> list[Any]:
        reply: list[Any] = await _SUBMIT(
            self._redis,
            s.app,
            request_id=s.request_id,
            mode=s.mode,
            priority=s.priority,
            call=pack_call(s, body_ref),
            body=s.body if body_ref is None else b"",
            gateway=s.gateway or "",
            webhook=s.webhook or "",
            max_attempts=s.max_attempts,
            start_ms="" if s.start_timeout is None else int(s.start_timeout * 1000),
            max_queue="" if s.max_queue_length is None else s.max_queue_length,
            cap=self._max_queue,
            idempotency_key=hashlib.sha256(s.idempotency_key.encode()).hexdigest() if s.idempotency_key else "",
            fingerprint=_fingerprint(s) if s.idempotency_key else "",
            keep="brief" if not s.store_io else "" if s.keep_s is None else int(s.keep_s * 1000),
        )
        return reply

    async def get(self, app: str, request_id: str) -> RequestRecord | None:
        """Everything known of a request: its outcome when it has ended, its position while it is queued.

        Raises:
            StoreUnavailable.
        """
        reply = await SCRIPTS["read_request"](self._redis, app, request_id=request_id)
        if reply is None:
            return None
        state = RequestState(reply[0].decode())
        outcome = None
        if state.terminal and reply[6]:
            outcome, body_ref = unpack_outcome(reply[6])
            if body_ref is not None:
                outcome = await asyncio.to_thread(with_body, outcome, body_ref, self._blobs)
        return RequestRecord(
            app=app,
            request_id=request_id,
            state=state,
            mode=_mode(reply[1]),
            attempt=int(reply[2]),
            submitted_at_ms=int(reply[3]),
            started_at_ms=int(reply[4]) if reply[4] else None,
            finished_at_ms=int(reply[5]) if reply[5] else None,
            outcome=outcome,
            error=reply[7].decode() or None,
            error_type=reply[8].decode() or None,
            worker_id=reply[9].decode() or None,
            webhook=reply[10].decode() or None,
            position=reply[11] if reply[11] >= 0 else None,
        )

    async def state(self, app: str, request_id: str) -> RequestState | None:
        """Only the state: for polling."""
        reply = await self._redis.command("HGET", keys.request(app, request_id), "status")
        return RequestState(reply.decode()) if reply is not None else None

    async def blob_refs(self, app: str, request_id: str) -> set[str]:
        """References to what the request needs on disk: its body until it has ended, its result from then on."""
        call, result = await self._redis.command("HMGET", keys.request(app, request_id), "call", "result")
        refs = (body_ref_of(call) if call else None, unpack_outcome(result)[1] if result else None)
        return {ref for ref in refs if ref is not None}

    async def retry_wishes(self, app: str, request_id: str) -> dict[str, int] | None:
        """The caller's own ``X-Fal-Retry-Config``, while the request has not ended."""
        call = await self._redis.command("HGET", keys.request(app, request_id), "call")
        return retries_of(call) if call else None

    def decode_push(self, message: bytes) -> tuple[str, RequestRecord | None]:
        """A message of a gateway's channel: the request that ended, or ``None`` for "look yourself".

        That is either new output of a streamed answer or a result too large to be sent along.
        """
        head, _, packed = message.partition(b"\n")
        words = head.decode().split(" ")
        if words[0] != "result":
            return words[1], None
        _, app, request_id, mode, state, attempt, submitted, started, finished, worker, error_type = words
        outcome, body_ref = unpack_outcome(packed)
        if body_ref is not None:
            return request_id, None
        return request_id, RequestRecord(
            app=app,
            request_id=request_id,
            state=RequestState(state),
            mode=_mode(mode),
            attempt=int(attempt),
            submitted_at_ms=int(submitted),
            started_at_ms=int(started) if started else None,
            finished_at_ms=int(finished),
            outcome=outcome,
            error_type=error_type or None,
            worker_id=worker or None,
        )

    async def cancel(self, app: str, request_id: str, *, error_type: str = "client_cancelled") -> Cancelled:
        """Ends a request for good; a worker that is running it is told to stop.

        Raises:
            StoreUnavailable.
        """
        reply = await SCRIPTS["cancel"](
            self._redis,
            app,
            request_id=request_id,
            result=pack_outcome(cancelled(error_type)),
            error_type=error_type,
            token=uuid.uuid4().hex,
            retention_ms=self.retention_ms,
        )
        answer: Cancelled = reply.decode()
        return answer

    async def fail_queued(self, app: str, request_id: str, outcome: Outcome) -> bool:
        """Ends a waiting request that will not start; False if it was not waiting any more."""
        reply = await SCRIPTS["fail_queued"](
            self._redis,
            app,
            request_id=request_id,
            result=pack_outcome(outcome),
            error_type=outcome.error_type or "",
            retention_ms=self.retention_ms,
        )
        return bool(reply)

    async def fail_waiting(self, app: str, outcome: Outcome, *, mode: Mode | None = None) -> int:
        """Ends every waiting request of the app, or those of one mode; returns how many."""
        return await self._end_waiting(app, RequestState.ERROR, outcome, mode)

    async def flush_queue(self, app: str, caller: str | None = None) -> int:
        """Cancels every waiting request of the app, or of one of its callers; returns how many."""
        return await self._end_waiting(app, RequestState.CANCELLED, cancelled(), None, caller)

    async def fail_deleted(self, app: str) -> int:
        """Ends every waiting request of an app that was deleted; returns how many."""
        return await self._end_waiting(app, RequestState.ERROR, app_deleted(), None)

    async def _end_waiting(
        self, app: str, state: RequestState, outcome: Outcome, mode: Mode | None, caller: str | None = None
    ) -> int:
        total = 0
        for place, begin in (("delayed", b"0"), ("normal", b"-"), ("low", b"-")):
            after = begin
            while after:
                ended, after = await SCRIPTS["fail_waiting"](
                    self._redis,
                    app,
                    status=state,
                    result=pack_outcome(outcome),
                    error_type=outcome.error_type or "",
                    mode=mode or "",
                    caller=caller or "",
                    place=place,
                    after=after,
                    limit=_BATCH,
                    retention_ms=self.retention_ms,
                )
                total += ended
        return total

    async def retry(
        self,
        app: str,
        request_id: str,
        attempt: int,
        *,
        worker_id: str,
        reason: str,
        crashed: bool,
        delay_ms: int,
        fallback: Outcome,
        epoch: int | None = None,
        suspects: int = 1,
        words: str | None = None,
        exit_code: int | None = None,
        condition: str | None = None,
        budget: int | None = None,
        faulted_on: str | None = None,
        unstarted: bool = False,
    ) -> Retried:
        """An attempt ended without an answer: back to the queue, or to ERROR with ``fallback``.

        Direct requests and used-up attempts fail; three crashes fail as a poisoned request.

        Args:
            crashed: the runner died. suspects: requests in flight on it then; with more than one, each runs again
                alone and this crash is not counted against it.
            delay_ms: back-off. epoch: the leader's, when the reaper asks; a lease still running then answers "alive".
            words: what the runner wrote last, for the dead letter; None takes what the app answered, if it did.
            exit_code: how the runner ended, negative for a signal; None when nobody saw it.
            condition: what kind of ending it was; ``budget`` is how many of that kind may be followed by another
                attempt, each kind counted for itself; None leaves it to the attempts in all.
            unstarted: no runner was told of it: the attempt costs none, and a direct call waits for another worker.
            faulted_on: where the GPU failed: a crash that counts once the request has made it fail elsewhere, too.

        Raises:
            StaleLeader, StoreUnavailable.
            StoreFull: the disk has no room for a large ``fallback``.
        """
        body_ref = await self._keep_aside(app, request_id, fallback)
        reply = await SCRIPTS["retry"](
            self._redis,
            app,
            request_id=request_id,
            attempt=attempt,
            worker_id=worker_id,
            by_epoch="" if epoch is None else epoch,
            why=reason,
            crashed=int(crashed),
            suspects=suspects,
            delay_ms=delay_ms,
            fallback=pack_outcome(fallback, body_ref),
            fallback_type=fallback.error_type or "",
            poison=POISONED,
            retention_ms=self.retention_ms,
            words=_last_words(words, fallback),
            exit_code="" if exit_code is None else exit_code,
            condition=condition or "",
            budget="" if condition is None or budget is None else budget,
            faulted_on=faulted_on or "",
            unstarted=int(unstarted),
        )
        answer: Retried = reply.decode()
        if body_ref is not None and body_ref not in await self.blob_refs(app, request_id):
            await asyncio.to_thread(self._blobs.delete, body_ref)
        return answer

    async def _keep_aside(self, app: str, request_id: str, outcome: Outcome) -> str | None:
        if len(outcome.body) <= INLINE_BYTES:
            return None
        return await asyncio.to_thread(self._blobs.put, outcome.body, app=app, request_id=request_id)

    async def promote(self, app: str, epoch: int) -> int:
        """Requests whose back-off is over return to the queue; returns how many.

        Raises:
            StaleLeader, StoreUnavailable.
        """
        count: int = await SCRIPTS["promote"](self._redis, app, by_epoch=epoch)
        return count

    async def expired_leases(self, app: str) -> list[tuple[str, int, str]]:
        """``(request id, attempt, worker id)`` of attempts whose worker has not renewed them in time."""
        reply = await SCRIPTS["expired_leases"](self._redis, app)
        return [(reply[i].decode(), int(reply[i + 1]), reply[i + 2].decode()) for i in range(0, len(reply), 3)]

    async def overdue_starts(self, app: str) -> list[str]:
        """Ids of waiting requests whose start deadline has passed."""
        return [reply.decode() for reply in await SCRIPTS["overdue_starts"](self._redis, app)]

    async def running(self, app: str, at_most: int) -> list[RequestRecord]:
        """Requests that workers have now, those that began first before the others."""
        ids = await self._redis.command("ZRANGE", keys.leases(app), 0, at_most - 1)
        found = await asyncio.gather(*(self.get(app, request_id.decode()) for request_id in ids))
        # One that has ended between the two looks is no longer running.
        running = [record for record in found if record is not None and record.state is RequestState.IN_PROGRESS]
        return sorted(running, key=lambda record: record.started_at_ms or 0)

    async def queue_size(self, app: str) -> int:
        """Waiting requests of the app, those in back-off included."""
        size: int = await SCRIPTS["queue_size"](self._redis, app)
        return size

    async def queue_by_caller(self, app: str) -> dict[str, int]:
        """Waiting requests of the app by the owner of their key, those with most first.

        Read in pages, so that a long queue keeps nobody waiting: what moves meanwhile may be counted or not.
        """
        counts: Counter[str] = Counter()
        delayed = await self._redis.command("ZRANGE", keys.delayed(app), 0, -1)
        for start in range(0, len(delayed), _PAGE):
            await self._count_callers(app, delayed[start : start + _PAGE], counts)
        for queue in (keys.queue_normal(app), keys.queue_low(app)):
            after = "-"
            while entries := await self._redis.command("XRANGE", queue, after, "+", "COUNT", _PAGE):
                after = f"({entries[-1][0].decode()}"
                await self._count_callers(app, [fields[1] for _, fields in entries], counts)
        return dict(counts.most_common())

    async def _count_callers(self, app: str, ids: Sequence[bytes], counts: Counter[str]) -> None:
        calls = await asyncio.gather(
            *(self._redis.command("HMGET", keys.request(app, each.decode()), "status", "call") for each in ids)
        )
        counts.update(caller_of(call) for status, call in calls if status == b"IN_QUEUE")

    async def append_output(self, claim: Claimed, kind: PieceKind, data: bytes) -> int:
        """Stores one piece of a streamed answer, or of what a connection's app sends, and tells the gateway; one piece
        after the other.

        Returns:
            Pieces that the gateway has not read yet, for back-pressure; -1 when the attempt was cancelled or
            superseded and must stop.
        """
        attempt = (claim.request_id, claim.attempt)
        sequence = self._output_sequence.pop(attempt, 0) + 1  # last of all now: the idle ones are forgotten first
        self._output_sequence[attempt] = sequence
        if len(self._output_sequence) > 4096:  # streams whose worker never came to their end
            del self._output_sequence[next(iter(self._output_sequence))]
        if kind in ("end", "close"):
            del self._output_sequence[attempt]
        unread: int = await SCRIPTS["append_output"](
            self._redis,
            claim.app,
            request_id=claim.request_id,
            attempt=claim.attempt,
            worker_id=claim.worker_id,
            sequence=sequence,
            kind=kind,
            data=data,
        )
        if unread < 0:
            self._output_sequence.pop(attempt, None)
        return unread

    async def unread_output(self, app: str, request_id: str) -> int:
        """Pieces of a streamed answer that the gateway has not read yet."""
        count: int = await self._redis.command("XLEN", keys.output(app, request_id))
        return count

    async def read_output(self, app: str, request_id: str, after: str = "0") -> list[tuple[str, str, bytes]]:
        """``(id, kind, data)`` of the pieces after ``after``; what came up to ``after`` is deleted as read."""
        return await read_pieces(self._redis, keys.output(app, request_id), after)


def check_id(text: str) -> None:
    """Ids are words in the lines that claims and results travel as.

    Raises:
        ValueError: characters other than letters, digits and ``_.:-``.
    """
    if not _WORD.match(text):
        raise ValueError(f"{text!r} is no id")


def _fingerprint(s: Submission) -> str:
    digest = hashlib.sha256(f"{s.method} {s.path}?{s.query}\n".encode())
    digest.update(s.body)
    return digest.hexdigest()


def _last_words(words: str | None, fallback: Outcome) -> bytes:
    """What a dead letter quotes; the end matters most of what a process wrote, the beginning of an answer."""
    if words is not None:
        return words.encode("utf-8", "replace")[-_MOST_WORDS:]
    return b"" if fallback.error_type is not None else fallback.body[:_MOST_WORDS]


def _mode(value: bytes | str) -> Mode:
    return "direct" if value in (b"direct", "direct") else "queued"
