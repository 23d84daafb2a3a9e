"""What anybody may ask: whether requests can be taken, and the keys that webhooks are signed with."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from scheduler.store import signing

from . import wire
from .control import Control, answer
from .errors import Refusal

#: Seconds for the store to answer a health check; a caller of /health waits no longer.
_PING_SECONDS = 2.0
_JWKS_AGE = "public, max-age=3600"


class Public:
    """Routes ``/health`` and ``/rest/.well-known/jwks.json``."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._key_set: bytes | None = None

    def routes(self) -> list[Route]:
        return [
            Route("/health", self.health, methods=["GET"]),
            Route("/rest/.well-known/jwks.json", self.jwks, methods=["GET"]),
        ]

    async def health(self, request: Request) -> Response:
        """200 when requests can be taken, 503 when the store is away."""
        try:
            async with asyncio.timeout(_PING_SECONDS):
                await self._control.store.ping()
        except TimeoutError:
            raise Refusal(
                503, "Redis does not answer: no requests can be taken.", "internal_error", ((b"retry-after", b"1"),)
            ) from None
        return answer({"status": "ok", "waiting": self._control.limits.waiting})

    async def jwks(self, request: Request) -> Response:
        """The public half of the key that webhooks are signed with."""
        if self._key_set is None:
            key = await asyncio.to_thread(signing.load_or_create, self._control.settings.data_dir)
            self._key_set = wire.dumps(signing.public_key_set(key))
        return Response(self._key_set, media_type="application/json", headers={"cache-control": _JWKS_AGE})
