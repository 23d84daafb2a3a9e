"""Files of apps and callers: ``GET /cdn/files/{id}/{name}``, with ranges, in a form that cannot act on this origin.

Anybody who knows the id may fetch, unless who uploaded the file said otherwise; ids cannot be guessed. Leaves keeping
files to the store and taking them to ``uploads``.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Generator
from typing import NamedTuple
from urllib.parse import quote

from scheduler.store import Store
from scheduler.store.files import StoredFile

from . import cors
from .asgi import Headers, Receive, Scope, Send, respond
from .auth import Keys
from .errors import CallerGone, Refusal, method_not_allowed
from .incoming import Head

_PATH = re.compile(r"/files/(?P<id>[A-Za-z0-9_-]{1,128})(?:/[^/]*)?")
_RANGE = re.compile(rb"bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))")
_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]{1,80}/[a-z0-9!#$&^_.+-]{1,80}(?:; ?charset=[A-Za-z0-9_-]{1,40})?", re.IGNORECASE)
#: Shown in the browser; everything else (HTML and SVG above all, which can hold scripts) is a download.
_SHOWN = frozenset({"application/pdf", "application/json", "text/plain", "text/csv"})
_SHOWN_KINDS = ("image/", "audio/", "video/")
_POLICY = b"default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:; media-src 'self'"
_SCRIPTABLE = frozenset({"image/svg+xml"})


class Span(NamedTuple):
    """The bytes to send: from ``start`` up to, not including, ``end``."""

    start: int
    end: int
    partial: bool


class Files:
    """Serves stored files."""

    def __init__(self, store: Store, keys: Keys, write_timeout: float) -> None:
        self._store = store
        self._keys = keys
        self._write_timeout = write_timeout

    async def serve(self, scope: Scope, receive: Receive, send: Send, head: Head, path: str, request_id: str) -> None:
        """One file, or a part of it.

        Raises:
            Refusal: 404, 405, 416.
        """
        match = _PATH.fullmatch(path)
        if scope["method"] not in ("GET", "HEAD"):
            raise method_not_allowed(scope["method"], "GET")
        file = await asyncio.to_thread(self._store.files.open, match["id"]) if match else None
        if file is None:
            raise _not_there()
        await self._check(file, head)
        headers = _headers(file) + cors.ALLOW
        headers.append((b"x-fal-request-id", request_id.encode("ascii")))
        etag = f'"{file.file_id}-{file.size}"'.encode()
        headers.append((b"etag", etag))
        asked = {name: value for name, value in scope["headers"] if name in (b"range", b"if-range", b"if-none-match")}
        if etag in [item.strip() for item in asked.get(b"if-none-match", b"").split(b",")]:
            return await respond(send, 304, headers, b"")
        span = _span(asked, file.size, etag)
        if span.partial:
            headers.append((b"content-range", b"bytes %d-%d/%d" % (span.start, span.end - 1, file.size)))
        headers.append((b"content-length", b"%d" % (span.end - span.start)))
        await send({"type": "http.response.start", "status": 206 if span.partial else 200, "headers": headers})
        if scope["method"] == "HEAD":
            return await send({"type": "http.response.body", "body": b""})
        await self._send_span(send, file, span)

    async def _check(self, file: StoredFile, head: Head) -> None:
        """Whether this caller may have the file. Most are for everybody who knows their id, and cost no look-up."""
        if file.decision(None) == "allow" and not head.authorization:
            return
        try:
            key = await self._keys.identify(head.authorization)
        except Refusal:
            key = None  # a token of another service, sent along by a client that sends it everywhere
        decision = file.decision(key.owner if key is not None else None)
        if decision == "hide":
            raise _not_there()
        if decision == "forbid":
            raise Refusal(403, "Who uploaded this file does not let everybody fetch it; send a key that may.")

    async def _send_span(self, send: Send, file: StoredFile, span: Span) -> None:
        blocks = self._store.files.blocks(file, span.start, span.end)
        left = span.end - span.start
        try:
            while left:
                block = await asyncio.to_thread(next, blocks, None)
                if block is None:
                    raise CallerGone  # shorter than recorded: only closing the connection can say so
                left -= len(block)
                try:
                    async with asyncio.timeout(self._write_timeout):
                        await send({"type": "http.response.body", "body": block, "more_body": True})
                except TimeoutError:
                    raise CallerGone from None
            await send({"type": "http.response.body", "body": b""})
        finally:
            if isinstance(blocks, Generator):
                await asyncio.to_thread(blocks.close)


def _headers(file: StoredFile) -> Headers:
    content_type = file.content_type.strip()
    if not _TYPE.fullmatch(content_type):
        content_type = "application/octet-stream"
    kind = content_type.split(";", 1)[0].strip().lower()
    shown = kind in _SHOWN or (kind.startswith(_SHOWN_KINDS) and kind not in _SCRIPTABLE)
    if kind.startswith("text/") and "charset" not in content_type.lower():
        content_type += "; charset=utf-8"
    disposition = "inline" if shown else "attachment"
    name = quote(file.name[-200:], safe="")
    # Browsers refuse to open their PDF viewer inside a sandbox; it is one of its own.
    policy = _POLICY if kind == "application/pdf" else b"sandbox; " + _POLICY
    return [
        (b"content-type", content_type.encode("ascii")),
        (b"content-disposition", f"{disposition}; filename*=UTF-8''{name}".encode("ascii")),
        (b"x-content-type-options", b"nosniff"),
        (b"content-security-policy", policy),
        (b"cross-origin-resource-policy", b"cross-origin"),
        (b"referrer-policy", b"no-referrer"),
        (b"accept-ranges", b"bytes"),
        (b"cache-control", _caching(file)),
    ]


def _not_there() -> Refusal:
    return Refusal(404, "There is no such file; it may have been removed.")


def _caching(file: StoredFile) -> bytes:
    """What is stored under an id does not change; no cache may keep what ends, or is not for everybody."""
    if file.default != "allow" or file.decisions:
        return b"private, no-store"
    if file.expires_at is None:
        return b"public, max-age=31536000, immutable"
    return b"public, max-age=%d" % max(0, min(int(file.expires_at - time.time()), 31536000))


def _span(asked: dict[bytes, bytes], size: int, etag: bytes) -> Span:
    """What a Range header asks for; several ranges at once are answered with the whole file, as HTTP allows.

    Raises:
        Refusal: 416 when nothing of the file is in the range.
    """
    whole = Span(0, size, False)
    if asked.get(b"if-range", etag) != etag:
        return whole
    match = _RANGE.fullmatch(asked.get(b"range", b"").strip())
    if match is None:
        return whole
    first, last, suffix = match.groups()
    if suffix is not None:
        start, end = max(size - int(suffix), 0), size
        valid = int(suffix) > 0 and size > 0
    else:
        start = int(first)
        end = min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return whole
        valid = start < size
    if not valid:
        raise Refusal(416, f"The file has {size} bytes.", None, ((b"content-range", b"bytes */%d" % size),))
    return Span(start, end, True)
