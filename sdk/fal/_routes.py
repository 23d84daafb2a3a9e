"""The FastAPI app of an app's instance: routes, health, hints, error answers, OpenAPI.

Owns how methods become routes. Leaves serving to ``fal._runner`` (in-process, no port) and the classes to ``fal.app``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, WebSocket

from fal import _error_answers
from fal._endpoints import RealtimeOptions, collect, resolved_signature
from fal._plain_routes import PlainRoute, plain_routes
from fal._socket_docs import describe
from fal._threads import run_in_thread

if TYPE_CHECKING:
    from fal.app import App

__all__ = ["PlainRoute", "build_fastapi", "hints_header", "openapi_of", "plain_routes"]


def build_fastapi(instance: App) -> FastAPI:
    """The ASGI app that serves ``instance``.

    Raises:
        ValueError: no route, a websocket method of the wrong shape, or an annotation that FastAPI cannot use.
    """
    routes = collect(type(instance))
    if not routes:
        raise ValueError(f'{type(instance).__name__} has no endpoint: mark a method with @fal.endpoint("/")')
    options: dict[str, Any] = {}
    if "strict_content_type" in inspect.signature(FastAPI.__init__).parameters:
        # A body sent without a content type is JSON, as it always was: plain `curl -d` users count on it.
        options["strict_content_type"] = False
    app = FastAPI(
        title=type(instance).app_name or type(instance).__name__,
        version=instance.version,
        docs_url=None,
        redoc_url=None,
        **options,
    )
    app.router.redirect_slashes = False
    _error_answers.install(app)
    instance._add_extra_middlewares(app)
    for name, signature in routes.items():
        handler = getattr(instance, name)
        if not signature.is_websocket:
            app.add_api_route(signature.path, _on_the_loop(handler), name=name, methods=["POST"])
        elif signature.realtime is None:
            _check_websocket(type(instance), name, handler)
            app.add_api_websocket_route(signature.path, handler, name=name)
        else:
            app.add_api_websocket_route(signature.path, _realtime(instance, name, signature.realtime), name=name)
    app.add_api_route("/health", instance.health, name="health", methods=["GET"])
    instance._add_extra_routes(app)
    return app


def _realtime(instance: App, name: str, options: RealtimeOptions) -> Callable[..., Any]:
    from fal import _realtime
    from fal._realtime_shape import shape_of

    handler = getattr(instance, name)
    shape = shape_of(type(instance).__name__, name, handler, options)
    route = _realtime.route(handler, shape, options)
    route.fal_realtime = (shape, options)  # type: ignore[attr-defined]
    return route


def openapi_of(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the orders that JSON objects lose on their way through other tools."""
    document = app.openapi()
    describe(app, document)
    document["x-fal-order-paths"] = list(document.get("paths", {}))
    for schema in document.get("components", {}).get("schemas", {}).values():
        if "properties" in schema:
            schema["x-fal-order-properties"] = list(schema["properties"])
    return document


def hints_header(instance: App) -> str | None:
    """Value of ``X-Fal-Runner-Hints``; hints that no HTTP header can carry are left out."""
    hints = [hint for hint in instance.provide_hints() if _fits_a_header(hint)]
    return ",".join(hints) or None


def _fits_a_header(hint: str) -> bool:
    try:
        hint.encode("latin-1")
    except UnicodeEncodeError:
        return False
    return "\r" not in hint and "\n" not in hint


def _on_the_loop(handler: Callable[..., Any]) -> Callable[..., Any]:
    """``handler`` as a coroutine function with the same signature; sync ones run in a handler thread."""
    if (
        inspect.iscoroutinefunction(handler)
        or inspect.isgeneratorfunction(handler)
        or inspect.isasyncgenfunction(handler)
    ):
        return handler
    signature = resolved_signature(handler)
    if signature is None:
        return handler

    async def call(**arguments: Any) -> Any:
        return await run_in_thread(handler, **arguments)

    call.__name__ = handler.__name__
    call.__qualname__ = handler.__qualname__
    call.__module__ = handler.__module__
    call.__doc__ = handler.__doc__
    call.__signature__ = signature  # type: ignore[attr-defined]
    call.runs_in_thread = handler  # type: ignore[attr-defined]
    return call


def _check_websocket(cls: type, name: str, handler: Callable[..., Any]) -> None:
    hints = (resolved_signature(handler) or inspect.signature(handler)).parameters.values()
    takes_socket = any(inspect.isclass(p.annotation) and issubclass(p.annotation, WebSocket) for p in hints)
    if not inspect.iscoroutinefunction(handler) or not takes_socket:
        raise ValueError(
            f"{cls.__name__}.{name} is a websocket endpoint: write `async def {name}(self, socket: fastapi.WebSocket)`"
        )
