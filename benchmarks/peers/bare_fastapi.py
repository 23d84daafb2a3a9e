"""The no-op handler on FastAPI and uvicorn alone: what an HTTP call costs with nothing behind it."""

from __future__ import annotations

import sys

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class Message(BaseModel):
    x: int


app = FastAPI()


@app.post("/")
async def run(request: Message) -> Message:
    return request


@app.post("/plain")
def run_plain(request: Message) -> Message:
    """Without ``async``, as most model code is written: FastAPI runs it in a thread."""
    return request


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
