"""The app that the official clients call: no requirements, so its environment is built once and quickly."""

import asyncio
import json
import time
from collections.abc import AsyncIterator

import fal
from fal.toolkit import File
from fastapi import HTTPException
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
