"""Functions that the tests call from their own process."""

from __future__ import annotations

import enum
import os
import sys
import time

import fal
from pydantic import BaseModel


class Tone(enum.Enum):
    LOW = "low"
    HIGH = "high"


class Note(BaseModel):
    tone: Tone
    lengths: dict[tuple[int, int], float] = {}


class OutOfTune(ValueError):
    def __init__(self, note: Note, *, by: float) -> None:
        super().__init__(f"{note.tone.value} is out of tune by {by}")
        self.note = note
        self.by = by


def tuning_fork() -> dict[str, int]:
    print("struck the fork")
    return {"pid": os.getpid(), "calls": 0}


@fal.function(keep_alive=30)
def play(note: Note, *, times: int = 1, off_by: float = 0) -> list[Note]:
    print(f"playing {note.tone.value}", flush=True)
    if off_by:
        raise OutOfTune(note, by=off_by)
    return [note] * times


@fal.function(keep_alive=30)
def where() -> tuple[str, int, str]:
    return sys.prefix, os.getpid(), os.environ["FAL_MACHINE_TYPE"]


@fal.function(setup_function=tuning_fork, keep_alive=30)
def compare(fork: dict[str, int], count: int) -> dict[str, int]:
    fork["calls"] += count
    return dict(fork)


@fal.function(keep_alive=30, max_multiplexing=8)
def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return time.time()


@fal.function(keep_alive=30)
def large(size: int) -> bytes:
    return bytes(size)


@fal.function(keep_alive=30)
def length(data: bytes) -> int:
    return len(data)


@fal.function(keep_alive=30)
def crash() -> None:
    os._exit(7)


def broken_fork() -> None:
    raise RuntimeError("the fork is bent")


@fal.function(setup_function=broken_fork)
def never(fork: None) -> None: ...
