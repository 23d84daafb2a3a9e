"""An app whose setup takes its time and whose requests wait for a file."""

from __future__ import annotations

import os
import time

import fal
from pydantic import BaseModel


class Input(BaseModel):
    gate: str


class Output(BaseModel):
    pid: int


class Gated(fal.App):
    keep_alive = 30
    max_concurrency = 1

    def setup(self) -> None:
        time.sleep(2)

    @fal.endpoint("/")
    def run(self, input: Input) -> Output:
        while not os.path.exists(input.gate):
            time.sleep(0.01)
        return Output(pid=os.getpid())
