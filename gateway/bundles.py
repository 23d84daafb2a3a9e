"""Uploads of an app's source files, each once, named by its SHA-256."""

from __future__ import annotations

import asyncio
import re

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .control import Control, answer, head_of
from .errors import bad_request

_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_HASHES = 20_000


class Bundles:
    """Routes below ``/api/v1/bundles``."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def routes(self) -> list[Route]:
        return [
            Route("/api/v1/bundles/missing", self.missing, methods=["POST"]),
            Route("/api/v1/bundles/objects/{sha256}", self.put, methods=["PUT"]),
        ]

    async def missing(self, request: Request) -> Response:
        """Which of these files must be sent."""
        await self._control.caller(request)
        hashes = (await self._control.json(request)).get("hashes")
        if not isinstance(hashes, list) or len(hashes) > _MOST_HASHES:
            raise bad_request(f'"hashes" must be a list of at most {_MOST_HASHES} SHA-256 values.')
        wrong = next((item for item in hashes if not isinstance(item, str) or not _SHA256.fullmatch(item)), None)
        if wrong is not None:
            raise bad_request(f'"hashes" holds {str(wrong)[:80]!r}, which is no SHA-256 in lower-case hex.')
        return answer({"missing": await asyncio.to_thread(self._control.store.bundles.missing, hashes)})

    async def put(self, request: Request) -> Response:
        """One file. The name is checked against the content."""
        await self._control.caller(request)
        sha256 = request.path_params["sha256"]
        if not _SHA256.fullmatch(sha256):
            raise bad_request(f"{sha256[:80]!r} is no SHA-256 in lower-case hex.")
        body = await self._control.limits.read_body(request.receive, head_of(request).content_length)
        try:
            await asyncio.to_thread(self._control.store.bundles.put, sha256, body)
        except ValueError as error:
            raise bad_request(f"The file was not stored: {error}.") from None
        return Response(status_code=204)
