"""A call of a plain route must not be told from the same call through all of FastAPI, except by its speed."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import fal
import fastapi
import fastapi.routing
import pytest
from fal._plain_routes import plain_routes
from fal._routes import build_fastapi
from fal._runner.output import Output
from fal._runner.protocol import Headers, Message, Request, Response
from fal._runner.serving import Serving
from fastapi import Body, Depends, Query
from fastapi.responses import PlainTextResponse, StreamingResponse
from pydantic import BaseModel, Field, field_validator
from starlette.background import BackgroundTask

from tests.runner.harness import start


class Input(BaseModel):
    x: int
    text: str = Field("é", alias="the-text")

    @field_validator("x")
    @classmethod
    def never_seven(cls, value: int) -> int:
        if value == 7:
            raise ValueError("seven is refused")
        return value


class Result(BaseModel):
    y: float
    note: str | None = Field(None, serialization_alias="aNote")


class Plain(fal.App):
    later: list[str]

    def setup(self) -> None:
        self.later = []

    @fal.endpoint("/")
    async def run(self, given: Input) -> Result:
        match given.x:
            case 1:
                raise fastapi.HTTPException(418, "teapot", {"x-tea": "green"})
            case 2:
                raise fal.exceptions.FieldException("x", "no twos")
            case 3:
                raise RuntimeError("CUDA error: out of memory")
            case 4:
                raise KeyError("a fault of the app")
            case 5:
                return PlainTextResponse("five", 201, {"x-five": "5"}, background=BackgroundTask(print, "later"))  # type: ignore[return-value]
            case 6:
                return StreamingResponse(iter(["a", "b"]))  # type: ignore[return-value]
            case 8:
                return {"y": "no number"}  # type: ignore[return-value]
            case 9:
                return Result(y=float("inf"), note=None)
            case 10:
                return Result.model_construct(y="a string")
            case _:
                return Result(y=given.x / 2, note=given.text)

    @fal.endpoint("/sync")
    def sync(self, given: Input) -> Result:
        if given.x == 1:
            raise fastapi.HTTPException(409)
        time.sleep(0.001)
        return Result(y=1, note=None)

    @fal.endpoint("/untyped")
    async def untyped(self, given: dict[str, Any]):  # type: ignore[no-untyped-def]
        return given or None

    @fal.endpoint("/listed")
    async def listed(self, given: list[Input] | None = None) -> list[Input]:
        return given or []

    @fal.endpoint("/embedded")
    async def embedded(self, a: int = Body(), b: int = Body(2)) -> int:
        return a + b

    @fal.endpoint("/query")
    async def query(self, given: Input, q: str = Query("none")) -> str:
        return q

    @fal.endpoint("/request")
    async def request(self, given: Input, request: fastapi.Request) -> str:
        return request.url.path

    @fal.endpoint("/depends")
    async def depends(self, given: Input, other: int = Depends(lambda: 3)) -> int:
        return given.x + other


class Recorder:
    """The channel of a runner that keeps what it is given."""

    def __init__(self) -> None:
        self.sent: list[Message] = []

    def send(self, message: Message) -> None:
        self.sent.append(message)


async def call(app: Any, routes: Any, path: str, body: bytes, headers: Headers) -> tuple[list[Message], list[str]]:
    channel, lines = Recorder(), list[str]()
    output = Output(lambda level, line, at, request_id: lines.append(f"{level} {line}"), lambda: False)
    paths = frozenset(("/",))
    serving = Serving(app, channel, output, lambda: [(b"x-more", b"1")], paths, lambda url: None, routes)  # type: ignore[arg-type]
    serving.receive(Request("r", 1, "POST", path, b"q=asked", headers, body, "http://host"))
    await serving.wait_until_idle()
    return channel.sent, lines


def make(cls: type[fal.App] = Plain) -> Any:
    instance = cls(_allow_init=True)
    instance.setup()
    return build_fastapi(instance)


def test_which_routes_are_plain() -> None:
    assert set(plain_routes(make())) == {"/", "/sync", "/untyped", "/listed"}


JSON: Headers = [(b"content-type", b"application/json")]
BODIES = [b'{"x": %d}' % n for n in range(12)] + [
    b"", b"{", b"null", b"[]", b"{}", b'{"x": "3"}', b'{"x": "three"}', b'{"x": 0, "the-text": "\\u00fc"}', b"\xff",
    b'[{"x": 0}]', b'{"x": NaN}', b'{"a": 1}',
]  # fmt: skip
HEADERS: list[Headers] = [
    JSON,
    [],
    [(b"content-type", b"application/json; charset=utf-8")],
    [(b"content-type", b"text/plain")],
    [(b"content-type", b"application/jsonl")],
]


def without_frames(lines: list[str]) -> list[str]:
    return [line for line in lines if not line.startswith("ERROR   ")]


@pytest.mark.parametrize("path", ["/", "/sync", "/untyped", "/listed", "/embedded", "/query", "/request", "/depends"])
def test_both_ways_answer_alike(path: str) -> None:
    async def compare() -> None:
        app = make()
        routes = plain_routes(app)
        for headers in HEADERS:
            for body in BODIES:
                short, short_lines = await call(app, routes, path, body, list(headers))
                long, long_lines = await call(app, {}, path, body, list(headers))
                assert short == long, (body, headers)
                assert without_frames(short_lines) == without_frames(long_lines)

    asyncio.run(compare())


def test_a_user_middleware_sees_every_call() -> None:
    class Wrapped(Plain):
        def _add_extra_middlewares(self, app: fastapi.FastAPI) -> None:
            @app.middleware("http")
            async def mark(request: fastapi.Request, call_next: Any) -> Any:
                answer = await call_next(request)
                answer.headers["x-seen"] = "yes"
                return answer

    assert plain_routes(make(Wrapped)) == {}


def test_a_tool_that_replaces_a_part_of_fastapi_sees_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Error reporters put themselves into FastAPI's functions; a way around them would silence them."""
    original = fastapi.routing.get_request_handler
    monkeypatch.setattr(fastapi.routing, "get_request_handler", lambda *args, **kwargs: original(*args, **kwargs))
    assert plain_routes(make()) == {}


def test_a_route_of_the_user_that_comes_first_wins() -> None:
    class Shadowed(Plain):
        def _add_extra_middlewares(self, app: fastapi.FastAPI) -> None:
            @app.post("/{anything}")
            async def first(anything: str) -> str:
                return anything

    assert set(plain_routes(make(Shadowed))) == {"/"}


def test_the_error_handlers_of_the_user_answer() -> None:
    class Handled(Plain):
        def _add_extra_routes(self, app: fastapi.FastAPI) -> None:
            @app.exception_handler(KeyError)
            async def key_error(request: fastapi.Request, error: Exception) -> Any:
                body = (await request.body()).decode()
                return PlainTextResponse(f"{request.url.path} {body} {request.scope['route'].path} {error}", 410)

    async def ask() -> list[Message]:
        app = make(Handled)
        routes = plain_routes(app)
        assert "/" in routes
        return (await call(app, routes, "/", b'{"x": 4}', JSON))[0]

    (answer,) = asyncio.run(ask())
    assert isinstance(answer, Response)
    assert (answer.status, answer.body) == (410, b"/ {\"x\": 4} / 'a fault of the app'")


def test_one_request_at_a_time_sees_one_thread(tmp_path: Path) -> None:
    """Libraries keep state per thread. Once an answer left before its thread was free again, so that the next request,
    which the answer had called for, found none and got a thread of its own."""
    source = """
import threading

import fal
from pydantic import BaseModel

class Input(BaseModel):
    x: int

class Demo(fal.App):
    def setup(self):
        def busy():
            while True:
                pass
        threading.Thread(target=busy, daemon=True).start()

    @fal.endpoint("/")
    def where(self, given: Input) -> int:
        return threading.get_ident()
"""
    with start(tmp_path, source) as runner:
        runner.ready()
        answers = {runner.call(b'{"x": 1}', id=f"r{number}").body for number in range(100)}
    assert len(answers) == 1
