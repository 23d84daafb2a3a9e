"""The one table from what can go wrong to the HTTP answer that the caller gets.

A Refusal is the gateway's own no and carries its status; StoreError goes through TABLE; a disk that fails is a 503;
anything else is a 500 whose cause stands in the log only. Bodies are ``{"detail", "error_type"}``, the type repeated in
``X-Fal-Error-Type``.
"""

from __future__ import annotations

import errno
import reprlib
from typing import NamedTuple

from scheduler.store import errors as store_errors

from . import wire

Headers = list[tuple[bytes, bytes]]


class Refusal(Exception):
    """The gateway refuses; ``detail`` says what was wrong, with the value, and what to do next.

    Args:
        status: HTTP status.
        detail: for the caller.
        error_type: one of the protocol's names, where one fits.
        headers: further headers of the answer.
    """

    def __init__(
        self, status: int, detail: str, error_type: str | None = None, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.error_type = error_type
        self.headers = headers


class CallerGone(Exception):
    """The caller hung up; there is nobody left to answer."""


class Row(NamedTuple):
    """How one kind of error is answered; ``retry_after`` in seconds."""

    status: int
    error_type: str | None
    retry_after: int | None = None


TABLE: dict[type[Exception], Row] = {
    store_errors.StoreUnavailable: Row(503, "internal_error", 1),
    store_errors.StoreFull: Row(503, "internal_error", 5),
    store_errors.QueueFull: Row(429, "concurrent_requests_limit", 5),
    store_errors.IdempotencyConflict: Row(422, "bad_request"),
    store_errors.NotFound: Row(404, None),
    store_errors.StoreError: Row(500, "internal_error"),
}
#: What a broken disk says, a lost mount, a folder that is another user's; no path of ours leads there otherwise.
_BROKEN = frozenset(
    {errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.ENOTDIR, errno.EEXIST, errno.EACCES, errno.EPERM}
)
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80
_UNEXPECTED = Row(500, "internal_error")


def is_expected(error: Exception) -> bool:
    """Whether the error belongs to the table; anything else is a fault of ours and worth a traceback in the log."""
    return isinstance(error, Refusal | store_errors.StoreError) or _is_full_disk(error)


def _is_full_disk(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def _is_broken_disk(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in _BROKEN


def answer_for(error: Exception) -> tuple[int, Headers, bytes]:
    """Status, headers and body for an error."""
    if isinstance(error, Refusal):
        status, error_type, detail = error.status, error.error_type, error.detail
        headers = list(error.headers)
    elif _is_full_disk(error):
        status, error_type = 503, "internal_error"
        detail = f"The platform's disk takes nothing: {error}. Nothing was stored; try again when there is room."
        headers = [(b"retry-after", b"5")]
    elif _is_broken_disk(error):
        status, error_type = 503, "internal_error"
        cause = getattr(error, "strerror", None) or type(error).__name__
        detail = (
            f"The platform's disk cannot be used: {cause}. The gateway's log says where; try again when it is mended."
        )
        headers = [(b"retry-after", b"5")]
    else:
        row = next((TABLE[cls] for cls in type(error).__mro__ if cls in TABLE), _UNEXPECTED)
        status, error_type = row.status, row.error_type
        detail = str(error) if row is not _UNEXPECTED else "The gateway failed on this request; its log has the cause."
        headers = [(b"retry-after", str(row.retry_after).encode())] if row.retry_after is not None else []
    if error_type is not None:
        headers.append((b"x-fal-error-type", error_type.encode()))
    headers.append((b"content-type", b"application/json"))
    return status, headers, wire.error_body(detail, error_type)


def shown(value: object) -> str:
    """What a caller sent, in a few words for a refusal. Its own repr may be endless, or too deep to be made."""
    text = _REPR.repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def bad_request(detail: str) -> Refusal:
    """400, for input that is nonsense."""
    return Refusal(400, detail, "bad_request")


def unauthorized(detail: str) -> Refusal:
    """401, with the header that tells clients which scheme is meant."""
    return Refusal(401, detail, None, ((b"www-authenticate", b"Key"),))


def too_large(limit: int) -> Refusal:
    """413. The rest of the body is thrown away as it comes; closing at once would keep clients from reading this."""
    detail = (
        f"The body is over the limit of {limit} bytes. Send large inputs as URLs, or raise KEEPWARM_MAX_BODY_BYTES "
        "on the server."
    )
    return Refusal(413, detail, "bad_request")


def object_too_large(limit: int) -> Refusal:
    """413, for a source file."""
    return Refusal(
        413,
        f"The file is over the limit of {limit} bytes for files that come with an app. Download it in setup() instead, "
        "into /data where it stays, or leave it out of the app's folder.",
        "bad_request",
    )


def file_too_large(limit: int) -> Refusal:
    """413, for an upload."""
    return Refusal(
        413,
        f"The file is over the limit of {limit} bytes. Raise KEEPWARM_MAX_FILE_BYTES on the server.",
        "bad_request",
    )


def overloaded(detail: str) -> Refusal:
    """503 with a short Retry-After: the same request may work in a moment."""
    return Refusal(503, detail, "runner_scheduling_failure", ((b"retry-after", b"1"),))


def method_not_allowed(method: str, allowed: str) -> Refusal:
    """405 naming what is allowed."""
    return Refusal(405, f"{method} is not possible here; use {allowed}.", None, ((b"allow", allowed.encode()),))
