"""The no-op handler as an app of this platform."""

import fal
from pydantic import BaseModel


class Message(BaseModel):
    x: int


class NoOp(fal.App, keep_alive=600, min_concurrency=1, max_concurrency=1):
    machine_type = "S"

    @fal.endpoint("/")
    async def run(self, request: Message) -> Message:
        return request


class NoOpManyAtOnce(NoOp, max_multiplexing=32):
    """The same, with many requests inside one worker at once."""

    app_name = "no-op-many-at-once"


class NoOpPlain(fal.App, keep_alive=600, min_concurrency=1, max_concurrency=1):
    """The same without ``async``, as most model code is written."""

    machine_type = "S"

    @fal.endpoint("/")
    def run(self, request: Message) -> Message:
        return request
