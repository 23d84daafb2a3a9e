"""Dead letters in the control API: list, show, replay and drop what the platform gave up of an app's queue."""

from __future__ import annotations

import re

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from scheduler.store.records import DeadLetter

from . import shapes, wire
from .addresses import queue_base
from .control import Control, answer, head_of, page_size
from .errors import Refusal
from .incoming import new_request_id
from .operations import BYTES, describe, limit, switch

_LETTERS = "/api/v1/queue/{owner}/{app}/letters"
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_MOST = 1000
#: Largest body that is shown with its letter; a larger one has an address of its own.
_SHOWN_BYTES = 64 * 1024
_AGAIN = switch("again", "Also when the letter was replayed before.")


class Letters:
    """Routes below ``/api/v1/queue/{owner}/{app}/letters``. Letters outlive their app."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._store = control.store

    def routes(self) -> list[Route]:
        return [
            Route(_LETTERS, self.list, methods=["GET"]),
            Route(f"{_LETTERS}/{{letter}}", self.show, methods=["GET"]),
            Route(f"{_LETTERS}/{{letter}}", self.drop, methods=["DELETE"]),
            Route(f"{_LETTERS}/{{letter}}/body", self.body, methods=["GET"]),
            Route(f"{_LETTERS}/{{letter}}/replay", self.replay, methods=["POST"]),
        ]

    @describe(200, shapes.Items[shapes.Letter], query=(limit(_MOST, 100),))
    async def list(self, request: Request) -> Response:
        """The newest first, at most ``?limit=``."""
        app = await self._control.owned_app(request)
        found = await self._store.letters.list(app, page_size(request.query_params.get("limit", "100"), _MOST))
        if not found:
            await self._control.owned_alias(request)  # a misspelled name is said, not answered with nothing
        return answer({"items": [wire.letter(letter) for letter in found]})

    @describe(200, shapes.LetterWithInput)
    async def show(self, request: Request) -> Response:
        """One letter with its input."""
        letter = await self._letter(request)
        body = await self._store.letters.body(letter) if letter.body_bytes <= _SHOWN_BYTES else None
        return answer(wire.letter_with_input(letter, body))

    @describe(200, BYTES)
    async def body(self, request: Request) -> Response:
        """The input's body as it was sent."""
        body = await self._store.letters.body(await self._letter(request))
        headers = {"content-disposition": "attachment", "x-content-type-options": "nosniff"}
        return Response(body, media_type="application/octet-stream", headers=headers)

    @describe(200, shapes.Replayed, query=(_AGAIN,), refusals=(409,))
    async def replay(self, request: Request) -> Response:
        """The input becomes a new request; 409 when it has become one before, unless ``?again=1``."""
        letter = await self._letter(request)
        again = request.query_params.get("again") in ("1", "true")
        made = await self._store.letters.replay(letter.app, letter.request_id, new_request_id(), again=again)
        if made.earlier:
            raise Refusal(
                409,
                f"{letter.request_id} was replayed before, as {made.request_id}. To run it once more ask for "
                '"?again=1" (fal queue letters replay --again).',
            )
        base = queue_base(self._control.addresses.base_url(request.scope, head_of(request)), head_of(request).host)
        urls = wire.request_urls(base, letter.app, made.request_id)
        return answer({"request_id": made.request_id, "replay_of": letter.request_id, **urls})

    @describe(204)
    async def drop(self, request: Request) -> Response:
        """The letter and its input are deleted."""
        app = await self._control.owned_app(request)
        letter_id = request.path_params["letter"]
        if not await self._store.letters.drop(app, letter_id):
            raise _no_letter(app, letter_id)
        return Response(status_code=204)

    async def _letter(self, request: Request) -> DeadLetter:
        app = await self._control.owned_app(request)
        letter_id = request.path_params["letter"]
        letter = await self._store.letters.get(app, letter_id) if _ID.fullmatch(letter_id) else None
        if letter is None:
            raise _no_letter(app, letter_id)
        return letter


def _no_letter(app: str, letter_id: str) -> Refusal:
    return Refusal(404, f'"{app}" has no dead letter "{letter_id[:80]}"; see "fal queue letters list {app}".')
