"""The apps under chaos. Each execution signs the journal, a file outside Redis, before it does anything else."""

import asyncio
import os
import time
import uuid

import fal
from fastapi import HTTPException
from pydantic import BaseModel


class Order(BaseModel):
    """One request: ``number`` is its caller's, ``fate`` what shall become of it."""

    number: int
    journal: str
    seconds: float = 0.0
    fate: str = "answer"


def sign(order: Order) -> tuple[str, int]:
    """A token of this execution, and how many there were before it; one write of one line, which no other splits."""
    token = uuid.uuid4().hex
    descriptor = os.open(order.journal, os.O_RDWR | os.O_APPEND | os.O_CREAT)
    try:
        with os.fdopen(os.dup(descriptor), "rb") as journal:
            before = sum(line.startswith(b"%d " % order.number) for line in journal)
        os.write(descriptor, f"{order.number} {token} {time.time():.3f}\n".encode())
    finally:
        os.close(descriptor)
    return token, before


def end(order: Order, token: str, before: int) -> dict[str, object]:
    """What the caller gets, or the mishap that was ordered."""
    if order.fate == "die":
        os._exit(66)
    if order.fate == "busy" and before == 0:
        raise HTTPException(503, "not now", {"x-fal-stop-runner": "false"})
    if order.fate == "refuse":
        raise HTTPException(422, token)
    if order.fate == "raise":
        raise RuntimeError(token)
    return {"number": order.number, "token": token}


class Alone(fal.App, keep_alive=120, max_concurrency=2):
    """One request at a time, on a thread that nobody can interrupt."""

    machine_type = "XS"

    @fal.endpoint("/")
    def run(self, order: Order) -> dict[str, object]:
        token, before = sign(order)
        time.sleep(order.seconds)
        return end(order, token, before)


class Shared(fal.App, keep_alive=120, max_concurrency=2, max_multiplexing=4):
    """Four at a time, so that a crash takes innocent ones along."""

    machine_type = "XS"

    @fal.endpoint("/")
    async def run(self, order: Order) -> dict[str, object]:
        token, before = sign(order)
        await asyncio.sleep(order.seconds)
        return end(order, token, before)
