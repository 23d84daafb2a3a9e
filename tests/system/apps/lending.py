"""Apps that want the same card, and remember what they have loaded."""

import os
import signal
from typing import Any

import fal

SETUPS: list[int] = []


def load() -> None:
    SETUPS.append(0)
    if "DIE_ON_RESUME" in os.environ:
        signal.signal(signal.SIGCONT, lambda *_: os._exit(7))


def facts() -> dict[str, Any]:
    SETUPS[0] += 1
    card = os.environ.get("CUDA_VISIBLE_DEVICES")
    return {"pid": os.getpid(), "setups": len(SETUPS), "calls": SETUPS[0], "card": card}


class First(fal.App, keep_alive=1, max_concurrency=1):
    machine_type = "GPU-A100"

    def setup(self) -> None:
        load()

    @fal.endpoint("/")
    def run(self) -> dict[str, Any]:
        return facts()


class Second(fal.App, keep_alive=1, max_concurrency=1):
    machine_type = "GPU-A100"

    def setup(self) -> None:
        load()

    @fal.endpoint("/")
    def run(self) -> dict[str, Any]:
        return facts()
