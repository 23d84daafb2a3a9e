"""Named environments in the control API: list, create, delete; and which one an app's name belongs to."""

from __future__ import annotations

from fal._limits import env_fault, env_of
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from scheduler.store.named_environments import MAIN

from . import shapes, wire
from .control import Control, answer
from .errors import Refusal, bad_request
from .operations import describe


class NamedEnvironments:
    """Routes below ``/api/v1/environments``."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._store = control.store

    def routes(self) -> list[Route]:
        return [
            Route("/api/v1/environments", self.list, methods=["GET"]),
            Route("/api/v1/environments", self.create, methods=["POST"]),
            Route("/api/v1/environments/{name}", self.delete, methods=["DELETE"]),
        ]

    @describe(200, shapes.Items[shapes.NamedEnvironment])
    async def list(self, request: Request) -> Response:
        """All of the owner's, ``main`` first."""
        owner = (await self._control.caller(request)).owner
        found = await self._store.named_environments.list(owner)
        return answer({"items": [wire.named_environment(env) for env in found]})

    @describe(201, shapes.NewEnvironment, body=shapes.NewEnvironment, refusals=(409,))
    async def create(self, request: Request) -> Response:
        """A new, empty one."""
        owner = (await self._control.caller(request)).owner
        body = await self._control.json(request)
        name, description = body.get("name"), body.get("description") or ""
        if (fault := env_fault(name)) is not None:
            raise bad_request(f"{fault}.")
        if not isinstance(name, str) or not isinstance(description, str) or len(description) > 200:
            raise bad_request('"description" must be text of at most 200 characters.')
        taken = [app.app for app in await self._store.apps.list() if app.app.startswith(f"{owner}/")]
        if near := next((app for app in taken if env_of(app) == name), None):
            raise Refusal(409, f'The app "{near}" is named like one of the environment "{name}"; choose another name.')
        if not await self._store.named_environments.create(owner, name, description):
            raise Refusal(409, f'There is an environment "{name}" already.')
        return answer({"name": name, "description": description}, 201)

    @describe(204, refusals=(404, 409))
    async def delete(self, request: Request) -> Response:
        """It goes, with its secrets; not while it has apps."""
        owner = (await self._control.caller(request)).owner
        name = request.path_params["name"]
        if name == MAIN:
            raise Refusal(409, '"main" is always there.')
        if not await self._store.named_environments.exists(owner, name):
            raise await self._control.no_env(owner, name)
        apps = [app.app for app in await self._store.apps.list() if app.app.startswith(f"{owner}/")]
        if left := [app for app in apps if env_of(app) == name]:
            raise Refusal(409, f'"{name}" still has {", ".join(left[:5])}; delete its apps first ("fal apps delete").')
        await self._store.secrets.forget_all(owner, name)
        await self._store.named_environments.delete(owner, name)
        return Response(status_code=204)
