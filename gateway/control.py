"""What all routes of the control API share: the caller, the body, the JSON answer. The routes are in modules by noun.

Every route needs a valid key, and touches only what belongs to that key's owner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson
from fal._limits import is_app_name
from starlette.requests import Request
from starlette.responses import Response

from scheduler.store import Store
from scheduler.store.named_environments import MAIN
from scheduler.store.records import ApiKeyRecord, AppRecord

from . import wire
from .addresses import Addresses, app_urls
from .auth import Keys, Right, check_owner, check_scope
from .directory import Directory
from .errors import Refusal, bad_request, shown
from .events import EventStreams
from .incoming import Head
from .limits import Limits
from .operations import body_fields
from .settings import Settings
from .shapes import Urls

#: JSON bodies of the control API are specs and lists of file names, never files.
_MAX_JSON = 8 * 1024 * 1024


@dataclass(frozen=True)
class Control:
    """What the control routes work with."""

    store: Store
    settings: Settings
    addresses: Addresses
    keys: Keys
    directory: Directory
    limits: Limits
    streams: EventStreams

    async def caller(self, request: Request, *rights: Right) -> ApiKeyRecord:
        """The key that was sent.

        Args:
            rights: one of which the key's scope must have; without any, what the method says: to read or to manage.

        Raises:
            Refusal: 401 without a key, 403 when its scope is too small.
        """
        key = await self.keys.require(head_of(request).authorization)
        check_scope(key, *(rights or (("read",) if request.method in ("GET", "HEAD") else ("manage",))))
        return key

    async def owned_app(self, request: Request) -> str:
        """``owner/name`` out of the path, after checking that the caller owns it.

        Raises:
            Refusal: 401, 403.
        """
        key = await self.caller(request)
        owner, name = request.path_params["owner"], request.path_params["app"]
        check_owner(owner, key)
        if not is_app_name(name):
            raise Refusal(404, f'"{name}" cannot be the name of an app.')
        return f"{owner}/{name}"

    async def owned_alias(self, request: Request) -> AppRecord:
        """The alias that the path names; 404 when there is none."""
        app = await self.owned_app(request)
        record = await self.store.apps.get(app)
        if record is None:
            raise await self.directory.missing(app, await self.caller(request))
        return record

    async def env(self, request: Request, caller: ApiKeyRecord) -> str:
        """The named environment of ``?env=``, ``main`` without one; 404 when the owner has no such."""
        name = request.query_params.get("env") or MAIN
        if not await self.store.named_environments.exists(caller.owner, name):
            raise await self.no_env(caller.owner, name)
        return name

    async def no_env(self, owner: str, name: str) -> Refusal:
        """404 that names those that there are."""
        there = ", ".join(env.name for env in await self.store.named_environments.list(owner))
        return Refusal(
            404, f'There is no environment "{name[:80]}"; there is {there}. "fal environments create" makes one.'
        )

    async def json(self, request: Request) -> dict[str, Any]:
        """The body as a JSON object; 400 when it is none, or has fields that its route is not described with."""
        most = min(_MAX_JSON, self.settings.max_body_bytes)
        body = await self.limits.read_body(request.receive, head_of(request).content_length, most)
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise bad_request(f"The body is not valid JSON: {error}.") from None
        if not isinstance(value, dict):
            raise bad_request("The body must be a JSON object.")
        known = body_fields(request.scope["endpoint"])
        unknown = sorted(set(value) - known) if known is not None else []
        if unknown:
            raise bad_request(f"Unknown field {shown(unknown[0])}; there are {', '.join(sorted(known or ()))}.")
        return value

    def urls(self, request: Request, app: str) -> Urls:
        """The app's addresses as this caller sees them."""
        return app_urls(self.addresses.base_url(request.scope, head_of(request)), app)


def head_of(request: Request) -> Head:
    """The head as the gateway read it."""
    head: Head = request.scope["keepwarm.head"]
    return head


def page_size(given: str, most: int) -> int:
    """``?limit=``; 400 when it is no number from 1 to ``most``."""
    if not given.isascii() or not given.isdigit() or not 1 <= int(given[:9]) <= most:
        raise bad_request(f"limit is {given[:40]!r}; use 1 to {most}.")
    return int(given)


def answer(value: object, status: int = 200) -> Response:
    """JSON."""
    return Response(wire.dumps(value), status, media_type="application/json")
