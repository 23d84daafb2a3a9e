"""Reads the head of a request once: what the gateway itself obeys, and what the app may see of it.

Leaves the body to ``limits`` and the meaning of credentials to ``auth``.
"""

from __future__ import annotations

import math
import os
from urllib.parse import parse_qsl, urlencode

import orjson

from scheduler.store.records import Priority

from .asgi import Scope
from .errors import bad_request

#: Never passed on: credentials, what belongs to one hop, and what a caller could use to lie about itself.
_NOT_PASSED = frozenset(
    {
        b"authorization", b"proxy-authorization", b"cookie", b"connection", b"keep-alive", b"proxy-connection", b"te",
        b"trailer", b"transfer-encoding", b"upgrade", b"expect", b"forwarded", b"x-forwarded-for", b"x-forwarded-host",
        b"x-forwarded-proto", b"x-forwarded-port", b"x-real-ip", b"http2-settings",
    }
)  # fmt: skip
#: The one reserved header of callers that apps are meant to see.
_PASSED_RESERVED = b"x-fal-object-lifecycle-preference"
_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}
_LONGEST_TIMEOUT = 30 * 86400.0
#: Zeros in front of a length pass the parser, and Python does not read thousands of digits.
_MOST_DIGITS = 18
_CONDITIONS = frozenset({"server_error", "timeout", "connection_error"})
#: More than the attempts that any request has.
_MOST_RETRIES = 100


class Head:
    """What matters of a request's head. ``passed``: headers for the app, lower-case names."""

    __slots__ = (
        "authorization", "content_length", "forwarded_host", "forwarded_proto", "host", "idempotency_key", "options",
        "origin", "passed",
    )  # fmt: skip

    def __init__(self) -> None:
        self.passed: list[tuple[str, str]] = []
        self.options: dict[bytes, bytes] | None = None
        self.authorization: bytes | None = None
        self.host = b""
        self.origin = False
        self.content_length: int | None = None
        self.forwarded_host: bytes | None = None
        self.forwarded_proto: bytes | None = None
        self.idempotency_key: bytes | None = None


def read_head(scope: Scope) -> Head:
    """One pass over the headers.

    Raises:
        Refusal: 400 without a Host header, for two Host or Authorization headers that differ, for a length that is no
            number.
    """
    head = Head()
    passed = head.passed
    for name, value in scope["headers"]:
        if name[:6] == b"x-fal-":
            if head.options is None:
                head.options = {}
            head.options[name] = value
            if name == _PASSED_RESERVED:
                passed.append((name.decode("latin-1"), value.decode("latin-1")))
        elif name in _NOT_PASSED:
            _note_own(head, name, value)
        else:
            if name == b"host":
                if head.host and head.host != value:
                    raise bad_request("The request has two different Host headers; send one.")
                head.host = value
            elif name == b"content-length":
                if not value.isdigit() or len(value) > _MOST_DIGITS:
                    raise bad_request("Content-Length is not a number of at most 18 digits.")
                head.content_length = int(value)
            elif name == b"origin":
                head.origin = True
            elif name == b"idempotency-key":
                head.idempotency_key = value
            passed.append((name.decode("latin-1"), value.decode("latin-1")))
    if not head.host and scope["http_version"] == "1.1" and not any(name == b"host" for name, _ in scope["headers"]):
        raise bad_request("HTTP/1.1 requires a Host header; send one.")
    return head


def _note_own(head: Head, name: bytes, value: bytes) -> None:
    if name == b"authorization":
        if head.authorization is not None and head.authorization != value:
            raise bad_request("The request has two different Authorization headers; send one.")
        head.authorization = value
    elif name == b"x-forwarded-host":
        head.forwarded_host = value
    elif name == b"x-forwarded-proto":
        head.forwarded_proto = value


def new_request_id() -> str:
    """A random UUID, as ``uuid.uuid4`` makes them but in a quarter of the time: every request needs one."""
    digits = os.urandom(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{_VARIANT[digits[16]]}{digits[17:20]}-{digits[20:]}"


def start_timeout(head: Head, default: float | None) -> float | None:
    """``X-Fal-Request-Timeout``: seconds within which processing must start; the app's ``default`` without it.

    Raises:
        Refusal: 400 when it is no number of seconds above 0.1 and up to 30 days.
    """
    given = head.options.get(b"x-fal-request-timeout") if head.options else None
    if given is None:
        return default
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0.1 < seconds <= _LONGEST_TIMEOUT:
        text = given[:40].decode("latin-1")
        raise bad_request(f"X-Fal-Request-Timeout is {text!r}; give seconds, above 0.1 and up to 2592000 (30 days).")
    return seconds


def priority(head: Head) -> Priority:
    """``X-Fal-Queue-Priority``: normal or low; 400 otherwise."""
    given = head.options.get(b"x-fal-queue-priority") if head.options else None
    if given is None or given.lower() == b"normal":
        return "normal"
    if given.lower() == b"low":
        return "low"
    raise bad_request(f"X-Fal-Queue-Priority is {given[:40].decode('latin-1')!r}; use normal or low.")


def no_retry(head: Head) -> bool:
    """``X-Fal-No-Retry``: 1, true or yes (or 0, false, no); 400 otherwise."""
    given = head.options.get(b"x-fal-no-retry") if head.options else None
    if given is None or given.lower() in (b"0", b"false", b"no"):
        return False
    if given.lower() in (b"1", b"true", b"yes"):
        return True
    raise bad_request(f"X-Fal-No-Retry is {given[:40].decode('latin-1')!r}; use 1, true or yes.")


def retries(head: Head) -> dict[str, int] | None:
    """``X-Fal-Retry-Config``: how many retries for each condition, ``{"server_error": {"retries": 2}}`` as JSON.

    What cannot be read is ignored, as fal documents it; counts below 0 are 0.
    """
    given = head.options.get(b"x-fal-retry-config") if head.options else None
    if given is None:
        return None
    try:
        wishes = orjson.loads(given)
    except orjson.JSONDecodeError:
        return None
    counts = {}
    for condition in _CONDITIONS & set(wishes if isinstance(wishes, dict) else ()):
        wish = wishes[condition]
        count = wish.get("retries") if isinstance(wish, dict) else None
        if type(count) is int:
            counts[condition] = min(max(count, 0), _MOST_RETRIES)
    return counts or None


def idempotency_key(head: Head) -> str | None:
    """``Idempotency-Key``: up to 255 visible characters; 400 otherwise."""
    given = head.idempotency_key
    if given is None:
        return None
    if not 1 <= len(given) <= 255 or not all(33 <= byte < 127 for byte in given):
        raise bad_request("Idempotency-Key must be 1 to 255 visible ASCII characters without spaces.")
    return given.decode("ascii")


def split_query(raw: bytes, consumed: frozenset[str]) -> tuple[str, dict[str, str]]:
    """The query that the app sees, and the parameters that the gateway keeps for itself.

    Untouched, byte for byte, unless it holds one of the gateway's own names.
    """
    text = raw.decode("latin-1")
    if "fal_" not in text:
        return text, {}
    own: dict[str, str] = {}
    rest: list[tuple[str, str]] = []
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=1000, errors="strict")
    except ValueError:
        raise bad_request("The query string is not valid UTF-8, or has more than 1000 fields.") from None
    for name, value in pairs:
        if name in consumed or name == "fal_jwt_token":  # a token is a credential: the app must not get it
            own[name] = value
        else:
            rest.append((name, value))
    return (urlencode(rest), own) if own else (text, {})
