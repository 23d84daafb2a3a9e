"""Endpoints of every kind, and what the platform tells an app: one row of the table after the other."""

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import fal
from fal.exceptions import RequestCancelledException
from fal.ref import get_current_app
from fal.toolkit.utils.endpoint import cancel_on_disconnect
from fastapi import Depends, Header, Request, Response, UploadFile, WebSocket
from fastapi.responses import StreamingResponse
from pydantic import BaseModel


class Input(BaseModel):
    text: str = ""
    tag: str = "none"


class Output(BaseModel):
    text: str


class Item(BaseModel):
    number: int

    def can_batch(self, other: "Item", size: int) -> bool:
        return size < 3


def note(line: str) -> None:
    """Kept where the test sees it, whatever becomes of the runner."""
    with open("/data/life.txt", "a") as file:
        file.write(f"{line} {os.environ['FAL_RUNNER_STATE']}\n")


def depended_on() -> str:
    return "from Depends"


class Endpoints(fal.App, keep_alive=300, max_concurrency=1, max_multiplexing=8):
    machine_type = "XS"
    version = "42"

    async def setup(self) -> None:
        note("setup")
        assert get_current_app() is self
        assert threading.current_thread() is threading.main_thread()
        self.meeting = asyncio.Event()
        self.stopping: dict[str, threading.Event] = {}
        self.left: list[str] = []

    def handle_exit(self) -> None:
        note("handle_exit")
        raise ValueError("not fatal")

    async def teardown(self) -> None:
        note("teardown")

    async def health(self) -> dict[str, Any]:
        return {"fine": True, "version": self.version}

    def provide_hints(self) -> list[str]:
        return ["a-model", "unsendable-\u4e2d"]

    @fal.endpoint("/")
    def run(self, request: Input) -> Output:
        return Output(text=request.text.upper())

    @fal.endpoint("/deep/er/path")
    def deep(self) -> Output:
        return Output(text="deep")

    @fal.endpoint("/fastapi")
    async def fastapi(
        self,
        one: Input,
        two: Item,
        request: Request,
        response: Response,
        x_word: str = Header("none"),
        depended: str = Depends(depended_on),
    ) -> dict[str, Any]:
        response.headers["x-answer"] = "set"
        return {"one": one.text, "two": two.number, "path": request.url.path, "word": x_word, "depended": depended}

    @fal.endpoint("/upload")
    async def upload(self, file: UploadFile) -> dict[str, Any]:
        return {"name": file.filename, "size": len(await file.read())}

    @fal.endpoint("/threads")
    def sync_thread(self) -> bool:
        return threading.current_thread() is threading.main_thread()

    @fal.endpoint("/loop")
    async def loop_thread(self) -> bool:
        return threading.current_thread() is threading.main_thread()

    @fal.endpoint("/context")
    async def context(self, request: Input) -> dict[str, Any]:
        """Two of them wait for each other, so that both are under way at once."""
        if request.text == "second":
            self.meeting.set()
        await self.meeting.wait()
        mine = self.current_request
        assert mine is not None
        return {
            "id": mine.request_id,
            "endpoint": mine.endpoint,
            "preference": mine.lifecycle_preference,
            "header": mine.headers["x-mine"],
            "pid": os.getpid(),
        }

    @fal.endpoint("/seen")
    def seen(self, request: Request) -> dict[str, Any]:
        wanted = ("x-fal-request-id", "x-fal-endpoint", "x-fal-object-lifecycle-preference", "x-own", "authorization")
        return {
            "headers": {name: request.headers.get(name) for name in wanted},
            "environ": {k: v for k, v in os.environ.items() if k.startswith(("FAL_", "HF_", "IS_ISOLATE"))},
        }

    @fal.endpoint("/letters/stream")
    def stream(self, request: Input) -> StreamingResponse:
        def events() -> Iterator[str]:
            for letter in request.text:
                yield f"data: {letter}\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    @fal.endpoint("/long")
    def long(self, request: Input) -> Output:
        """Stops when its ``/long/cancel`` is called for the same request."""
        assert self.current_request is not None
        event = self.stopping.setdefault(str(self.current_request.request_id), threading.Event())
        Path(f"/data/{request.tag}").touch()
        if event.wait(60):
            raise RequestCancelledException("stopped as asked")
        return Output(text="not stopped")

    @fal.endpoint("/long/cancel")
    def stop_long(self) -> dict[str, str]:
        assert self.current_request is not None
        self.stopping.setdefault(str(self.current_request.request_id), threading.Event()).set()
        return {}

    @fal.endpoint("/unstoppable")
    def unstoppable(self, request: Input) -> Output:
        """There is no route to cancel it: it just ends."""
        Path(f"/data/{request.tag}").touch()
        while not Path(f"/data/{request.tag}-go").exists():
            threading.Event().wait(0.02)
        Path(f"/data/{request.tag}-done").touch()
        return Output(text="finished")

    @fal.endpoint("/watching")
    async def watching(self, request: Request, given: Input) -> Output:
        Path(f"/data/{given.tag}").touch()
        async with cancel_on_disconnect(request):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                Path(f"/data/{given.tag}-left").touch()
                raise
        return Output(text="")

    @fal.endpoint("/raw", is_websocket=True)
    async def raw(self, socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text(f"{await socket.receive_text()} {self.current_request is None}")
        await socket.close(4000, "said all")

    @fal.realtime("/unary", buffering=4, session_timeout=60, max_batch_size=3)
    def unary(self, *items: Item) -> dict[str, Any]:
        return {"numbers": [item.number for item in items]}

    @fal.realtime("/server")
    def server(self, item: Item) -> Iterator[dict[str, int]]:
        for number in range(item.number):
            yield {"number": number}

    @fal.realtime("/client")
    async def client(self, items: AsyncIterator[Item]) -> dict[str, int]:
        total = 0
        async for item in items:
            total += item.number
            if total >= 10:
                break
        return {"total": total}

    @fal.realtime("/bidi")
    async def bidi(self, items: AsyncIterator[Item]) -> AsyncIterator[dict[str, int]]:
        async for item in items:
            yield {"doubled": 2 * item.number}

    @fal.endpoint("/end")
    def end(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


class Watched(fal.App, keep_alive=120, max_concurrency=1):
    """Its health check is not at ``/health``, which fails."""

    machine_type = "XS"

    def health(self) -> dict[str, Any]:
        raise RuntimeError("broken on purpose")

    @fal.endpoint("/")
    def run(self) -> Output:
        return Output(text="up")

    @fal.endpoint("/how", health_check=fal.HealthCheck(30, 5, 3, True, "POST"), billing=None)
    def how(self) -> Output:
        return Output(text="well")


class BadSetup(fal.App, keep_alive=60):
    machine_type = "XS"

    def setup(self) -> None:
        raise RuntimeError("no weights at /nowhere")

    @fal.endpoint("/")
    def run(self) -> Output:
        return Output(text="")


def load() -> str:
    return "loaded once"


@fal.function(serve=True, setup_function=load)
def served(model: str, word: str = "") -> dict[str, str]:
    return {"model": model, "word": word, "again": shout(word)}


@fal.cached
def shout(word: str) -> str:
    return f"{word.upper()}{os.urandom(2).hex()}"
