"""Apps that serve raw websockets, each in its own way."""

import asyncio
import os

import fal
from fal.exceptions import AppException
from fastapi import WebSocket, WebSocketDisconnect


class Sockets(fal.App, keep_alive=120, max_concurrency=1, max_multiplexing=16):
    """Two at a time may be at one runner, and many more."""

    machine_type = "XS"

    def setup(self) -> None:
        self.seen: list[str] = []
        self.ends: list[list[object]] = []

    @fal.endpoint("/")
    def plain(self) -> dict[str, object]:
        return {"ends": self.ends, "pid": os.getpid()}

    @fal.endpoint("/echo", is_websocket=True)
    async def echo(self, socket: WebSocket) -> None:
        offered = socket.scope["subprotocols"]
        await socket.accept(subprotocol=offered[-1] if offered else None, headers=[(b"x-app", b"here")])
        try:
            while True:
                message = await socket.receive()
                if message["type"] == "websocket.disconnect":
                    raise WebSocketDisconnect(message["code"], message.get("reason"))
                if message.get("text") is not None:
                    await socket.send_text(message["text"])
                else:
                    await socket.send_bytes(message["bytes"])
        except WebSocketDisconnect as left:
            self.ends.append([left.code, left.reason])

    @fal.endpoint("/head", is_websocket=True)
    async def head(self, socket: WebSocket) -> None:
        await socket.accept()
        headers = {name: value for name, value in socket.headers.items() if not name.startswith("x-fal-request")}
        await socket.send_json({"headers": headers, "query": dict(socket.query_params), "url": str(socket.url)})

    @fal.endpoint("/close", is_websocket=True)
    async def close(self, socket: WebSocket) -> None:
        await socket.accept()
        code, _, reason = (await socket.receive_text()).partition(" ")
        await socket.close(int(code), reason)

    @fal.endpoint("/fail", is_websocket=True)
    async def fail(self, socket: WebSocket) -> None:
        await socket.accept()
        how = await socket.receive_text()
        if how == "die":
            os._exit(3)
        if how == "app":
            raise AppException("the picture is too dark", 400)
        raise RuntimeError("a secret of the app")

    @fal.endpoint("/refuse", is_websocket=True)
    async def refuse(self, socket: WebSocket) -> None:
        if "status" in socket.query_params:
            raise AppException("not today", int(socket.query_params["status"]))
        await socket.close()

    @fal.endpoint("/flood", is_websocket=True)
    async def flood(self, socket: WebSocket) -> None:
        """Sends for as long as it is let, and says how far it came."""
        await socket.accept()
        try:
            for number in range(100_000):
                await socket.send_bytes(b"x" * 65536)
                self.flooded = number
        except WebSocketDisconnect:
            pass

    @fal.endpoint("/flooded")
    def how_far(self) -> int:
        return self.flooded

    @fal.endpoint("/deaf", is_websocket=True)
    async def deaf(self, socket: WebSocket) -> None:
        """Takes nothing until somebody calls /listen, then counts what comes."""
        await socket.accept()
        self.listen = asyncio.Event()
        await self.listen.wait()
        total = 0
        while True:
            data = await socket.receive_bytes()
            total += len(data)
            if len(data) == 1:
                await socket.send_json({"total": total})
                return

    @fal.endpoint("/listen")
    async def start_listening(self) -> None:
        self.listen.set()


class Single(fal.App, keep_alive=120, max_concurrency=1, cancel_grace_seconds=1):
    """One connection or request at a time."""

    machine_type = "XS"

    @fal.endpoint("/")
    def plain(self) -> dict[str, int]:
        return {"pid": os.getpid()}

    @fal.endpoint("/stay", is_websocket=True)
    async def stay(self, socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text(str(os.getpid()))
        while True:
            await socket.receive_text()

    @fal.endpoint("/forever", is_websocket=True)
    async def forever(self, socket: WebSocket) -> None:
        """Does not notice that its caller leaves."""
        await socket.accept()
        await socket.send_text("working")
        print("working", flush=True)
        try:
            await asyncio.sleep(600)
        finally:
            print("stopped", flush=True)


class Brief(Single, keep_alive=2, request_timeout=2):
    """Ends soon, as a worker and as a connection."""
