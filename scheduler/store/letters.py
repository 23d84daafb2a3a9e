"""Dead letters: what queued requests left behind that were given up. Look at them, run them again, throw them away.

A letter is written by ``retry``, in the script that ends its request, and keeps the input after the request's own
record has gone. Which requests are given up is decided there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import msgpack

from . import keys
from .blobs import BlobStore
from .connection import Redis
from .errors import NotFound, StoreError, StoreUnavailable
from .outcomes import body_ref_of, call_for, headers_of
from .records import DeadLetter, LogEntry, Replayed
from .requests import check_id
from .scripts import SCRIPTS


class Letters:
    """Verbs on dead letters.

    Args:
        max_queue: waiting requests of one app beyond which nothing is replayed.
    """

    def __init__(self, redis: Redis, blobs: BlobStore, max_queue: int) -> None:
        self._redis = redis
        self._blobs = blobs
        self._max_queue = max_queue

    async def list(self, app: str, limit: int = 100) -> list[DeadLetter]:
        """The app's letters, the newest first, without ``words`` and ``log``."""
        reply = await SCRIPTS["list_letters"](self._redis, app, limit=limit)
        return list(await asyncio.gather(*(self._sized(_record(app, flat)) for flat in reply)))

    async def get(self, app: str, request_id: str) -> DeadLetter | None:
        """The letter of one request."""
        reply = await SCRIPTS["read_letter"](self._redis, app, letter_id=request_id)
        return None if reply is None else await self._sized(_record(app, reply))

    async def body(self, letter: DeadLetter) -> bytes:
        """The body of the request that was given up.

        Raises:
            NotFound: the letter was dropped meanwhile, or its file is gone.
        """
        if letter.body_ref is not None:
            try:
                return await asyncio.to_thread(self._blobs.get, letter.body_ref)
            except FileNotFoundError:
                raise _bodiless(letter.request_id) from None
        body = await self._redis.command("HGET", keys.letter(letter.app, letter.request_id), "body")
        if body is None:
            raise NotFound(f"The dead letter {letter.request_id} was dropped.")
        return bytes(body)

    async def replay(self, app: str, letter_id: str, request_id: str, *, again: bool = False) -> Replayed:
        """Submits a letter's input as the new request ``request_id``. The letter stays, and says so.

        Asking twice with one ``request_id`` makes one request. The new request has the webhook and the priority of the
        old one, and as many attempts; a start time-out has been passed long ago and is not taken over.

        Args:
            again: also when the letter was replayed before.

        Returns:
            The id, and whether it is that of an earlier replay, which without ``again`` is all that happens.

        Raises:
            NotFound: no such letter or app, or its body is gone. QueueFull, StoreFull, StoreUnavailable.
        """
        check_id(request_id)
        call = await self._redis.command("HGET", keys.letter(app, letter_id), "call")
        if call is None:
            raise NotFound(f"There is no dead letter {letter_id} of {app}.")
        old_ref, new_ref = body_ref_of(call), None
        if old_ref is not None:
            try:
                new_ref = await asyncio.to_thread(self._blobs.link, old_ref, app=app, request_id=request_id)
            except FileNotFoundError:
                raise _bodiless(letter_id) from None
        try:
            answer, earlier = await SCRIPTS["replay_letter"](
                self._redis,
                app,
                letter_id=letter_id,
                request_id=request_id,
                call=call_for(call, request_id, new_ref),
                again=int(again),
                cap=self._max_queue,
            )
        except StoreUnavailable:
            raise  # it may have been stored: the sweep will know
        except StoreError:
            await self._delete(new_ref)
            raise
        if earlier:
            await self._delete(new_ref)
        return Replayed(answer.decode(), earlier == 1)

    async def drop(self, app: str, request_id: str) -> bool:
        """Throws a letter and its input away; False if there was none."""
        call = await SCRIPTS["drop_letter"](self._redis, app, letter_id=request_id)
        if call is None:
            return False
        await self._delete(body_ref_of(call))
        return True

    async def blob_refs(self, app: str, request_id: str) -> set[str]:
        """References to what the letter of that request needs on disk."""
        call = await self._redis.command("HGET", keys.letter(app, request_id), "call")
        ref = body_ref_of(call) if call else None
        return {ref} if ref is not None else set()

    async def _delete(self, ref: str | None) -> None:
        if ref is not None:
            await asyncio.to_thread(self._blobs.delete, ref)

    async def _sized(self, letter: DeadLetter) -> DeadLetter:
        if letter.body_ref is None:
            return letter
        size: int | None = await asyncio.to_thread(self._blobs.size, letter.body_ref)
        return replace(letter, body_bytes=size or 0)


def _record(app: str, flat: Sequence[bytes]) -> DeadLetter:
    raw = {flat[i].decode(): flat[i + 1] for i in range(0, len(flat), 2)}
    text = {name: value.decode("utf-8", "replace") for name, value in raw.items() if name not in ("call", "log")}
    method, path, query, headers, base_url, body_ref, _ = msgpack.unpackb(raw["call"])
    return DeadLetter(
        app=app,
        request_id=text["id"],
        error=text["error"],
        attempts=int(text["attempts"]),
        crashes=int(text["crashes"]),
        submitted_at_ms=int(text["submitted_at"]),
        died_at_ms=int(text["died_at"]),
        method=method,
        path=path,
        query=query,
        headers=headers_of(headers),
        base_url=base_url,
        body_bytes=int(text["body_bytes"]),
        body_ref=body_ref,
        started_at_ms=_number(text["started_at"]),
        error_type=text["error_type"] or None,
        worker_id=text["worker"] or None,
        host=text["host"] or None,
        exit_code=_number(text["exit_code"]),
        words=text.get("words", ""),
        log=_lines(raw["log"], text["id"]) if "log" in raw else (),
        priority="low" if text["priority"] == "low" else "normal",
        webhook=text["webhook"] or None,
        replayed_as=text["replayed_as"] or None,
        replayed_at_ms=_number(text["replayed_at"]),
    )


def _bodiless(request_id: str) -> NotFound:
    return NotFound(f"The body of the request {request_id} is no longer on disk; drop the letter and submit it anew.")


def _number(text: str) -> int | None:
    return int(text) if text else None


def _lines(packed: bytes, request_id: str) -> tuple[LogEntry, ...]:
    """The log lines as the script packed them; an empty Lua table may come as a map."""
    lines = msgpack.unpackb(packed, raw=True)
    return tuple(
        LogEntry("", float(at), level.decode(), message.decode("utf-8", "replace"), request_id=request_id)
        for at, level, message in lines or ()
    )
