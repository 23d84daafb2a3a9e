"""An app's answer on its way out: which of its headers the caller sees, and answers of requests that failed.

Status and body are the app's own, unchanged.
"""

from __future__ import annotations

import re
from functools import lru_cache

import orjson

from scheduler.store.records import Headers as StoredHeaders
from scheduler.store.records import Outcome, RequestRecord, RequestState

from . import wire
from .asgi import Headers

#: Between the worker and the platform, or belonging to one hop. The id is set by the gateway itself.
_NOT_PASSED = frozenset(
    {
        "connection", "keep-alive", "proxy-connection", "transfer-encoding", "te", "trailer", "upgrade",
        "content-length", "date", "server", "x-fal-request-id", "x-fal-stop-runner", "x-fal-runner-health-check",
        "x-fal-cdn-token", "proxy-authenticate",
    }
)  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}")
_UNSAFE_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]|[^\x00-\xff]")
#: What callers are promised as the most; a client may refuse more.
_MAX_HEADER_BYTES = 16 * 1024


@lru_cache(maxsize=512)
def _passed(headers: StoredHeaders, retry_hint: bool) -> tuple[tuple[bytes, bytes], ...]:
    """An app answers with the same headers again and again, so that checking them once is enough."""
    found: list[tuple[bytes, bytes]] = []
    size = 0
    for name, value in headers:
        lower = name.lower()
        if lower in _NOT_PASSED or (lower == "x-fal-needs-retry" and not retry_hint):
            continue
        # A line break in a value would let an app write answers of its own into the connection.
        if not _NAME.fullmatch(name) or _UNSAFE_VALUE.search(value):
            continue
        size += len(name) + len(value) + 4
        if size <= _MAX_HEADER_BYTES:
            found.append((lower.encode("ascii"), value.encode("latin-1")))
    return tuple(found)


def passed_headers(headers: StoredHeaders, status: int) -> Headers:
    """The headers of an app's answer that its caller gets."""
    return list(_passed(headers, status == 429 or status >= 500))


def final(record: RequestRecord) -> tuple[int, Headers, bytes]:
    """Status, headers and body of a request that has ended, whatever its end."""
    outcome = record.outcome or _without_outcome(record)
    status = outcome.status if 200 <= outcome.status <= 599 else 502
    headers = passed_headers(outcome.headers, status)
    error_type = outcome.error_type or record.error_type
    if error_type is not None:
        names = {name for name, _ in headers}
        if b"x-fal-error-type" not in names:
            headers.append((b"x-fal-error-type", error_type.encode("latin-1", "replace")))
        # Only the caller's own deadline ends a request before it ever started; clients must not retry that.
        before_start = error_type == "request_timeout" and record.started_at_ms is None
        if before_start and b"x-fal-request-timeout-type" not in names:
            headers.append((b"x-fal-request-timeout-type", b"user"))
    return status, headers, outcome.body


def _without_outcome(record: RequestRecord) -> Outcome:
    if record.state is RequestState.CANCELLED:
        return failure(499, record.error_type or "client_cancelled", record.error or "The request was cancelled.")
    return failure(500, record.error_type or "internal_error", record.error or "The request failed.")


def failure(status: int, error_type: str, detail: str) -> Outcome:
    """An infrastructure error in the form of an answer."""
    headers = (("content-type", "application/json"),)
    return Outcome(status=status, headers=headers, body=wire.error_body(detail, error_type), error_type=error_type)


def detail(body: bytes) -> str:
    """What an error's body says, in one line, where only a line has room."""
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError:
        return ""
    said = content.get("detail") if isinstance(content, dict) else None
    return said.splitlines()[0] if isinstance(said, str) and said else ""
