"""The short way to handlers of the usual form: one JSON body in, one value out, nothing between.

FastAPI's middlewares, routing and dependencies take ten times as long as such a call itself. What is plain is decided
once, from the finished app; everything that is not plain goes FastAPI's own way, and so does each single call that is
about to fail, before the handler has run. FastAPI's own pieces validate, serialise and answer errors here too.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import sys
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import fastapi.params
import fastapi.routing
from fastapi import FastAPI
from fastapi.datastructures import DefaultPlaceholder
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from starlette.applications import Starlette
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.routing import Match, Route, Router

from fal._threads import run_in_thread_then

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Reply = Callable[[int, list[tuple[bytes, bytes]], bytes], None]


def _places() -> tuple[Any, ...]:
    """Where tracing tools put themselves into FastAPI."""
    own, routing = vars(fastapi.routing), (FastAPI, Starlette, Router, APIRoute, Route)
    names = ("get_request_handler", "request_response", "run_endpoint_function", "serialize_response")
    methods = ("__init__", "__call__", "handle", "app", "build_middleware_stack")
    return (
        *(own.get(name) for name in names),
        *(vars(cls).get(name) for cls in routing for name in methods),
        *(vars(cls).get(name) for cls in (ServerErrorMiddleware, ExceptionMiddleware, Request) for name in methods),
        *(vars(cls).get(name) for cls in (Response, JSONResponse) for name in methods),
    )


#: As they were before user code was imported; a tool that replaced one of them must see every call.
_UNTOUCHED = _places()
_ROUTE_DEFAULTS: dict[str, Any] = {
    "status_code": None,
    "dependencies": [],
    "response_model_include": None,
    "response_model_exclude": None,
    "response_model_by_alias": True,
    "response_model_exclude_unset": False,
    "response_model_exclude_defaults": False,
    "response_model_exclude_none": False,
    "_embed_body_fields": False,
    "stream_item_field": None,
    "is_json_stream": False,
    "max_body_size": None,
}
_NO_DEFAULT = frozenset({"status_code", "response_class", "_embed_body_fields", "dependencies"})
_APP_DEFAULTS: dict[str, Any] = {"user_middleware": [], "root_path": "", "max_body_size": None, "debug": False}


class PlainRoute:
    """One route whose handler can be called directly.

    Args:
        app: the finished app; its error handlers answer what the handler raises.
        route: a plain route of it; see ``plain_routes``.
    """

    def __init__(self, app: FastAPI, route: APIRoute) -> None:
        assert route.dependant.call is not None
        self._call = route.dependant.call
        #: the handler itself, where it is a sync one
        self._sync: Callable[..., Any] | None = getattr(self._call, "runs_in_thread", None)
        self._field: Any = route.body_field
        self._name: str = route.dependant.body_params[0].name
        self._response_field = route.response_field
        self._context: Any = {**fastapi.routing._extract_endpoint_context(self._call), "path": f"POST {route.path}"}
        self._ending = _ending(app, route)

    async def answer(
        self, body: bytes, headers: list[tuple[bytes, bytes]], reply: Reply, from_any_thread: bool
    ) -> Ended | bool:
        """Call the handler and, when it has come to a usual end, ``reply``.

        Args:
            reply: called with status, headers and body of the answer.
            from_any_thread: whether a sync handler's thread may call it: the answer need not wait for the event loop.

        Returns:
            True when that was all; or how it ended, when FastAPI must make the answer of that; or False when the
            handler was not called: FastAPI must be asked from the beginning.
        """
        for name, value in headers:
            if name == b"content-type":
                if value != b"application/json" and not value.startswith(b"application/json;"):
                    return False
                break
        if "opentelemetry.sdk" in sys.modules:
            return False  # FastAPI itself reports each call to it
        try:
            raw = json.loads(body)
        except (ValueError, RecursionError):
            return False
        if raw is None:
            return False
        value, errors = self._field.validate(raw, {}, loc=("body",))
        if errors:
            return False
        try:
            if self._sync is not None and from_any_thread:
                say = partial(_say, reply)
                return await run_in_thread_then(say, self._call_here, self._sync, value)  # type: ignore[no-any-return]
            return _say(reply, self._end(await self._call(**{self._name: value})))
        except Exception as error:  # noqa: BLE001 - handed to FastAPI's own error handling
            return Ended(self._ending, None, error)

    def _call_here(self, handler: Callable[..., Any], value: Any) -> Ended | Response:
        return self._end(handler(**{self._name: value}))

    def _end(self, result: Any) -> Ended | Response:
        if isinstance(result, Response):
            return Ended(self._ending, result, None)
        # A coroutine function that waits for nothing: what it validates here, FastAPI would validate in the same kind
        # of thread.
        content: Any = _outcome_of(
            fastapi.routing.serialize_response(
                field=self._response_field,
                response_content=result,
                endpoint_ctx=self._context,
                dump_json=self._response_field is not None,
            )
        )
        if self._response_field is None:
            return JSONResponse(content)
        return Response(content, media_type="application/json")


def _say(reply: Reply, end: Ended | Response) -> Ended | bool:
    if isinstance(end, Ended):
        return end
    reply(end.status_code, end.raw_headers, bytes(end.body))
    return True


def _outcome_of(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine that waits for nothing returns."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    coroutine.close()
    raise RuntimeError("FastAPI waited for something while it made an answer")


class Ended:
    """A handler's call that ended in a way of its own: with an answer object or an error."""

    __slots__ = ("_app", "_error", "_response")

    def __init__(self, app: Starlette, response: Response | None, error: Exception | None) -> None:
        self._app = app
        self._response = response
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let FastAPI answer, as an ASGI app; raises what it passes on."""
        scope["fal.ended"] = self
        await self._app(scope, receive, send)

    async def run(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What FastAPI finds in the place of the handler."""
        del scope["fal.ended"]
        if self._error is not None:
            raise self._error
        assert self._response is not None
        await self._response(scope, receive, send)


def _ending(app: FastAPI, route: APIRoute) -> Starlette:
    """``app`` with its error handlers and, in the place of its routes, how a call of ``route`` has ended."""

    async def ended(scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = app
        scope["router"] = app.router
        scope.update(route.matches(scope)[1])
        await scope["fal.ended"].run(scope, receive, send)

    twin = copy.copy(app)
    twin.router = ended  # type: ignore[assignment]
    twin.middleware_stack = None
    return twin


def plain_routes(app: FastAPI) -> dict[str, PlainRoute]:
    """The plain routes of a finished app, by path; all of them answer POST.

    Empty when anything stands around the routes that a direct call would leave out, or when this FastAPI is built
    differently than the ones known here.
    """
    try:
        if not _is_plain_app(app):
            return {}
        return {
            route.path: PlainRoute(app, route)
            for route in app.routes
            if isinstance(route, APIRoute) and _is_plain(route) and _comes_first(app, route)
        }
    except (AttributeError, TypeError, IndexError):
        return {}


def _is_plain_app(app: FastAPI) -> bool:
    telemetry = getattr(app, "_native_telemetry", None)
    return (
        type(app) is FastAPI
        and app.middleware_stack is None
        and not app.dependency_overrides
        and all(getattr(app, name, default) == default for name, default in _APP_DEFAULTS.items())
        and type(app.router) is fastapi.APIRouter
        and not {"__call__", "build_middleware_stack"} & vars(app).keys()
        and all(found is known for found, known in zip(_places(), _UNTOUCHED, strict=True))
        and "dump_json" in inspect.signature(fastapi.routing.serialize_response).parameters
        and not (telemetry is not None and telemetry.enabled())
    )


def _is_plain(route: APIRoute) -> bool:
    dependant = route.dependant
    if type(route) is not APIRoute or route.methods != {"POST"} or "{" in route.path:
        return False
    for name, default in _ROUTE_DEFAULTS.items():
        if (getattr(route, name) if name in _NO_DEFAULT else getattr(route, name, default)) != default:
            return False
    response_class = route.response_class
    return (
        isinstance(response_class, DefaultPlaceholder)
        and response_class.value is JSONResponse
        and inspect.iscoroutinefunction(dependant.call)
        and len(dependant.body_params) == 1
        and route.body_field is not None
        and type(route.body_field.field_info) is fastapi.params.Body
        and _takes_nothing_else(dependant)
    )


def _takes_nothing_else(dependant: Any) -> bool:
    """Whether the body is the handler's only argument. A field that is not known here may be another one."""
    about_the_call = {"body_params", "call", "path", "name", "use_cache", "scope", "cache_key"}
    return all(
        not getattr(dependant, each.name) for each in dataclasses.fields(dependant) if each.name not in about_the_call
    )


def _comes_first(app: FastAPI, route: APIRoute) -> bool:
    """Whether no route before it answers its path."""
    scope = {"type": "http", "method": "POST", "path": route.path, "root_path": "", "headers": []}
    return next((each for each in app.routes if each.matches(dict(scope))[0] is Match.FULL), None) is route
