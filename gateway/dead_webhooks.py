"""Webhooks that were given up, in the control API: list, replay and drop them."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from . import shapes, wire
from .control import Control, answer, page_size
from .errors import Refusal
from .operations import describe, limit

_WEBHOOKS = "/api/v1/queue/{owner}/{app}/webhooks"
_MOST = 1000


class DeadWebhooks:
    """Routes below ``/api/v1/queue/{owner}/{app}/webhooks``. Deliveries outlive their app."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._outbox = control.store.outbox

    def routes(self) -> list[Route]:
        return [
            Route(_WEBHOOKS, self.list, methods=["GET"]),
            Route(f"{_WEBHOOKS}/{{request_id}}/replay", self.replay, methods=["POST"]),
            Route(f"{_WEBHOOKS}/{{request_id}}", self.drop, methods=["DELETE"]),
        ]

    @describe(200, shapes.Items[shapes.DeadWebhook], query=(limit(_MOST, 100),))
    async def list(self, request: Request) -> Response:
        """Those that were given up, the newest first, at most ``?limit=``."""
        app = await self._control.owned_app(request)
        found = await self._outbox.dead(app, page_size(request.query_params.get("limit", "100"), _MOST))
        if not found:
            await self._control.owned_alias(request)  # a misspelled name is said, not answered with nothing
        return answer({"items": [wire.dead_webhook(webhook) for webhook in found]})

    @describe(202, shapes.Delivering)
    async def replay(self, request: Request) -> Response:
        """The webhook of a finished request is delivered afresh, with all its tries, given up or not."""
        app = await self._control.owned_app(request)
        request_id = request.path_params["request_id"]
        if not await self._outbox.replay(app, request_id):
            raise Refusal(
                404,
                f'"{app}" has no finished request "{request_id[:80]}" with a webhook; results are kept for a while '
                "only, those whose webhook was given up for a week.",
            )
        return answer({"request_id": request_id, "status": "DELIVERING"}, 202)

    @describe(204)
    async def drop(self, request: Request) -> Response:
        """The delivery is forgotten; the result stays as long as any other."""
        app = await self._control.owned_app(request)
        request_id = request.path_params["request_id"]
        if not await self._outbox.drop(app, request_id):
            raise Refusal(404, f'"{app}" owes no webhook for "{request_id[:80]}"; see "fal queue webhooks list {app}".')
        return Response(status_code=204)
