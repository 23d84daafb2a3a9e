"""Apps whose runners fall ill when they are told to, and say so when they are asked."""

import os
import threading
from typing import Any

import fal
from fastapi import HTTPException
from pydantic import BaseModel


class Order(BaseModel):
    fall_ill: bool = False
    fail: bool = False
    wait_for_another: bool = False


class Ailing(fal.App, keep_alive=300, max_concurrency=1):
    machine_type = "XS"
    ill = False

    @fal.endpoint("/")
    async def run(self, order: Order) -> dict[str, Any]:
        self.ill = self.ill or order.fall_ill
        if order.fail:
            raise HTTPException(500, "on purpose")
        return {"pid": os.getpid()}

    @fal.endpoint("/check", health_check=fal.HealthCheck(timeout_seconds=1, failure_threshold=2))
    async def check(self) -> dict[str, Any]:
        if self.ill:
            raise HTTPException(500, "the model answers nonsense")
        return {}


class OnDemand(fal.App, keep_alive=300, max_concurrency=1):
    """Asked only when a request has failed for a reason that nobody knows."""

    machine_type = "XS"
    asked = 0
    lock = threading.Lock()

    @fal.endpoint("/")
    def run(self, order: Order) -> dict[str, Any]:
        if order.fail:
            raise HTTPException(500, "on purpose")
        return {"pid": os.getpid(), "asked": self.asked}

    @fal.endpoint("/check", health_check=fal.HealthCheck(call_regularly=False))
    def check(self) -> dict[str, Any]:
        with self.lock:
            self.asked += 1
        return {}
