"""Apps with one limit each: what scales them, what ends their requests, how often they are tried."""

import os
import signal
import time
from pathlib import Path

import fal
from pydantic import BaseModel


class Input(BaseModel):
    seconds: float = 0
    tag: str = "none"


class Limited(fal.App, keep_alive=120, max_concurrency=1):
    machine_type = "XS"

    @fal.endpoint("/")
    def run(self, request: Input) -> dict[str, int]:
        with open(f"/data/tries-{request.tag}", "a") as file:
            file.write("x")
        time.sleep(request.seconds)
        return {"pid": os.getpid()}

    @fal.endpoint("/die")
    def die(self, request: Input) -> None:
        with open(f"/data/tries-{request.tag}", "a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGKILL)


class Buffered(Limited, max_concurrency=3, concurrency_buffer=1):
    app_name = "buffered"


class BufferedPerc(Limited, max_concurrency=3, concurrency_buffer_perc=100):
    app_name = "buffered-perc"


class Delayed(Limited, scaling_delay=1.0):
    app_name = "delayed"


class Hurried(Limited, request_timeout=1, request_start_timeout=2, skip_retry_conditions=["timeout"]):
    app_name = "hurried"


class Retried(Limited):
    app_name = "retried"
    retry_config = {"server_error": {"retries": 1}, "timeout": {"retries": -3}}


class Untried(Limited):
    app_name = "untried"
    skip_retry_conditions = ["server_error"]


class Graceless(Limited, termination_grace_period_seconds=1):
    app_name = "graceless"

    def handle_exit(self) -> None:
        Path("/data/graceless-told").touch()


class SlowStart(Limited, startup_timeout=1):
    app_name = "slow-start"

    def setup(self) -> None:
        time.sleep(60)
