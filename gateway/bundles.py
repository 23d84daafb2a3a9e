"""Uploads of an app's source files, each once, named by its SHA-256."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from . import shapes
from .asgi import Receive
from .control import Control, answer, head_of
from .errors import CallerGone, bad_request, object_too_large, shown
from .operations import BYTES, describe

_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_HASHES = 20_000
#: Bytes written at once.
_BLOCK = 1024 * 1024


class Bundles:
    """Routes below ``/api/v1/bundles``."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def routes(self) -> list[Route]:
        return [
            Route("/api/v1/bundles/missing", self.missing, methods=["POST"]),
            Route("/api/v1/bundles/objects/{sha256}", self.put, methods=["PUT"]),
        ]

    @describe(200, shapes.MissingHashes, body=shapes.Hashes)
    async def missing(self, request: Request) -> Response:
        """Which of these files must be sent."""
        await self._control.caller(request)
        hashes = (await self._control.json(request)).get("hashes")
        if not isinstance(hashes, list) or len(hashes) > _MOST_HASHES:
            raise bad_request(f'"hashes" must be a list of at most {_MOST_HASHES} SHA-256 values.')
        for item in hashes:
            if not isinstance(item, str) or not _SHA256.fullmatch(item):
                raise bad_request(f'"hashes" holds {shown(item)}, which is no SHA-256 in lower-case hex.')
        return answer({"missing": await asyncio.to_thread(self._control.store.bundles.missing, hashes)})

    @describe(204, body=BYTES)
    async def put(self, request: Request) -> Response:
        """One file, onto the disk as it comes. The name is checked against the content.

        Raises:
            Refusal: 400 for another content, 413 for a file that is too large.
        """
        await self._control.caller(request)
        sha256 = request.path_params["sha256"]
        if not _SHA256.fullmatch(sha256):
            raise bad_request(f"{sha256[:80]!r} is no SHA-256 in lower-case hex.")
        declared = head_of(request).content_length or 0
        most = self._control.settings.max_object_bytes
        if declared > most:
            raise object_too_large(most)
        try:
            with self._control.store.bundles.writing(sha256, declared) as write:
                async for block in _blocks(request.receive, most):
                    await asyncio.to_thread(write, block)
        except ValueError as error:
            raise bad_request(f"The file was not stored: {error}.") from None
        return Response(status_code=204)


async def _blocks(receive: Receive, most: int) -> AsyncIterator[bytes]:
    """The body in pieces that are worth a thread each."""
    size, block, more = 0, bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise CallerGone
        block += message["body"]
        more = message["more_body"]
        if len(block) >= _BLOCK or not more:
            size += len(block)
            if size > most:
                raise object_too_large(most)
            yield bytes(block)
            block.clear()
