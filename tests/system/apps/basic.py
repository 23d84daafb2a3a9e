"""Apps that the whole-platform tests deploy: no requirements, so their environment is built once and quickly."""

import asyncio
import os
import time
import uuid

import fal
from pydantic import BaseModel


class Input(BaseModel):
    seconds: float = 0.0
    text: str = ""


class Counting(fal.App, keep_alive=60, max_concurrency=1):
    """Shows what lives in memory: setup() ran once, and the counter goes up."""

    machine_type = "XS"

    def setup(self) -> None:
        self.setups = getattr(self, "setups", 0) + 1
        self.born = uuid.uuid4().hex
        self.calls = 0

    @fal.endpoint("/")
    def run(self, request: Input) -> dict[str, object]:
        self.calls += 1
        print(f"call {self.calls}: {request.text}")
        time.sleep(request.seconds)
        return {"setups": self.setups, "born": self.born, "calls": self.calls, "text": request.text}

    @fal.endpoint("/boom")
    def boom(self, request: Input) -> dict[str, object]:
        raise RuntimeError("the app's own mistake")

    @fal.endpoint("/die")
    def die(self, request: Input) -> dict[str, object]:
        os._exit(7)


class Wide(fal.App, keep_alive=60, max_concurrency=2):
    """Answers slowly and tells which process did it."""

    machine_type = "XS"

    @fal.endpoint("/")
    def run(self, request: Input) -> dict[str, object]:
        time.sleep(request.seconds)
        return {"pid": os.getpid()}


class Sleepy(fal.App, keep_alive=1, max_concurrency=1):
    """Goes away a second after its last request."""

    machine_type = "XS"

    @fal.endpoint("/")
    def run(self, request: Input) -> dict[str, object]:
        return {"pid": os.getpid()}


class Warm(fal.App, keep_alive=1, min_concurrency=1, max_concurrency=1):
    """Stays, though nobody calls."""

    machine_type = "XS"

    @fal.endpoint("/")
    def run(self, request: Input) -> dict[str, object]:
        return {"pid": os.getpid()}


class BadSetup(fal.App, keep_alive=60):
    machine_type = "XS"

    def setup(self) -> None:
        print("about to fail")
        raise RuntimeError("no weights at /nowhere")

    @fal.endpoint("/")
    def run(self, request: Input) -> dict[str, object]:
        return {}


class Unsatisfiable(fal.App):
    machine_type = "XS"
    requirements = ["six==99.0"]

    @fal.endpoint("/")
    def run(self, request: Input) -> dict[str, object]:
        return {}


class Async(fal.App, keep_alive=60, max_multiplexing=4):
    machine_type = "XS"

    @fal.endpoint("/")
    async def run(self, request: Input) -> dict[str, object]:
        await asyncio.sleep(request.seconds)
        return {"text": request.text}
