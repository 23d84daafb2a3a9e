"""The no-op handler on LitServe with its defaults: one worker process behind one HTTP process, as ours has here."""

from __future__ import annotations

import sys

import litserve
from pydantic import BaseModel


class Message(BaseModel):
    x: int


class NoOp(litserve.LitAPI):
    def setup(self, device: str) -> None:
        pass

    def predict(self, request: Message) -> Message:
        return request


if __name__ == "__main__":
    server = litserve.LitServer(
        NoOp(api_path="/"), accelerator="cpu", workers_per_device=1, fast_queue="--fast-queue" in sys.argv
    )
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
