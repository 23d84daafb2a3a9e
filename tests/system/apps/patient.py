"""Apps whose health turns bad: one when a file says so, one always."""

from __future__ import annotations

import os
import time
from pathlib import Path

import fal
from fastapi import HTTPException
from pydantic import BaseModel

#: A test that makes one ill writes another one here.
FOLDER = Path("/nowhere")


class Input(BaseModel):
    status: int = 200


class Patient(fal.App, keep_alive=60, min_concurrency=1, max_concurrency=1, max_multiplexing=4):
    machine_type = "XS"

    def setup(self) -> None:
        while (FOLDER / "hold").exists():
            time.sleep(0.01)

    @fal.endpoint("/")
    def run(self, input: Input) -> dict[str, int]:
        if input.status != 200:
            raise HTTPException(input.status, "as you wish")
        return {"pid": os.getpid(), "version": 1}

    @fal.endpoint("/check", health_check=fal.HealthCheck(timeout_seconds=30))
    def check(self) -> None:
        ill = FOLDER / "ill"
        if ill.exists() and int(ill.read_text()) == os.getpid():
            raise HTTPException(500, "the tiles are out")

    def health(self) -> None:
        raise RuntimeError("not what was marked")


class OnDemand(fal.App, keep_alive=60, min_concurrency=1, max_concurrency=1):
    machine_type = "XS"

    def setup(self) -> None:
        self.checks: list[str] = []

    @fal.endpoint("/")
    def run(self, input: Input) -> dict[str, list[str]]:
        if input.status != 200:
            raise HTTPException(input.status, "as you wish")
        return {"checks": self.checks}

    @fal.endpoint("/check", health_check=fal.HealthCheck(call_regularly=False, timeout_seconds=30))
    def check(self) -> None:
        assert self.current_request is not None
        self.checks.append(self.current_request.headers["x-fal-runner-health-check"])


class Frail(fal.App, keep_alive=60, min_concurrency=1, max_concurrency=1):
    """Well once, and ill ever after, however often it is started."""

    machine_type = "XS"

    def setup(self) -> None:
        self.asked = 0

    @fal.endpoint("/")
    def run(self) -> None: ...

    @fal.endpoint("/check", health_check=fal.HealthCheck(failure_threshold=1, timeout_seconds=30))
    def check(self) -> None:
        self.asked += 1
        if self.asked > 1:
            raise HTTPException(500, "worn through")
