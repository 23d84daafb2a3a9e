"""Apps in the control API: look, delete, scale, point at another revision; their queue and the hosts."""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import replace
from typing import Any, get_args

from fal import _offers
from fal._spec import Auth, ScalingSpec
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from scheduler.store import Store
from scheduler.store.records import AppRecord, AppSeen, RevisionRecord, RevisionState
from scheduler.store.waiting import why_waiting

from . import shapes, wire
from .control import Control, answer
from .errors import Refusal, bad_request
from .operations import Parameter, describe, switch
from .specs import check_scaling, read_spec, validation_text
from .workers import strategy_of

_SCALING = TypeAdapter(ScalingSpec)
#: Settings that ``fal apps scale`` changes though they belong to a revision.
_OF_REVISIONS = frozenset({"max_multiplexing", "startup_timeout", "machine_types"})
_APP = "/api/v1/apps/{owner}/{app}"


class Apps:
    """Routes below ``/api/v1/apps``, ``/api/v1/queue`` and ``/api/v1/hosts``."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._store = control.store

    def routes(self) -> list[Route]:
        return [
            Route("/api/v1/apps", self.list, methods=["GET"]),
            Route(_APP, self.get, methods=["GET"]),
            Route(_APP, self.delete, methods=["DELETE"]),
            Route(f"{_APP}/scaling", self.scale, methods=["PATCH"]),
            Route(f"{_APP}/revision", self.point, methods=["POST"]),
            Route(f"{_APP}/revisions", self.revisions, methods=["GET"]),
            Route(f"{_APP}/revisions/{{revision}}", self.drop_revision, methods=["DELETE"]),
            Route(f"{_APP}/openapi.json", self.openapi, methods=["GET"]),
            Route("/api/v1/queue/{owner}/{app}", self.queue_size, methods=["GET"]),
            Route("/api/v1/queue/{owner}/{app}", self.queue_flush, methods=["DELETE"]),
            Route("/api/v1/hosts", self.hosts, methods=["GET"]),
        ]

    @describe(200, shapes.Items[shapes.App])
    async def list(self, request: Request) -> Response:
        """The owner's apps and what they are doing."""
        caller = await self._control.caller(request)
        apps = [app for app in await self._store.apps.list() if app.app.startswith(f"{caller.owner}/")]
        seen = await asyncio.gather(*(self._store.apps.observe(app.app) for app in apps))
        revisions = await asyncio.gather(*map(self._current, apps))
        urls = [self._control.urls(request, app.app) for app in apps]
        return answer({"items": [wire.app(*each) for each in zip(apps, urls, seen, revisions, strict=True)]})

    @describe(200, shapes.AppAndWhy)
    async def get(self, request: Request) -> Response:
        """One app with its current revision."""
        app = await self._control.owned_alias(request)
        seen = await self._store.apps.observe(app.app)
        revision = await self._current(app)
        body = wire.app(app, self._control.urls(request, app.app), seen, revision)
        return answer(body | {"waiting": await self._why_waiting(app, seen, revision)})

    async def _why_waiting(self, app: AppRecord, seen: AppSeen, revision: RevisionRecord | None) -> str | None:
        if seen.queued + seen.delayed == 0:
            return None
        if revision is None:
            return why_waiting(app, seen, None, None, None)
        environment, blocked = await asyncio.gather(
            self._store.environments.get(revision.environment_key), self._store.apps.blocked(app.app)
        )
        return why_waiting(app, seen, revision, environment, blocked)

    async def _current(self, app: AppRecord) -> RevisionRecord | None:
        return await self._store.apps.revision(app.app, app.revision) if app.revision else None

    @describe(204)
    async def delete(self, request: Request) -> Response:
        """The app goes: waiting requests end with an error, workers are asked to stop."""
        app = await self._control.owned_alias(request)
        await self._store.apps.delete(app.app)
        self._control.directory.forget(app.app)
        return Response(status_code=204)

    @describe(200, shapes.Scaled, body=shapes.ScalingChanges, partial=True, refusals=(409,))
    async def scale(self, request: Request) -> Response:
        """Change some scaling settings; the others stay.

        Those of a revision, which are as the code says until they are changed here, make a revision with another
        value: the next deploy has the code's again, and one may roll back.
        """
        app = await self._control.owned_alias(request)
        changes = await self._control.json(request)
        known = wire.scaling(app.scaling)
        if unknown := sorted(changes.keys() - known.keys() - _OF_REVISIONS):
            names = ", ".join((*known, *sorted(_OF_REVISIONS)))
            raise bad_request(f"Unknown scaling setting {unknown[0]!r}; there are {names}.")
        of_revision = {name: changes.pop(name) for name in _OF_REVISIONS & changes.keys()}
        scaling = check_scaling(_scaling({**known, **changes}))
        made = await self._revision_with(app, of_revision) if of_revision else None
        await self._store.apps.set_scaling(app.app, scaling)
        self._control.directory.forget(app.app)
        if scaling.request_timeout != app.scaling.request_timeout:
            # Workers know the limit that they started with.
            await self._store.workers.retire(app.app, "its request_timeout was changed")
        if made is not None:
            await self._store.apps.put_revision(made)
            await self._store.apps.point(app.app, made.revision, auth=None, scaling=None, ephemeral=app.ephemeral)
            self._control.directory.forget(app.app)
        revision = made.revision if made is not None else app.revision
        return answer({"app": app.app, "scaling": wire.scaling(scaling), "revision": revision})

    async def _revision_with(self, app: AppRecord, changes: dict[str, Any]) -> RevisionRecord:
        """The serving revision with other settings: same files, same environment.

        Raises:
            Refusal: 400 for a value that cannot be, 409 when the app has no revision or no host offers the type.
        """
        serving = await self._current(app)
        if serving is None:
            raise Refusal(409, f'"{app.app}" has no revision yet.')
        spec = read_spec(serving.spec.to_json() | changes)
        hosts = await self._store.hosts.list()
        refusal = _offers.refusal(spec.machine_types, hosts, spec.num_gpus, spec.gpu_memory_mb)
        if refusal is not None:
            raise Refusal(409, refusal)
        said = ", ".join(f"{name} = {value}" for name, value in changes.items())
        return replace(
            serving,
            revision=uuid.uuid4().hex[:12],
            spec=spec,
            message=f"{serving.revision} with {said}",
            created_at_ms=int(time.time() * 1000),
        )

    @describe(200, shapes.Pointed, body=shapes.RevisionChoice, refusals=(409,))
    async def point(self, request: Request) -> Response:
        """Roll back (or forward) to a revision that was built."""
        app = await self._control.owned_alias(request)
        body = await self._control.json(request)
        name, strategy, auth = body.get("revision"), strategy_of(body), body.get("auth")
        if auth is not None and auth not in get_args(Auth):
            raise bad_request(f'"auth" must be one of {", ".join(get_args(Auth))}.')
        if not isinstance(name, str):
            raise bad_request('"revision" must be the name of a revision.')
        revision = await self._store.apps.revision(app.app, name)
        if revision is None:
            raise Refusal(404, f'"{app.app}" has no revision "{name[:80]}"; see "fal apps list-rev".')
        if revision.state is not RevisionState.READY:
            raise Refusal(409, f'Revision "{name}" is {revision.state.value}: only a READY one can serve.')
        pointed = await self._store.apps.point(app.app, name, auth=auth, scaling=None, ephemeral=app.ephemeral)
        if strategy == "recreate":
            await self._store.workers.request_stop_all(app.app, "drain", "its revision was replaced", but=name)
        self._control.directory.forget(app.app)
        return answer(wire.app(pointed, self._control.urls(request, app.app)))

    @describe(200, shapes.Items[shapes.Revision])
    async def revisions(self, request: Request) -> Response:
        """All revisions, newest first."""
        name = await self._control.owned_app(request)
        app = await self._store.apps.get(name)
        current = app.revision if app is not None else None
        found = sorted(await self._store.apps.revisions(name), key=lambda item: -item.created_at_ms)
        return answer({"items": [wire.revision(item, item.revision == current) for item in found]})

    @describe(204, refusals=(404, 409))
    async def drop_revision(self, request: Request) -> Response:
        """A revision that does not serve goes: one cannot roll back to it any more."""
        app, name = (await self._control.owned_alias(request)).app, request.path_params["revision"]
        if await self._store.apps.revision(app, name) is None:
            raise Refusal(404, f'"{app}" has no revision "{name[:80]}"; see "fal apps list-rev".')
        if not await self._store.apps.drop_revision(app, name):
            raise Refusal(409, f'Revision "{name}" serves; point "{app}" at another one first ("fal apps set-rev").')
        return Response(status_code=204)

    @describe(200, shapes.Document)
    async def openapi(self, request: Request) -> Response:
        """The app's own OpenAPI document, known once a worker has been ready."""
        app = await self._control.owned_alias(request)
        revision = await self._store.apps.revision(app.app, app.revision) if app.revision else None
        if revision is None or revision.openapi is None:
            raise Refusal(404, "Not known yet: it is read when a worker of this revision is ready for the first time.")
        return Response(revision.openapi, media_type="application/json")

    @describe(200, shapes.QueueSize, query=(switch("by_user", "Counted by the owner of the caller's key as well."),))
    async def queue_size(self, request: Request) -> Response:
        """How many requests wait."""
        app = await self._control.owned_alias(request)
        return answer({"app": app.app, **await waiting(self._store, app.app, request)})

    @describe(
        200,
        shapes.QueueFlushed,
        query=(Parameter("caller_user_id", {"type": "string"}, "Only those of this owner of a key."),),
    )
    async def queue_flush(self, request: Request) -> Response:
        """Every waiting request ends as cancelled."""
        app = await self._control.owned_alias(request)
        flushed = await self._store.requests.flush_queue(app.app, flushed_caller(request))
        return answer({"app": app.app, "flushed": flushed})

    @describe(200, shapes.Items[shapes.Host])
    async def hosts(self, request: Request) -> Response:
        """The machines and what they offer."""
        await self._control.caller(request)
        return answer({"items": [wire.host(host) for host in await self._store.hosts.list()]})


async def waiting(store: Store, app: str, request: Request) -> dict[str, Any]:
    """The size of an app's queue, and how it is made up where ``?by_user=`` asks."""
    if request.query_params.get("by_user") not in ("1", "true"):
        return {"size": await store.requests.queue_size(app)}
    by_user = await store.requests.queue_by_caller(app)
    return {"size": sum(by_user.values()), "by_user": by_user}


def flushed_caller(request: Request) -> str | None:
    """Whose requests shall go; None: everybody's.

    Raises:
        Refusal: 400 for an empty name, which is a variable that was not set rather than a wish to drop all.
    """
    caller = request.query_params.get("caller_user_id")
    if caller == "":
        raise bad_request("caller_user_id is empty; name an owner, or leave it out to drop everybody's requests.")
    return caller


def _scaling(values: dict[str, Any]) -> ScalingSpec:
    try:
        return _SCALING.validate_python(values)
    except ValidationError as error:
        raise bad_request(validation_text(error)) from None
