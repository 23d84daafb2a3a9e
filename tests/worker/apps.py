"""Source text of the apps that worker tests deploy."""

from __future__ import annotations

#: One endpoint per habit of user code that a worker must cope with.
PROBE = """
import asyncio, os, signal, sys, time

import fal
from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse


class Probe(fal.App):
    def setup(self):
        print("setup runs")
        self.setups = getattr(self, "setups", 0) + 1
        self.calls = 0
        self.at_once = self.most_at_once = 0

    def teardown(self):
        print("teardown runs")

    def handle_exit(self):
        print("asked to leave")

    @fal.endpoint("/")
    def count(self) -> dict:
        self.calls += 1
        print("call", self.calls)
        return {"calls": self.calls, "setups": self.setups, "pid": os.getpid()}

    @fal.endpoint("/echo")
    async def echo(self, request: Request) -> Response:
        return Response(await request.body(), headers={"x-seen": request.headers["content-type"]})

    @fal.endpoint("/environment")
    def environment(self) -> dict:
        return {"environ": dict(os.environ), "cwd": os.getcwd(), "fds": len(os.listdir("/proc/self/fd"))}

    @fal.endpoint("/item/{name}")
    def item(self, name: str) -> dict:
        return {"name": name}

    @fal.endpoint("/slow")
    async def slow(self, request: Request) -> dict:
        seconds = (await request.json())["seconds"]
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(seconds)
        self.at_once -= 1
        return {"most_at_once": self.most_at_once}

    @fal.endpoint("/gated-503")
    async def gated_503(self, request: Request) -> Response:
        gate = (await request.json())["gate"]
        while not os.path.exists(gate):
            await asyncio.sleep(0.01)
        open(gate + "-passed", "w").close()
        return Response(status_code=503)

    @fal.endpoint("/block")
    def block(self) -> dict:
        print("blocking")
        time.sleep(60)

    @fal.endpoint("/nap")
    def nap(self) -> dict:
        print("napping")
        time.sleep(3)
        return {}

    @fal.endpoint("/die-once")
    async def die_once(self, request: Request) -> dict:
        flag = (await request.json())["flag"]
        if os.path.exists(flag):
            return {"survived": True}
        open(flag, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)

    @fal.endpoint("/die")
    def die(self) -> dict:
        os._exit(66)

    @fal.endpoint("/stop")
    def stop(self) -> dict:
        os.kill(os.getpid(), signal.SIGSTOP)

    @fal.endpoint("/answer")
    async def answer(self, request: Request) -> Response:
        wanted = await request.json()
        return JSONResponse({"answered": wanted["status"]}, wanted["status"], headers=wanted.get("headers"))

    @fal.endpoint("/stream")
    async def stream(self, request: Request) -> StreamingResponse:
        wanted = await request.json()

        async def pieces():
            for number in range(wanted["pieces"]):
                self.sent = number + 1
                yield b"%06d" % number + b"x" * wanted.get("size", 0)
                await asyncio.sleep(wanted.get("pause", 0))
            if wanted.get("fail"):
                raise RuntimeError("half way")

        return StreamingResponse(pieces(), media_type="text/event-stream")

    @fal.endpoint("/sent")
    def how_many_sent(self) -> dict:
        return {"sent": self.sent}

    @fal.endpoint("/picture")
    def picture(self) -> dict:
        from fal.toolkit import File
        return {"url": File.from_bytes(b"a picture", "image/png", "cat.png").url}

    @fal.endpoint("/orphan")
    def orphan(self) -> dict:
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(300)
            os._exit(0)
        os.wait()
        return {}
"""

FAILS_IN_SETUP = """
import fal


class Probe(fal.App):
    def setup(self):
        print("about to fail")
        raise RuntimeError("the weights are not there")

    @fal.endpoint("/")
    def run(self) -> dict:
        return {}
"""

FAILS_IN_IMPORT = "import fal\nimport a_module_that_is_not_there\n"

DIES_IN_SETUP = """
import os, fal


class Probe(fal.App):
    def setup(self):
        os.write(2, b"free(): invalid pointer\\n")
        os.abort()

    @fal.endpoint("/")
    def run(self) -> dict:
        return {}
"""

HANGS_IN_SETUP = """
import time, fal


class Probe(fal.App):
    def setup(self):
        print("loading for ever")
        time.sleep(300)

    @fal.endpoint("/")
    def run(self) -> dict:
        return {}
"""
