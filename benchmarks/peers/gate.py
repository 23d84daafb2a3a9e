"""An app whose answers wait for a file to appear, as callers wait for a model that is busy."""

import asyncio
from pathlib import Path

import fal
from pydantic import BaseModel


class Message(BaseModel):
    until: str


class Gate(fal.App, keep_alive=600, min_concurrency=1, max_concurrency=1, max_multiplexing=32):
    machine_type = "S"

    @fal.endpoint("/")
    async def run(self, request: Message) -> Message:
        while not Path(request.until).exists():
            await asyncio.sleep(0.1)
        return request
