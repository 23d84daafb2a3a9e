"""Hands out tokens for calls: a server with a key asks, a browser that must not know the key calls with the token."""

from __future__ import annotations

import re
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .control import Control, answer
from .errors import bad_request, shown
from .tokens import Tokens

#: Seconds that a token lives when its caller does not say, and at most.
_USUAL_SECONDS = 120
_MOST_SECONDS = 3600
_MOST_APPS = 32
_APP = re.compile(r"[A-Za-z0-9._/-]{1,256}")


class CallTokens:
    """Routes ``/rest/tokens`` and ``/rest/tokens/realtime``."""

    def __init__(self, control: Control, tokens: Tokens) -> None:
        self._control = control
        self._tokens = tokens

    def routes(self) -> list[Route]:
        return [
            Route("/rest/tokens", self.bare, methods=["POST"]),
            Route("/rest/tokens/realtime", self.wrapped, methods=["POST"]),
        ]

    async def bare(self, request: Request) -> Response:
        """As the clients ask: the answer is the token, as a JSON string."""
        return answer(await self._issue(request, "token_expiration"))

    async def wrapped(self, request: Request) -> Response:
        """As the documentation tells token providers to ask."""
        return answer({"token": await self._issue(request, "duration")})

    async def _issue(self, request: Request, life: str) -> str:
        key = await self._control.caller(request, "call")
        body = await self._control.json(request)
        apps = _apps(body)
        seconds = body.get(life, _USUAL_SECONDS)
        if isinstance(seconds, bool) or not isinstance(seconds, int) or not 1 <= seconds <= _MOST_SECONDS:
            raise bad_request(f"{life} is {shown(seconds)}; give whole seconds from 1 to {_MOST_SECONDS}.")
        return self._tokens.issue("call", seconds, sub=key.key_id, apps=apps)


def _apps(body: dict[str, Any]) -> list[str]:
    """``owner/name`` or a name alone, without the path inside the app that some callers add."""
    given = body.get("allowed_apps", [body["app"]] if "app" in body else None)
    if not isinstance(given, list) or not 1 <= len(given) <= _MOST_APPS:
        raise bad_request(f'"allowed_apps" must be a list of 1 to {_MOST_APPS} apps.')
    for item in given:
        if not isinstance(item, str) or not _APP.fullmatch(item):
            raise bad_request(f'"allowed_apps" holds {shown(item)}, which is no app.')
    return ["/".join(item.strip("/").split("/")[:2]) for item in given]
