"""Terminals beside a worker: a websocket whose first message says what to run, and which then carries both directions.

Messages are JSON texts: ``shapes.TypedCommand`` and then ``shapes.Typed`` from the caller, ``shapes.CommandOutput`` and
last ``shapes.CommandExit`` to it. Leaves the command to ``commands`` and the store.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import re
from typing import Any

import orjson

from scheduler.store import Store
from scheduler.store.errors import StoreError
from scheduler.store.records import Command

from . import wire
from .asgi import Receive, Scope, Send
from .auth import check_owner, check_scope
from .commands import checked_arguments, checked_size, checked_terminal, follow, living
from .control import Control
from .errors import CallerGone, Refusal, bad_request
from .incoming import Head
from .socket_protocol import LOST

_PATH = re.compile(r"/api/v1/apps/(?P<owner>[^/]+)/(?P<app>[^/]+)/workers/(?P<worker>[^/]+)/exec/?")
#: For the message that says what to run.
_BEGIN_SECONDS = 20.0
#: Of one message: what somebody pastes, or a block of a file.
_MOST_BYTES = 256 * 1024


class Terminals:
    """Serves ``/api/v1/apps/{owner}/{app}/workers/{worker_id}/exec`` as a websocket."""

    def __init__(self, control: Control) -> None:
        self._control = control

    async def serve(self, scope: Scope, receive: Receive, send: Send, head: Head, path: str) -> None:
        """One terminal, from its handshake to its end.

        Raises:
            Refusal: before it was opened.
        """
        found = _PATH.fullmatch(path)
        if found is None:
            raise Refusal(404, f'There is no websocket at "{path}".')
        key = await self._control.keys.require(head.authorization)
        check_owner(found["owner"], key)
        check_scope(key, "manage")
        app, worker_id = f"{found['owner']}/{found['app']}", found["worker"]
        await living(self._control.store, app, worker_id)
        self._control.limits.enter()
        try:
            await send({"type": "websocket.accept", "headers": []})
            stall = self._control.settings.write_timeout
            await _Session(self._control.store, app, worker_id, scope, receive, send, stall).run()
        finally:
            self._control.limits.leave()


class _Session:
    """One open terminal."""

    def __init__(
        self, store: Store, app: str, worker_id: str, scope: Scope, receive: Receive, send: Send, stall: float
    ) -> None:
        self._store = store
        self._app = app
        self._worker_id = worker_id
        self._lost: asyncio.Event = scope["extensions"][LOST]
        self._receive = receive
        self._send = send
        self._stall = stall
        self._news = asyncio.Event()
        self._gone = False
        self._fault = ""

    async def run(self) -> None:
        try:
            async with asyncio.timeout(_BEGIN_SECONDS):
                command = _command(await self._message())
        except TimeoutError:
            return await self._close(1008, f"Nothing was asked for within {_BEGIN_SECONDS:.0f} s.")
        except Refusal as refusal:
            return await self._close(1008, refusal.detail)
        except CallerGone:
            return
        command_id = await self._store.commands.submit(self._app, self._worker_id, command)
        listening = asyncio.get_running_loop().create_task(self._listen(command_id))
        try:
            await follow(self._store, self._app, self._worker_id, command_id, self._say, self._note, self._wait)
        except CallerGone:
            return
        except StoreError as error:
            return await self._close(1011, str(error))
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
        await self._close(1008 if self._fault else 1000, self._fault)

    async def _message(self) -> Any:
        """The caller's next message; 400 for what is none."""
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            raise CallerGone
        text = message.get("text")
        if text is None or len(text) > _MOST_BYTES * 2:
            raise bad_request(f"Messages must be JSON texts, with {_MOST_BYTES // 1024} KiB of input at most.")
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise bad_request(f"The message is not valid JSON: {error}.") from None

    async def _listen(self, command_id: str) -> None:
        """What the caller types, on its way to the command; not read further while that takes nothing."""
        commands = self._store.commands
        try:
            while True:
                kind, data = _typed(await self._message())
                await commands.say(self._app, self._worker_id, command_id, kind, data)
        except Refusal as refusal:
            self._fault = refusal.detail
        except (CallerGone, StoreError):
            pass
        self._gone = True
        self._news.set()

    async def _say(self, kind: str, data: bytes) -> None:
        text = wire.dumps(wire.command_said(kind, data)).decode()
        try:
            async with asyncio.timeout(self._stall):
                await self._send({"type": "websocket.send", "text": text})
        except (TimeoutError, OSError, RuntimeError):
            raise CallerGone from None

    def _note(self, _payload: bytes) -> None:
        self._news.set()

    async def _wait(self, at_most: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(at_most):
                await self._news.wait()
        self._news.clear()
        return not (self._gone or self._lost.is_set())

    async def _close(self, code: int, reason: str) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            await self._send({"type": "websocket.close", "code": code, "reason": reason[:100]})


def _command(message: Any) -> Command:
    if not isinstance(message, dict) or message.keys() - {"command", "terminal"}:
        raise bad_request('The first message must be an object with "command" and, if there is one, "terminal".')
    return Command(checked_arguments(message.get("command")), True, checked_terminal(message.get("terminal")))


def _typed(message: Any) -> tuple[Any, bytes]:
    kind = message.get("type") if isinstance(message, dict) else None
    if kind == "input":
        try:
            return "bytes", base64.b64decode(message.get("data", ""), validate=True)
        except (TypeError, ValueError, binascii.Error):
            raise bad_request('"data" must be text in base64.') from None
    if kind == "size":
        rows, columns = checked_size(message)
        return "size", f"{rows} {columns}".encode()
    if kind == "end":
        return "end", b""
    raise bad_request('"type" must be "input", "size" or "end".')
