"""Connections: a caller's websocket, led to a slot of a worker as a direct call is.

A connection is a direct request that lasts: it waits for a worker, is claimed, leased and cancelled like any other, and
is tried once. Leaves one open connection to ``connection``, calls over a socket to ``call_socket``, and commands beside
a worker to ``terminals``.
"""

from __future__ import annotations

import asyncio

import structlog
from fal._spec import WEBSOCKET

from scheduler.store import Store
from scheduler.store.errors import StoreError
from scheduler.store.records import Submission

from . import incoming
from .addresses import Addresses, locate, split_app
from .asgi import Receive, Scope, Send, http_scheme
from .call_socket import CallSocket
from .connection import Connection
from .errors import Refusal, answer_for, is_expected
from .incoming import Head, new_request_id, read_head
from .lifecycle import check_preference
from .limits import Limits
from .results import Results
from .run import Access, Run, app_headers
from .settings import Settings
from .terminals import Terminals

log = structlog.get_logger("gateway.sockets")

_CONSUMED: frozenset[str] = frozenset()
#: Headers of the handshake, which is the gateway's own affair; the app sees the offered subprotocols.
_HANDSHAKE = frozenset({"sec-websocket-key", "sec-websocket-version", "sec-websocket-extensions"})


class Sockets:
    """Serves websockets."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        addresses: Addresses,
        access: Access,
        limits: Limits,
        results: Results,
        run: Run,
        terminals: Terminals,
    ) -> None:
        self._terminals = terminals
        self._store = store
        self._settings = settings
        self._addresses = addresses
        self._access = access
        self._limits = limits
        self._results = results
        self._run = run

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One websocket, from its handshake to its end."""
        request_id = new_request_id()
        await receive()  # websocket.connect
        try:
            head = read_head(scope)
            service, path = locate(scope["path"], head.host)
            if service == "ws":
                await self._calls(scope, receive, send, head, path)
            elif service == "run":
                await self._connect(scope, receive, send, head, path, request_id)
            elif service == "api":
                await self._terminals.serve(scope, receive, send, head, path)
            else:
                raise Refusal(404, f'There is no websocket at "{scope["path"]}".')
        except (Refusal, StoreError) as error:
            await deny(scope, send, request_id, error)
        except Exception as error:
            if not is_expected(error):
                log.error("a connection failed", path=scope["path"], request_id=request_id, exc_info=error)
            await deny(scope, send, request_id, error)

    async def _calls(self, scope: Scope, receive: Receive, send: Send, head: Head, path: str) -> None:
        self._limits.enter()
        try:
            await CallSocket(self._run, scope, receive, send, head, path).serve()
        finally:
            self._limits.leave()

    async def _connect(
        self, scope: Scope, receive: Receive, send: Send, head: Head, path: str, request_id: str
    ) -> None:
        found = split_app(path)
        if found is None:
            raise Refusal(404, f'"{path}" is not the address of an app; use /owner/app.')
        app, route = found
        query, own = incoming.split_query(scope["query_string"], _CONSUMED)
        alias, caller = await self._access.open(app, head.authorization, own.get("fal_jwt_token"))
        check_preference(head)
        headers = app_headers(head, app, route, request_id, caller)
        submission = Submission(
            app=app,
            request_id=request_id,
            mode="direct",
            method=WEBSOCKET,
            path=route,
            query=query,
            headers=tuple((name, value) for name, value in headers if name not in _HANDSHAKE),
            body=b"",
            base_url=self._addresses.files_url({**scope, "scheme": http_scheme(scope)}, head),
            priority=incoming.priority(head) if head.options else "normal",
            start_timeout=incoming.start_timeout(head, alias.scaling.request_start_timeout),
            max_attempts=1,
            gateway=self._results.gateway_id,
        )
        self._limits.enter()
        waiter = self._results.expect(app, request_id, submission.start_timeout, None)
        connection = Connection(self._store, self._settings, waiter, self._run.cut_off, scope, receive, send)
        try:
            await self._store.requests.submit(submission)
            await connection.run()
        except asyncio.CancelledError:
            await asyncio.shield(connection.cancel())
            raise
        finally:
            self._results.forget(waiter)
            self._limits.leave()


async def deny(scope: Scope, send: Send, request_id: str, error: Exception) -> None:
    """Refuse the upgrade with an HTTP answer."""
    status, headers, body = answer_for(error)
    headers.append((b"x-fal-request-id", request_id.encode("ascii")))
    try:
        await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": body})
    except RuntimeError:
        # It was open already: a close code is all that can be said.
        log.warning("a connection broke off", path=scope["path"], request_id=request_id, error=repr(error))
        await send({"type": "websocket.close", "code": 1011, "reason": str(error)[:100]})
