"""Takes the bytes of files, onto the disk as they come: whole or in parts, by token or by signed URL.

Two dialects of parts: the Python client's below the file's own URL, the JavaScript client's below a signed one. Leaves
keeping files to the store and handing out tokens and URLs to ``storage``.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs, unquote

import orjson

from scheduler.store import Lifecycle, Store
from scheduler.store.uploads import MOST_PARTS, Incoming, Upload

from . import cors, wire
from .addresses import Addresses
from .asgi import Headers, Receive, Scope, Send, respond
from .auth import Keys, check_scope
from .errors import CallerGone, Refusal, bad_request, file_too_large, method_not_allowed, unauthorized
from .incoming import Head
from .lifecycle import lifecycle
from .limits import Limits
from .settings import Settings
from .storage import content_type_of, file_name, file_url, new_file_id
from .tokens import Tokens

_SIGNED = re.compile(r"/uploads/(?P<id>[0-9a-f]{32})(?:/(?P<what>[0-9]{1,5}|complete))?/?")
_PARTS = re.compile(
    r"/files/(?P<file>[A-Za-z0-9_-]{8,128})/[^/]*/multipart/(?P<id>[0-9a-f]{32})/(?P<what>[0-9]{1,5}|complete)/?"
)
_BLOCK = 1024 * 1024
_MOST_JSON = 2 * 1024 * 1024

Answer = tuple[dict[str, Any], Headers]


class Uploads:
    """Serves what is written below ``/cdn``."""

    def __init__(
        self, store: Store, settings: Settings, addresses: Addresses, keys: Keys, tokens: Tokens, limits: Limits
    ) -> None:
        self._store = store
        self._most = settings.max_file_bytes
        self._addresses = addresses
        self._keys = keys
        self._tokens = tokens
        self._limits = limits

    async def serve(self, scope: Scope, receive: Receive, send: Send, head: Head, path: str, request_id: str) -> None:
        """One upload or a part of one, answered.

        Raises:
            Refusal: 400, 401, 403, 404, 405, 413.
            CallerGone: the connection closed before everything was there.
        """
        call = self._route(scope["method"], path)
        if call is None:
            raise _not_here(scope["method"], path)
        body, headers = await call(scope, receive, head)
        headers += [(b"content-type", b"application/json"), (b"x-fal-request-id", request_id.encode()), *cors.ALLOW]
        await respond(send, 200, headers, wire.dumps(body))

    def _route(self, method: str, path: str) -> Callable[[Scope, Receive, Head], Awaitable[Answer]] | None:
        plain = path.rstrip("/")
        if method == "POST" and plain == "/files/upload":
            return self._whole
        if method == "POST" and plain == "/files/upload/multipart":
            return self._begin
        for pattern, opened in ((_SIGNED, self._signed_upload), (_PARTS, self._token_upload)):
            match = pattern.fullmatch(path)
            if match is None:
                continue
            call = _Parts(self, match, opened)
            if match["what"] == "complete":
                return call.complete if method == "POST" else None
            if match["what"] is not None:
                return {"PUT": call.put, "POST": call.where}.get(method)
            return call.whole if method == "PUT" else None
        return None

    async def _whole(self, scope: Scope, receive: Receive, head: Head) -> Answer:
        """A file in one piece, by token."""
        kept = lifecycle(head, await self._owner(head))
        name, content_type, file_id = _named(head), content_type_of(_header(scope, b"content-type")), new_file_id()
        await self.store_whole(receive, head, file_id, name, content_type, kept, self._most)
        return {"access_url": file_url(self.cdn(scope, head), file_id, name)}, []

    async def _begin(self, scope: Scope, receive: Receive, head: Head) -> Answer:
        """A file in parts, by token."""
        kept = lifecycle(head, await self._owner(head))
        content_type = content_type_of(_header(scope, b"content-type"))
        await self._limits.read_body(receive, head.content_length, _MOST_JSON)
        upload = await asyncio.to_thread(self._store.uploads.begin, new_file_id(), _named(head), content_type, kept)
        url = file_url(self.cdn(scope, head), upload.file_id, upload.name)
        return {"access_url": url, "uploadId": upload.upload_id}, []

    async def store_whole(
        self,
        receive: Receive,
        head: Head,
        file_id: str,
        name: str,
        content_type: str,
        kept: Lifecycle,
        most: int,
    ) -> None:
        """Receive a whole file and store it."""
        declared = self._declared(head, most)
        with self._store.uploads.receiving(declared) as incoming:
            await self._receive(receive, incoming, most)
            await asyncio.to_thread(incoming.close, whole=True)
            await asyncio.to_thread(self._store.files.adopt, incoming.path, file_id, name, content_type, kept)

    async def store_part(self, receive: Receive, head: Head, upload: Upload, number: int) -> str:
        """Receive one part; returns its tag."""
        if not 1 <= number <= MOST_PARTS:
            raise bad_request(f"Part {number} is out of range; parts have numbers from 1 to {MOST_PARTS}.")
        here = await asyncio.to_thread(self._store.uploads.received, upload)
        most = max(self._most - here, 0)
        with self._store.uploads.receiving(self._declared(head, most)) as incoming:
            await self._receive(receive, incoming, most)
            return await asyncio.to_thread(self._store.uploads.keep_part, upload, number, incoming)

    async def finish(self, receive: Receive, head: Head, upload: Upload) -> None:
        """All parts are here: store the file. Said twice, the second is an echo."""
        body = await self._limits.read_body(receive, head.content_length, _MOST_JSON)
        if await asyncio.to_thread(self._store.files.open, upload.file_id) is not None:
            return
        tags = _tags(body)
        uploads = self._store.uploads
        try:
            whole = await asyncio.to_thread(uploads.assemble, upload, tags)
        except ValueError as error:
            raise bad_request(f"The upload cannot be completed: {error}.") from None
        await asyncio.to_thread(
            self._store.files.adopt, whole, upload.file_id, upload.name, upload.content_type, upload.lifecycle
        )
        await asyncio.to_thread(uploads.finish, upload)

    async def _receive(self, receive: Receive, incoming: Incoming, most: int) -> None:
        """The body, in pieces that are worth a thread each."""
        block, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise CallerGone
            block += message["body"]
            more = message["more_body"]
            if len(block) >= _BLOCK or not more:
                if incoming.size + len(block) > most:
                    raise file_too_large(self._most)
                await asyncio.to_thread(incoming.write, bytes(block))
                block.clear()

    def _declared(self, head: Head, most: int) -> int:
        declared = head.content_length or 0
        if declared > most:
            raise file_too_large(self._most)
        return declared

    async def _owner(self, head: Head) -> str:
        """Who sends a file: the owner of the token or key in the header."""
        scheme, _, token = (head.authorization or b"").decode("latin-1").partition(" ")
        if scheme.lower() == "bearer" and token.count(".") == 2:
            return (await self._keys.of_token(self._tokens.read(token.strip(), "files")["sub"])).owner
        key = await self._keys.require(head.authorization)
        check_scope(key, "call", "manage")
        return key.owner

    async def _token_upload(self, scope: Scope, head: Head, match: re.Match[str]) -> tuple[Upload, dict[str, Any]]:
        owner = await self._owner(head)
        upload = await asyncio.to_thread(self._store.uploads.get, match["id"])
        if upload is None or upload.file_id != match["file"] or upload.lifecycle.owner != owner:
            raise Refusal(404, "There is no such upload; it may have been given up a day after it began.")
        return upload, {}

    async def _signed_upload(
        self, scope: Scope, head: Head, match: re.Match[str]
    ) -> tuple[Upload | None, dict[str, Any]]:
        given = parse_qs(scope["query_string"].decode("latin-1")).get("signature", [""])[0]
        claims = self._tokens.read(given, "upload")
        wanted = "PUT" if match["what"] is None else "PARTS"
        if claims["id"] != match["id"] or claims["method"] != wanted:
            raise unauthorized("This signature was made for another upload.")
        if wanted == "PUT":
            return None, claims
        upload = await asyncio.to_thread(self._store.uploads.get, match["id"])
        if upload is None:
            raise Refusal(404, "There is no such upload; it may have been given up a day after it began.")
        return upload, claims

    def cdn(self, scope: Scope, head: Head) -> str:
        """Where files are, for this caller."""
        return self._addresses.files_url(scope, head) + "/cdn"


Opened = Callable[[Scope, Head, "re.Match[str]"], Awaitable[tuple[Upload | None, dict[str, Any]]]]


class _Parts:
    """The calls below the URL of one upload, whichever way it was opened."""

    def __init__(self, uploads: Uploads, match: re.Match[str], opened: Opened) -> None:
        self._uploads = uploads
        self._match = match
        self._opened = opened

    async def whole(self, scope: Scope, receive: Receive, head: Head) -> Answer:
        """PUT of a whole file to a signed URL."""
        _, claims = await self._opened(scope, head, self._match)
        given = _header(scope, b"content-type")
        if given is not None and _kind(given) != _kind(claims["type"]):
            raise Refusal(403, f'This URL was signed for "{claims["type"]}" and takes no "{given[:80]}".')
        decisions = tuple((owner, decision) for owner, decision in claims["decisions"])
        kept = Lifecycle(claims["expires_in"], claims["owner"], claims["default"], decisions)
        await self._uploads.store_whole(
            receive, head, claims["id"], claims["name"], claims["type"], kept, claims["max"]
        )
        return {}, []

    async def put(self, scope: Scope, receive: Receive, head: Head) -> Answer:
        """PUT of one part: one client reads the tag in the header, the other in the body."""
        number = int(self._match["what"])
        tag = await self._uploads.store_part(receive, head, await self._upload(scope, head), number)
        return {"partNumber": number, "etag": f'"{tag}"'}, [(b"etag", f'"{tag}"'.encode("ascii"))]

    async def where(self, scope: Scope, receive: Receive, head: Head) -> Answer:
        """POST below a signed URL: where to PUT the part, which is the same place."""
        await self._upload(scope, head)
        query = scope["query_string"].decode("latin-1")
        place = f"{self._uploads.cdn(scope, head)}/uploads/{self._match['id']}/{self._match['what']}"
        return {"upload_url": f"{place}?{query}"}, []

    async def complete(self, scope: Scope, receive: Receive, head: Head) -> Answer:
        """POST of the list of parts."""
        await self._uploads.finish(receive, head, await self._upload(scope, head))
        return {}, []

    async def _upload(self, scope: Scope, head: Head) -> Upload:
        upload, _ = await self._opened(scope, head, self._match)
        assert upload is not None
        return upload


def _tags(body: bytes) -> list[tuple[int, str]]:
    """The parts that a caller lists, in any order; the names of the two dialects are both understood."""
    try:
        parts = orjson.loads(body)["parts"]
        found = [(part.get("partNumber", part.get("part_number")), part["etag"].strip('"')) for part in parts]
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise bad_request('The body must be {"parts": [{"partNumber": 1, "etag": "…"}, …]}.') from None
    if not all(isinstance(number, int) for number, _ in found):
        raise bad_request("Every part needs a partNumber.")
    return found


def _named(head: Head) -> str:
    given = head.options.get(b"x-fal-file-name") if head.options else None
    return file_name(unquote(given.decode("utf-8", "replace")) if given is not None else None)


def _header(scope: Scope, wanted: bytes) -> str | None:
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == wanted), None)


def _kind(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _not_here(method: str, path: str) -> Refusal:
    if path.startswith("/files/") and method != "POST":
        return method_not_allowed(method, "GET")
    if _SIGNED.fullmatch(path) or _PARTS.fullmatch(path):
        return method_not_allowed(method, "PUT or POST")
    return Refusal(404, f'There is nothing at "{path}".')
