"""How outcomes and calls travel through Redis, and the outcomes that the platform itself gives.

Owns the msgpack form of a call and of an outcome, and the wording of infrastructure errors. Bodies over
``INLINE_BYTES`` go to the blob store; only their reference is packed.
"""

from __future__ import annotations

from typing import Any

import msgpack
import orjson

from .blobs import BlobStore
from .records import Outcome, Submission

#: Who calls without a key.
ANONYMOUS = "anonymous"
#: Largest body kept inside Redis, in bytes.
INLINE_BYTES = 256 * 1024


def infrastructure_error(
    status: int, error_type: str, detail: str, headers: tuple[tuple[str, str], ...] = ()
) -> Outcome:
    """The platform's own error in the wire's form: ``{"detail", "error_type"}`` and the header that names the type."""
    body = orjson.dumps({"detail": detail, "error_type": error_type})
    named = (("content-type", "application/json"), ("x-fal-error-type", error_type), *headers)
    return Outcome(status, named, body, error_type)


#: How the error of a start begins that took too long: a revision keeps what went wrong last as text.
NOT_READY_IN_TIME = "not ready within startup_timeout"


def overdue() -> Outcome:
    """The request did not start before its start deadline."""
    return infrastructure_error(
        504,
        "request_timeout",
        "The request did not start within its start timeout. Allow a longer one, or keep a worker warm.",
        (("x-fal-request-timeout-type", "user"),),
    )


def poisoned() -> Outcome:
    """The request crashed three runners in a row, alone on each."""
    return infrastructure_error(
        500, "poison_request", "The request crashed three runners in a row and is not tried again; see the app's log."
    )


def cancelled(error_type: str = "client_cancelled") -> Outcome:
    """The caller cancelled, or hung up."""
    why = "The caller hung up." if error_type == "client_disconnected" else "The request was cancelled."
    return infrastructure_error(499, error_type, why)


def app_deleted() -> Outcome:
    """The app went away while the request waited."""
    return infrastructure_error(404, "runner_scheduling_failure", "The app was deleted while the request waited.")


def pack_call(submission: Submission, body_ref: str | None) -> bytes:
    """The HTTP call without its body."""
    packed: bytes = msgpack.packb(
        (
            submission.method,
            submission.path,
            submission.query,
            submission.headers,
            submission.base_url,
            body_ref,
            submission.retries,
        )
    )
    return packed


def body_ref_of(call: bytes) -> str | None:
    """Where the body of a packed call is, if it is in the blob store."""
    ref: str | None = msgpack.unpackb(call)[5]
    return ref


def retries_of(call: bytes) -> dict[str, int] | None:
    """The caller's own wishes about retries in a packed call."""
    retries: dict[str, int] | None = msgpack.unpackb(call)[6]
    return retries


def caller_of(call: bytes) -> str:
    """The owner of the key that a packed call was made with, ``ANONYMOUS`` where it needed none."""
    headers = msgpack.unpackb(call)[3]
    return next((value for name, value in headers if name == "x-fal-caller-user-id"), ANONYMOUS)


def call_for(call: bytes, request_id: str, body_ref: str | None) -> bytes:
    """A packed call as that of another request: its id in the header that the app sees, its own body."""
    method, path, query, headers, base_url, _, retries = msgpack.unpackb(call)
    headers = [(name, request_id if name == "x-fal-request-id" else value) for name, value in headers]
    packed: bytes = msgpack.packb((method, path, query, headers, base_url, body_ref, retries))
    return packed


def pack_outcome(outcome: Outcome, body_ref: str | None = None) -> bytes:
    """An outcome for Redis; with ``body_ref`` the body is in the blob store."""
    packed: bytes = msgpack.packb(
        (
            outcome.status,
            outcome.headers,
            b"" if body_ref else outcome.body,
            body_ref,
            outcome.error_type,
            outcome.inference_seconds,
        )
    )
    return packed


def unpack_outcome(packed: bytes) -> tuple[Outcome, str | None]:
    """An outcome and, if its body is elsewhere, the reference to it."""
    status, headers, body, body_ref, error_type, seconds = msgpack.unpackb(packed)
    return Outcome(status, headers_of(headers), body, error_type, seconds), body_ref


def headers_of(pairs: list[list[Any]]) -> tuple[tuple[str, str], ...]:
    """Header pairs as msgpack read them."""
    return tuple(map(tuple, pairs))


def with_body(outcome: Outcome, body_ref: str | None, blobs: BlobStore) -> Outcome:
    """The outcome with the body that ``body_ref`` names; reads a file."""
    if body_ref is None:
        return outcome
    return Outcome(outcome.status, outcome.headers, blobs.get(body_ref), outcome.error_type, outcome.inference_seconds)


#: Handed to every claim, packed once.
OVERDUE = pack_outcome(overdue())
POISONED = pack_outcome(poisoned())
