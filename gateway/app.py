"""The gateway as an ASGI app: wiring, and the dispatcher that sends each request to its service.

Run and queue calls are dispatched by a few string operations, before any router; the control API is Starlette's.
"""

from __future__ import annotations

import asyncio

import structlog
from starlette.exceptions import HTTPException
from starlette.routing import Router

from scheduler.store import Store

from . import cors, fal_proxy
from .addresses import Addresses, locate
from .api_keys import ApiKeys
from .apps import Apps
from .asgi import Headers, Message, Receive, Scope, Send, respond
from .auth import Keys
from .bundles import Bundles
from .call_tokens import CallTokens
from .control import Control
from .data_files import DataFiles
from .dead_webhooks import DeadWebhooks
from .deployments import Deployments
from .directory import Directory
from .errors import CallerGone, Refusal, answer_for, is_expected, overloaded
from .events import EventStreams
from .fal_cli import FalCli
from .files import Files
from .incoming import Head, new_request_id, read_head
from .letters import Letters
from .limits import Limits
from .logs import Logs
from .named_environments import NamedEnvironments
from .openapi import OpenApi
from .public import Public
from .queue import Queue
from .results import Results
from .run import Access, Run
from .secrets import Secrets
from .settings import Settings
from .sockets import Sockets
from .storage import Storage
from .terminals import Terminals
from .tokens import Tokens
from .uploads import Uploads
from .workers import Workers

log = structlog.get_logger("gateway")

#: The nouns of the control API.
_CONTROL = (
    *(Public, Bundles, Deployments, Apps, Workers, Letters, DeadWebhooks, Logs, ApiKeys),
    *(Secrets, NamedEnvironments, FalCli, DataFiles),
)


class Gateway:
    """One gateway process. ``store`` stays open when it ends; whoever opened it closes it."""

    def __init__(self, store: Store, settings: Settings) -> None:
        addresses = Addresses(settings)
        self.limits = limits = Limits(settings)
        keys = Keys(store)
        directory = Directory(store)
        tokens = Tokens(settings.data_dir)
        access = Access(directory, keys, tokens)
        self._streams = EventStreams(limits, settings.write_timeout)
        control = Control(store, settings, addresses, keys, directory, limits, self._streams)
        self.results = Results(store, settings.max_wait)
        self._run = Run(store, addresses, access, limits, self.results, settings.write_timeout)
        self._sockets = Sockets(store, settings, addresses, access, limits, self.results, self._run, Terminals(control))
        self._queue = Queue(store, settings, addresses, access, limits, self._streams)
        self._files = Files(store, keys, settings.write_timeout)
        self._uploads = Uploads(store, settings, addresses, keys, tokens, limits)
        routes = [route for part in _CONTROL for route in part(control).routes()]
        routes += CallTokens(control, tokens).routes() + Storage(control, tokens).routes()
        routes += OpenApi(routes).routes()
        self.routes = tuple(routes)
        self._router = Router(routes, redirect_slashes=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            await self._sockets.serve(scope, receive, send)

    def stop(self) -> None:
        """The server is stopping: event streams end now, requests have the server's grace."""
        self._streams.stop()

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = new_request_id()
        try:
            head = read_head(scope)
            service, path = locate(scope["path"], head.host)
            if service == "other" and path.rstrip("/") == fal_proxy.PATH and scope["method"] != "OPTIONS":
                scope, host = fal_proxy.meant(scope, head)
                service, path = locate(scope["path"], host)
            if scope["method"] == "OPTIONS" and (allowed := cors.preflight(scope)) is not None:
                await respond(send, 204, [*allowed, (b"x-fal-request-id", request_id.encode())], b"")
            elif service == "run":
                await self._run.serve(scope, receive, send, head, path, request_id)
            elif service == "queue":
                await self._queue.serve(scope, receive, send, head, path, request_id)
            elif service == "cdn":
                cdn = self._uploads if scope["method"] in ("POST", "PUT") else self._files
                await cdn.serve(scope, receive, send, head, path, request_id)
            else:
                await self._control(scope, receive, send, head, service, path, request_id)
        except CallerGone:
            pass  # an answer that was begun is cut off by the server, which is what the caller must see
        except asyncio.CancelledError:
            await _fail(scope, send, request_id, overloaded("The gateway is stopping. Try again in a moment."))
        except Exception as error:
            if isinstance(error, HTTPException):
                error = _refusal(scope, error)
            if not is_expected(error):
                log.error("request failed", path=scope["path"], request_id=request_id, exc_info=error)
            await _fail(scope, send, request_id, error)

    async def _control(
        self, scope: Scope, receive: Receive, send: Send, head: Head, service: str, path: str, request_id: str
    ) -> None:
        if service in ("rest", "ws"):
            path = f"/{service}{path}"
        extra = [(b"x-fal-request-id", request_id.encode()), *cors.ALLOW]
        # "app" makes Starlette raise for an unknown path or method, so that errors have one form.
        inner = {**scope, "path": path.rstrip("/") or "/", "root_path": "", "keepwarm.head": head, "app": self}
        await self._router(inner, receive, _adding(send, extra))

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await self.results.start()
                except Exception as error:  # noqa: BLE001 - ASGI's way to say that the start failed
                    await send({"type": "lifespan.startup.failed", "message": str(error)})
                    return
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.results.close()
                await send({"type": "lifespan.shutdown.complete"})
                return


def create_app(store: Store, settings: Settings) -> Gateway:
    """The ASGI app of one gateway process.

    Args:
        store: connected; shared by all requests of the process.
        settings: see Settings.
    """
    return Gateway(store, settings)


def _adding(send: Send, extra: Headers) -> Send:
    async def adding(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *extra]
        await send(message)

    return adding


def _refusal(scope: Scope, error: HTTPException) -> Refusal:
    """Starlette's 404 and 405 in our words."""
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        return Refusal(
            405, f"{scope['method']} is not possible here; use {allowed}.", None, ((b"allow", allowed.encode()),)
        )
    if error.status_code == 404:
        return Refusal(404, f'There is nothing at "{scope["path"]}".')
    return Refusal(error.status_code, str(error.detail))


async def _fail(scope: Scope, send: Send, request_id: str, error: Exception) -> None:
    status, headers, body = answer_for(error)
    headers += [*cors.ALLOW, (b"x-fal-request-id", request_id.encode("ascii"))]
    try:
        await respond(send, status, headers, body)
    except RuntimeError:
        # The answer had begun: the server closes the connection, which is all that can be said now.
        log.warning("an answer broke off", path=scope["path"], request_id=request_id, error=repr(error))
