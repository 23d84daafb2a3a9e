"""The app that the official clients call: no requirements, so its environment is built once and quickly."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator

import fal
from fal.exceptions import AppException
from fal.toolkit import File
from fastapi import HTTPException, WebSocket
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field


class Input(BaseModel):
    text: str = ""
    seconds: float = Field(default=0.0, le=60)
    lines: int = 0


class Failure(BaseModel):
    status: int
    tag: str


class Upload(BaseModel):
    file: File


class Called(fal.App, keep_alive=120, max_concurrency=1, max_multiplexing=8):
    """Echoes, fails as it is told and counts how often."""

    machine_type = "XS"

    def setup(self) -> None:
        self.tries: dict[str, int] = {}

    @fal.endpoint("/")
    def run(self, request: Input) -> dict[str, object]:
        for number in range(request.lines):
            print(f"line {number} of {request.text}")
        time.sleep(request.seconds)
        return {"text": request.text}

    @fal.endpoint("/fail")
    def fail(self, request: Failure) -> dict[str, object]:
        self.tries[request.tag] = self.tries.get(request.tag, 0) + 1
        raise HTTPException(request.status, f"told to answer {request.status}")

    @fal.endpoint("/tries")
    def count(self, request: Failure) -> dict[str, int]:
        return {"tries": self.tries.get(request.tag, 0)}

    @fal.endpoint("/stream")
    async def stream(self, request: Input) -> StreamingResponse:
        async def events() -> AsyncIterator[str]:
            for word in request.text.split():
                yield f"data: {json.dumps({'word': word})}\n\n"
                await asyncio.sleep(0.01)

        return StreamingResponse(events(), media_type="text/event-stream")

    @fal.endpoint("/write")
    def write(self, request: Input) -> Upload:
        """Answers with a file."""
        return Upload(file=File.from_bytes(request.text.encode(), content_type="text/plain", file_name="made.txt"))

    @fal.endpoint("/measure")
    def measure(self, request: Upload) -> dict[str, object]:
        """Fetches what the caller uploaded."""
        return {"size": len(request.file.as_bytes()), "content_type": request.file.content_type}


class Live(fal.App, keep_alive=120, max_concurrency=1, max_multiplexing=8):
    """Realtime and raw websockets."""

    machine_type = "XS"

    @fal.realtime("/realtime", session_timeout=60)
    async def realtime(self, request: Input) -> dict[str, object]:
        if request.text == "fail":
            raise AppException("told to fail", 400)
        return {"text": request.text, "data": request.text.encode()}

    @fal.realtime("/brief", session_timeout=0.3, buffering=1)
    def brief(self, request: Input) -> dict[str, object]:
        return {"text": request.text}

    @fal.realtime("/count")
    def count(self, request: Input) -> Iterator[dict[str, object]]:
        for number in range(request.lines):
            yield {"number": number}

    @fal.realtime("/talk")
    async def talk(self, requests: AsyncIterator[Input]) -> AsyncIterator[dict[str, object]]:
        async for request in requests:
            for word in request.text.split():
                yield {"word": word}

    @fal.endpoint("/raw", is_websocket=True)
    async def raw(self, socket: WebSocket) -> None:
        await socket.accept()
        async for text in socket.iter_text():
            await socket.send_text(text.upper())
            if text == "end":
                await socket.close(4001, "as told")
                return


class Fragile(fal.App, keep_alive=120, max_concurrency=1):
    """Its runner ends with its first failure."""

    machine_type = "XS"

    @fal.endpoint("/fail")
    def fail(self, request: Failure) -> dict[str, object]:
        print(f"failing {request.tag}")
        raise HTTPException(request.status, f"told to answer {request.status}")


class Single(fal.App, keep_alive=120, max_concurrency=1):
    """One request at a time, so that others wait."""

    machine_type = "XS"

    @fal.endpoint("/")
    async def run(self, request: Input) -> dict[str, object]:
        await asyncio.sleep(request.seconds)
        return {"text": request.text}


class Calling(fal.App, keep_alive=120):
    """Calls another app as code written for fal's cloud does: with the official client, told nothing."""

    machine_type = "XS"
    requirements = ["fal-client==1.0.3"]

    @fal.endpoint("/")
    def call(self, request: Input) -> dict[str, object]:
        import fal_client

        return {"heard": fal_client.subscribe("tester/called", {"text": request.text})}

    @fal.endpoint("/upload")
    def upload(self, request: Input) -> dict[str, str]:
        import fal_client

        return {"url": fal_client.upload(request.text.encode(), "text/plain", "inside.txt")}
