"""Functions that start web servers of their own."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator

import fal
from fastapi import FastAPI, Request, WebSocket
from starlette.responses import StreamingResponse

REQUIREMENTS = ["uvicorn", "websockets"]


def weights() -> str:
    return "weights"


@fal.function(exposed_port=8123, requirements=REQUIREMENTS, setup_function=weights, max_multiplexing=4, keep_alive=60)
def shop(loaded: str) -> None:
    import uvicorn

    app = FastAPI()

    @app.get("/items/{number}")
    async def item(number: int, q: str = "") -> dict[str, object]:
        print(f"item {number}", flush=True)
        return {"number": number, "q": q, "loaded": loaded, "pid": os.getpid()}

    @app.post("/length")
    async def length(request: Request) -> dict[str, int]:
        return {"length": len(await request.body())}

    @app.post("/ticks/stream")
    async def ticks() -> StreamingResponse:
        async def events() -> AsyncIterator[str]:
            for number in range(3):
                yield f"data: {number}\n\n"
                await asyncio.sleep(0.05)

        return StreamingResponse(events(), media_type="text/event-stream")

    @app.websocket("/echo")
    async def echo(socket: WebSocket) -> None:
        await socket.accept()
        while (text := await socket.receive_text()) != "bye":
            await socket.send_text(text.upper())
        await socket.close(4000, "as you say")

    uvicorn.run(app, host="0.0.0.0", port=8123, log_level="warning")


@fal.function(exposed_port=8124, startup_timeout=2)
def deaf() -> None:
    time.sleep(600)


@fal.function(serve=True, setup_function=weights)
def served(loaded: str, number: int) -> dict[str, object]:
    return {"loaded": loaded, "number": number}
