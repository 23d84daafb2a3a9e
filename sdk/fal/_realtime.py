"""Sessions of ``@fal.realtime`` methods: typed frames over a websocket, in the four ways that a method can be shaped.

Frames are msgpack unless the app says otherwise. Errors are JSON text frames that fal's clients know. Leaves the
method's shape to ``fal._realtime_shape`` and the websocket to the runner.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgpack
from fastapi import WebSocket
from pydantic import BaseModel, ValidationError
from pydantic_core import to_jsonable_python
from starlette.websockets import WebSocketDisconnect

from fal._endpoints import RealtimeOptions
from fal._error_answers import json_safe
from fal._realtime_shape import Shape
from fal._threads import run_in_thread

#: Inputs that wait for a method without ``buffering``, beyond which the caller is not read.
MOST_WAITING = 64
#: What a caller may ask for as ``max_buffering``.
_MOST_BUFFERING = 60
_END = object()


class _SessionOver(Exception):
    """No input came within ``session_timeout``."""


class _Inputs:
    """What has been read and not been taken. With a limit the oldest makes room; without, the reader waits."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._waiting: deque[Any] = deque()
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Future[bool] | None = None
        self._room = asyncio.Event()
        self._error: BaseException | None = None

    async def put(self, value: Any) -> None:
        self._waiting.append(value)
        if self._limit is not None:
            while len(self._waiting) > self._limit:
                self._waiting.popleft()
        self._tell(True)
        while self._limit is None and len(self._waiting) >= MOST_WAITING:
            self._room.clear()
            await self._room.wait()

    def end(self, error: BaseException) -> None:
        """No more will come; what is waiting can still be taken."""
        self._error = self._error or error
        self._tell(True)

    def _tell(self, news: bool) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(news)

    async def take(self, timeout: float | None) -> Any:
        """The oldest; waits for one.

        Raises:
            _SessionOver: none came in time. WebSocketDisconnect: the caller has left.
        """
        timer = self._loop.call_later(timeout, self._tell, False) if timeout is not None else None
        try:
            while not self._waiting:
                if self._error is not None:
                    raise self._error
                self._news = self._loop.create_future()
                if not await self._news and not self._waiting:
                    raise _SessionOver
        finally:
            if timer is not None:
                timer.cancel()
        return self._pop()

    def next_if(self, wanted: Callable[[Any], bool]) -> Any:
        """The oldest if it is there and wanted, else ``_END``."""
        return self._pop() if self._waiting and wanted(self._waiting[0]) else _END

    def _pop(self) -> Any:
        value = self._waiting.popleft()
        self._room.set()
        return value


class Session:
    """One caller's session with one method."""

    def __init__(self, socket: WebSocket, handler: Callable[..., Any], shape: Shape, options: RealtimeOptions) -> None:
        self._socket = socket
        self._handler = handler
        self._shape = shape
        self._options = options
        self._inputs = _Inputs(_buffering(socket.query_params.get("max_buffering"), options.buffering))
        self._json = "json" in options.content_type

    async def run(self) -> None:
        """Serve it to its end; raises what the method raises, after the caller has been told."""
        await self._socket.accept()
        reading = asyncio.ensure_future(self._read())
        try:
            await self._serve()
            await self._socket.close()
        except WebSocketDisconnect:
            pass
        except _SessionOver:
            seconds = self._options.session_timeout
            await self._say("TIMEOUT", f"No input came for {seconds:g} s.")
            await self._socket.close()
        except Exception as error:
            await self._failed(error)
            raise
        finally:
            reading.cancel()

    async def _serve(self) -> None:
        mode = self._shape.mode
        if mode == "unary":
            while True:
                await self._send_all(await self._call(*await self._batch()))
        elif mode == "server_streaming":
            await self._send_stream(await self._started(await self._take()))
        elif mode == "client_streaming":
            await self._send(await self._handler(self._iterate()))
        else:
            await self._send_stream(await self._started(self._iterate()))

    # --- in -----------------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        try:
            while True:
                message = await self._socket.receive()
                if message["type"] == "websocket.disconnect":
                    self._inputs.end(WebSocketDisconnect(message["code"], message.get("reason")))
                    return
                try:
                    value = self._shape.adapter.validate_python(self._decode(message))
                except ValidationError as error:
                    await self._say("INVALID_INPUT", _first(error), detail=json_safe(error.errors()))
                except Exception as error:  # noqa: BLE001 - a frame of the caller's making, read by code of the app
                    await self._say("INVALID_INPUT", f"The frame cannot be read: {type(error).__name__}: {error}"[:500])
                else:
                    await self._inputs.put(value)
        except Exception as error:  # noqa: BLE001 - handed to whoever waits for inputs
            self._inputs.end(error)

    def _decode(self, message: Any) -> Any:
        text, data = message.get("text"), message.get("bytes")
        if self._options.decode_message is not None:
            return self._options.decode_message(text.encode() if data is None else data)
        if data is None:
            return json.loads(text)
        return json.loads(data) if self._json else msgpack.unpackb(data)

    async def _take(self) -> Any:
        return await self._inputs.take(self._options.session_timeout)

    async def _batch(self) -> list[Any]:
        first = await self._take()
        batch, most = [first], self._options.max_batch_size

        def fits(following: Any) -> bool:
            can_batch = getattr(first, "can_batch", None)
            return can_batch is None or bool(can_batch(following, len(batch)))

        while len(batch) < most and (following := self._inputs.next_if(fits)) is not _END:
            batch.append(following)
        return [batch] if self._shape.batch_as_list else batch

    async def _iterate(self) -> AsyncIterator[Any]:
        """The caller's inputs until it leaves: its code may then still finish what it has."""
        while True:
            try:
                value = await self._take()
            except WebSocketDisconnect:
                return
            yield value

    # --- the method ---------------------------------------------------------------------------------------------------

    async def _call(self, *arguments: Any) -> Any:
        if inspect.iscoroutinefunction(self._handler):
            return await self._handler(*arguments)
        return await run_in_thread(self._handler, *arguments)

    async def _started(self, argument: Any) -> Any:
        """The iterator that a streaming method gives."""
        result = self._handler(argument)
        return await result if inspect.iscoroutine(result) else result

    # --- out ----------------------------------------------------------------------------------------------------------

    async def _send_stream(self, outputs: Any) -> None:
        if hasattr(outputs, "__aiter__"):
            async for output in outputs:
                await self._send(output)
            return
        iterator = iter(outputs)
        while (output := await run_in_thread(next, iterator, _END)) is not _END:
            await self._send(output)

    async def _send_all(self, outputs: Any) -> None:
        for output in outputs if isinstance(outputs, list | tuple) and self._options.max_batch_size > 1 else [outputs]:
            await self._send(output)

    async def _send(self, output: Any) -> None:
        if isinstance(output, BaseModel):
            output = output.model_dump()
        elif not isinstance(output, dict):
            kind = type(output).__name__
            raise TypeError(f"a realtime endpoint gives dicts or pydantic models, not {kind}: wrap it in a dict")
        if self._options.encode_message is not None:
            frame: Any = self._options.encode_message(output)
        elif self._json:
            frame = json.dumps(output, default=to_jsonable_python)
        else:
            frame = msgpack.packb(output, default=to_jsonable_python)
        if isinstance(frame, str):
            await self._socket.send_text(frame)
        else:
            await self._socket.send_bytes(bytes(frame))

    async def _say(self, error: str, reason: str, **more: Any) -> None:
        await self._socket.send_text(json.dumps({"type": "x-fal-error", "error": error, "reason": reason, **more}))

    async def _failed(self, error: Exception) -> None:
        status = getattr(error, "status_code", 500)
        told = getattr(error, "message", None) or getattr(error, "detail", None)
        reason = str(told) if told and isinstance(status, int) and status < 500 else "Internal Server Error"
        try:
            await self._say("INTERNAL_ERROR", reason)
            await self._socket.close(1011, reason[:100])
        except (WebSocketDisconnect, RuntimeError):
            pass  # the caller has left


def _buffering(wished: str | None, own: int | None) -> int | None:
    """The app's limit, or the caller's lower one."""
    if wished is None or not wished.isdecimal() or not 1 <= int(wished) <= _MOST_BUFFERING:
        return own
    return int(wished) if own is None else min(own, int(wished))


def _first(error: ValidationError) -> str:
    """One line for a person; all of it is in ``detail``."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else str(first["msg"])


def route(handler: Callable[..., Any], shape: Shape, options: RealtimeOptions) -> Callable[[WebSocket], Any]:
    """A websocket route's function that serves sessions of ``handler``."""

    async def serve(socket: WebSocket) -> None:
        await Session(socket, handler, shape, options).run()

    return serve
