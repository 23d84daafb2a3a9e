"""An app's workers in the control API, which users know as runners: look, stop, replace."""

from __future__ import annotations

from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from scheduler.store.records import Command

from . import shapes, wire
from .commands import checked_arguments, follow, living
from .control import Control, answer
from .errors import bad_request
from .events import Events, Story
from .operations import describe, events

_WORKERS = "/api/v1/apps/{owner}/{app}/workers"
_MOST_RUNNING = 200
_REPLACED = "its owner asked for another one in its place"
Strategy = Literal["rolling", "recreate"]


class Workers:
    """Routes below ``/api/v1/apps/{owner}/{app}/workers``, and ``…/rollout``."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._store = control.store

    def routes(self) -> list[Route]:
        return [
            Route(_WORKERS, self.list, methods=["GET"]),
            Route("/api/v1/apps/{owner}/{app}/running", self.running, methods=["GET"]),
            Route(f"{_WORKERS}/{{worker_id}}/stop", self.stop, methods=["POST"]),
            Route(f"{_WORKERS}/{{worker_id}}/exec", self.execute, methods=["POST"]),
            Route("/api/v1/apps/{owner}/{app}/rollout", self.rollout, methods=["POST"]),
        ]

    @describe(200, shapes.Items[shapes.Worker])
    async def list(self, request: Request) -> Response:
        """The app's workers."""
        app = await self._control.owned_alias(request)
        return answer({"items": [wire.worker(worker) for worker in await self._store.workers.list(app.app)]})

    @describe(200, shapes.Items[shapes.RunningRequest])
    async def running(self, request: Request) -> Response:
        """Requests that the app's workers have now, 200 at most; those that began first come first."""
        app = await self._control.owned_alias(request)
        found = await self._store.requests.running(app.app, _MOST_RUNNING)
        return answer({"items": [wire.running_request(record) for record in found]})

    @describe(202, shapes.Stopped, body=shapes.StopChoice)
    async def stop(self, request: Request) -> Response:
        """One worker finishes what it has and leaves, is replaced first, or is killed.

        Raises:
            Refusal: 404 when the app has no such worker, or it has ended.
        """
        app = (await self._control.owned_alias(request)).app
        worker_id = request.path_params["worker_id"]
        body = await self._control.json(request)
        how = body.get("how", "drain")
        if how not in ("drain", "replace", "kill"):
            raise bad_request('"how" must be "drain", "replace" or "kill".')
        await living(self._store, app, worker_id)
        if how == "replace":
            await self._store.workers.retire(app, _REPLACED, worker_id)
        else:
            await self._store.workers.request_stop(app, worker_id, how, f"its owner asked ({how})")
        return answer({"app": app, "worker_id": worker_id, "how": how}, 202)

    @describe(200, events(shapes.CommandOutput, shapes.CommandExit), body=shapes.Command)
    async def execute(self, request: Request) -> Response:
        """Run a command beside a worker: its output as events, then its exit code. It ends with its caller.

        Raises:
            Refusal: 400 for what is no command, 404 when the app has no such worker.
        """
        app = (await self._control.owned_alias(request)).app
        worker_id = request.path_params["worker_id"]
        command = Command(checked_arguments((await self._control.json(request)).get("command")))
        await living(self._store, app, worker_id)
        return self._control.streams.answer(self._story(app, worker_id, command))

    def _story(self, app: str, worker_id: str, command: Command) -> Story:
        async def story(events: Events) -> None:
            async def say(kind: str, data: bytes) -> None:
                await events.send(wire.event(wire.command_said(kind, data)))

            command_id = await self._store.commands.submit(app, worker_id, command)
            await follow(self._store, app, worker_id, command_id, say, events.note, events.wait)

        return story

    @describe(202, shapes.RolledOut, body=shapes.Rollout)
    async def rollout(self, request: Request) -> Response:
        """All workers are replaced: each once another one is ready, or all at once."""
        app = (await self._control.owned_alias(request)).app
        body = await self._control.json(request)
        strategy, force = strategy_of(body), body.get("force", False)
        if not isinstance(force, bool):
            raise bad_request('"force" must be true or false.')
        if strategy == "rolling" and not force:
            count = await self._store.workers.retire(app, _REPLACED)
        else:
            how: Literal["kill", "drain"] = "kill" if force else "drain"
            count = await self._store.workers.request_stop_all(app, how, "its owner asked for a rollout")
        return answer({"app": app, "workers": count}, 202)


def strategy_of(body: dict[str, Any]) -> Strategy:
    """How workers make room for others; 400 for a word that is none."""
    strategy = body.get("strategy") or "rolling"
    if strategy not in ("rolling", "recreate"):
        raise bad_request('"strategy" must be "rolling" or "recreate".')
    return "recreate" if strategy == "recreate" else "rolling"
