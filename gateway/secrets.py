"""The owner's secrets in the control API: set, list by name, unset. No answer ever holds a value."""

from __future__ import annotations

import asyncio
from typing import Any

from fal._limits import secret_fault
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from . import shapes, wire
from .control import Control, answer
from .errors import Refusal, bad_request
from .operations import Parameter, describe

#: An environment of variables must fit into one message and be readable by a human.
_MOST = 200
_ENV = Parameter("env", {"type": "string", "default": "main"}, "The named environment that they belong to.")


class Secrets:
    """Routes below ``/api/v1/secrets``; ``?env=`` names the environment they belong to."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._secrets = control.store.secrets

    def routes(self) -> list[Route]:
        return [
            Route("/api/v1/secrets", self.list, methods=["GET"]),
            Route("/api/v1/secrets", self.set, methods=["POST"]),
            Route("/api/v1/secrets/{name}", self.unset, methods=["DELETE"]),
        ]

    @describe(200, shapes.Items[shapes.Secret], query=(_ENV,), refusals=(404,))
    async def list(self, request: Request) -> Response:
        """Names, and when each was set."""
        owner, env = await self._scope(request)
        return answer({"items": [wire.secret(secret) for secret in await self._secrets.list(owner, env)]})

    @describe(200, shapes.SecretsSet, body=shapes.SecretValues, query=(_ENV,), refusals=(404,))
    async def set(self, request: Request) -> Response:
        """All of ``values`` or none, in place of earlier ones of their names."""
        owner, env = await self._scope(request)
        body = await self._control.json(request)
        values, exposed = _values(body.get("values")), body.get("exposed", True)
        if not isinstance(exposed, bool):
            raise bad_request('"exposed" must be true or false.')
        names = {secret.name for secret in await self._secrets.list(owner, env)} | values.keys()
        if len(names) > _MOST:
            raise bad_request(f"That would be {len(names)} secrets; there may be {_MOST}. Unset some first.")
        await asyncio.shield(self._secrets.set(owner, env, values, exposed=exposed))
        return answer({"set": sorted(values)})

    @describe(204, query=(_ENV,), refusals=(404,))
    async def unset(self, request: Request) -> Response:
        """Forget one; workers that run keep it until they are replaced."""
        owner, env = await self._scope(request)
        name = request.path_params["name"]
        if not await self._secrets.unset(owner, env, name):
            raise Refusal(404, f'There is no secret "{name[:80]}"; see "fal secrets list".')
        return Response(status_code=204)

    async def _scope(self, request: Request) -> tuple[str, str]:
        caller = await self._control.caller(request)
        return caller.owner, await self._control.env(request, caller)


def _values(given: Any) -> dict[str, str]:
    if not isinstance(given, dict) or not given:
        raise bad_request('"values" must be an object of names and texts, with one at least.')
    for name, value in given.items():
        if (fault := secret_fault(name, value)) is not None:
            raise bad_request(f"{fault}.")
    return given
