"""API keys of the caller's owner: list, create, revoke; and who the caller is."""

from __future__ import annotations

from typing import get_args

from fal._spec import KeyScope
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from . import shapes, wire
from .auth import Right
from .control import Control, answer
from .errors import Refusal, bad_request
from .operations import describe


class ApiKeys:
    """Routes ``/api/v1/whoami`` and below ``/api/v1/keys``."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def routes(self) -> list[Route]:
        return [
            Route("/api/v1/whoami", self.whoami, methods=["GET"]),
            Route("/api/v1/keys", self.list, methods=["GET"]),
            Route("/api/v1/keys", self.create, methods=["POST"]),
            Route("/api/v1/keys/{key_id}", self.revoke, methods=["DELETE"]),
            Route("/api/v1/keys/{owner}/{app}", self.revoke_of_app, methods=["DELETE"]),
        ]

    @describe(200, shapes.WhoAmI)
    async def whoami(self, request: Request) -> Response:
        """The owner that the key belongs to."""
        key = await self._control.caller(request, *get_args(Right))
        return answer({"owner": key.owner, "key_id": key.key_id, "scope": key.scope})

    @describe(200, shapes.Items[shapes.Key])
    async def list(self, request: Request) -> Response:
        """The owner's keys, without secrets."""
        caller = await self._control.caller(request)
        keys = await self._control.store.keys.list()
        return answer({"items": [wire.key(key) for key in keys if key.owner == caller.owner]})

    @describe(201, shapes.NewKey, body=shapes.KeyWanted)
    async def create(self, request: Request) -> Response:
        """A new key; the only time that its secret is shown."""
        caller = await self._control.caller(request, "keys")
        body = await self._control.json(request)
        name, scope = body.get("name", ""), body.get("scope", "FULL")
        if not isinstance(name, str) or len(name) > 100 or not name.isprintable():
            raise bad_request('"name" must be a line of at most 100 characters.')
        if scope not in get_args(KeyScope):
            raise bad_request(f'"scope" must be one of {", ".join(get_args(KeyScope))}.')
        key, secret = await self._control.store.keys.create(caller.owner, name, scope)
        return answer({**wire.key(key), "secret": secret, "key": f"{key.key_id}:{secret}"}, 201)

    @describe(204, refusals=(404,))
    async def revoke(self, request: Request) -> Response:
        """The key stops working: here at once, in other gateways within seconds."""
        return await self._revoke(request, request.path_params["key_id"])

    @describe(204, refusals=(404,))
    async def revoke_of_app(self, request: Request) -> Response:
        """An app's own key stops working; its next worker gets another one."""
        return await self._revoke(request, f"{request.path_params['owner']}/{request.path_params['app']}")

    async def _revoke(self, request: Request, key_id: str) -> Response:
        caller = await self._control.caller(request, "keys")
        keys = await self._control.store.keys.list()
        if not any(key.key_id == key_id and key.owner == caller.owner for key in keys):
            raise Refusal(404, f'You have no key "{key_id[:80]}".')
        await self._control.store.keys.revoke(key_id)
        self._control.keys.forget()
        return Response(status_code=204)
