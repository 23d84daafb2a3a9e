"""Realtime endpoints in their four shapes, and raw websockets at the runner: frames, windows, errors and ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import fal
import msgpack
import pytest
from fal._endpoints import RealtimeOptions
from fal._realtime_shape import shape_of
from fal._runner.protocol import (
    MAX_MESSAGE_BYTES,
    WINDOW_MESSAGES,
    Credit,
    Message,
    Request,
    Response,
    SocketAccept,
    SocketClose,
    SocketMessage,
    SocketTaken,
    Window,
)
from fal._spec import WEBSOCKET

from tests.runner.harness import BASE_URL, Runner, start
from tests.support.waiting import wait_until

SOURCE = """
import asyncio
import datetime
import json
from collections.abc import AsyncIterator, Iterator

import fal
from fal.exceptions import AppException
from fastapi import WebSocket
from pydantic import BaseModel


class Input(BaseModel):
    text: str
    times: int = 1

    def can_batch(self, other, number):
        return other.times == self.times


class Output(BaseModel):
    text: str
    data: bytes = b""


class Demo(fal.App):
    def setup(self):
        self.gate = asyncio.Event()
        self.batches = []
        self.sent = 0

    @fal.realtime("/unary")
    def unary(self, request: Input) -> Output:
        return Output(text=request.text * request.times, data=b"\\x00\\xff")

    @fal.realtime("/typed", input_modal=Input, output_modal=Output, content_type="application/json")
    async def typed(self, request):
        return {"text": request.text, "at": datetime.date(2026, 1, 2)}

    @fal.realtime("/own", encode_message=lambda value: json.dumps(value)[::-1].encode(),
                  decode_message=lambda data: json.loads(data[::-1]))
    async def own(self, request: dict) -> dict:
        return {"got": request}

    @fal.realtime("/server")
    def server(self, request: Input) -> Iterator[dict]:
        for number in range(request.times):
            yield {"number": number, "text": request.text}

    @fal.realtime("/later")
    async def later(self, request: Input) -> AsyncIterator[Output]:
        for number in range(request.times):
            yield Output(text=str(number))

    @fal.realtime("/client")
    async def client(self, requests: AsyncIterator[Input]) -> dict:
        texts = []
        async for request in requests:
            texts.append(request.text)
            if request.text == "last":
                break
        return {"texts": texts}

    @fal.realtime("/bidi", session_timeout=30)
    async def bidi(self, requests: AsyncIterator[Input]) -> AsyncIterator[dict]:
        async for request in requests:
            for _ in range(request.times):
                yield {"text": request.text}

    @fal.realtime("/gated", buffering=2)
    async def gated(self, request: Input) -> dict:
        await self.gate.wait()
        return {"text": request.text}

    @fal.realtime("/batched", max_batch_size=3)
    async def batched(self, *requests: Input) -> dict:
        await self.gate.wait()
        return {"texts": [request.text for request in requests]}

    @fal.endpoint("/open")
    async def open_gate(self):
        self.gate.set()

    @fal.endpoint("/shut")
    async def shut_gate(self):
        self.gate.clear()

    @fal.realtime("/brief", session_timeout=0.2)
    async def brief(self, request: Input) -> dict:
        await asyncio.sleep(0.4)
        return {}

    @fal.realtime("/fails")
    async def fails(self, request: Input) -> dict:
        if request.text == "list":
            return ["not a dict"]
        if request.text == "app":
            raise AppException("too dark", 400)
        raise RuntimeError("a secret")

    @fal.endpoint("/large", is_websocket=True)
    async def large(self, socket: WebSocket):
        await socket.accept()
        await socket.send_bytes(b"x" * (16 * 1024 * 1024 + 1))

    @fal.endpoint("/pour", is_websocket=True)
    async def pour(self, socket: WebSocket):
        await socket.accept()
        for number in range(200):
            await socket.send_bytes(b"%d" % number)
"""


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    with start(tmp_path_factory.mktemp("realtime"), SOURCE) as running:
        running.ready()
        yield running


class Caller:
    """A caller's side of one connection, with the supervisor's part of it."""

    def __init__(self, runner: Runner, path: str, query: bytes = b"") -> None:
        self.runner = runner
        self.id = f"c{len(runner.heard)}"
        runner.send(Request(self.id, 1, WEBSOCKET, path, query, [], b"", BASE_URL))

    def opened(self) -> Caller:
        self.expect(SocketAccept)
        return self

    def expect(self, kind: type[Any]) -> Any:
        """The next message of this connection but SocketTaken, which must be of ``kind``."""
        while True:
            message: Message = self.runner.hear()
            if getattr(message, "id", None) == self.id and not isinstance(message, SocketTaken):
                assert isinstance(message, kind), message
                return message

    def send(self, value: Any) -> None:
        self.raw(msgpack.packb(value))

    def raw(self, data: str | bytes) -> None:
        self.runner.send(SocketMessage(self.id, 1, data))

    def recv(self) -> Any:
        data = self.expect(SocketMessage).data
        self.runner.send(Credit(self.id, 1))
        return json.loads(data) if isinstance(data, str) else msgpack.unpackb(data)

    def leave(self, code: int = 1000) -> None:
        self.runner.send(SocketClose(self.id, 1, code, ""))

    def end(self) -> tuple[int, str, int]:
        """Code and reason of the close, and the status that goes into the record."""
        close = self.expect(SocketClose)
        return close.code, close.reason, self.expect(Response).status


def test_unary_answers_each_input_and_goes_on_after_a_wrong_one(runner: Runner) -> None:
    caller = Caller(runner, "/unary").opened()
    caller.send({"text": "ab", "times": 2})
    assert caller.recv() == {"text": "abab", "data": b"\x00\xff"}
    caller.send({"times": 2})
    error = caller.recv()
    assert (error["type"], error["error"], error["reason"]) == ("x-fal-error", "INVALID_INPUT", "text: Field required")
    assert error["detail"][0]["loc"] == ["text"]
    caller.raw(b"\xc1")
    assert caller.recv()["error"] == "INVALID_INPUT"
    caller.raw('{"text": "json works too"}')
    assert caller.recv()["text"] == "json works too"
    caller.leave()
    assert caller.end() == (1000, "", 101)


def test_models_content_type_and_encoders_of_the_apps_choice(runner: Runner) -> None:
    caller = Caller(runner, "/typed").opened()
    caller.raw(b'{"text": "bytes"}')
    assert json.loads(caller.expect(SocketMessage).data) == {"text": "bytes", "at": "2026-01-02"}
    caller.leave()
    caller.end()
    caller = Caller(runner, "/own").opened()
    caller.raw(b'{"a": 1}'[::-1])
    assert json.loads(caller.expect(SocketMessage).data[::-1]) == {"got": {"a": 1}}
    caller.leave()
    caller.end()


@pytest.mark.parametrize(
    ("path", "first"), [("/server", {"number": 0, "text": "x"}), ("/later", {"text": "0", "data": b""})]
)
def test_server_streaming_ends_the_session_after_its_outputs(runner: Runner, path: str, first: dict[str, Any]) -> None:
    caller = Caller(runner, path).opened()
    caller.send({"text": "x", "times": 3})
    outputs = [caller.recv() for _ in range(3)]
    assert outputs[0] == first
    assert caller.end() == (1000, "", 101)


def test_client_streaming_gives_one_output(runner: Runner) -> None:
    caller = Caller(runner, "/client").opened()
    for text in ("a", "b", "last"):
        caller.send({"text": text})
    assert caller.recv() == {"texts": ["a", "b", "last"]}
    assert caller.end() == (1000, "", 101)


def test_bidi_goes_both_ways_until_the_caller_leaves(runner: Runner) -> None:
    caller = Caller(runner, "/bidi").opened()
    caller.send({"text": "a", "times": 2})
    assert [caller.recv(), caller.recv()] == [{"text": "a"}] * 2
    caller.send({"text": "b"})
    assert caller.recv() == {"text": "b"}
    caller.leave(1001)
    assert caller.end() == (1000, "", 101)


def test_of_a_full_buffer_the_oldest_input_is_dropped(runner: Runner) -> None:
    shut_gate(runner)
    caller = Caller(runner, "/gated").opened()
    caller.send({"text": "0"})
    taken(runner, caller, 1)
    for number in range(1, 6):
        caller.send({"text": str(number)})
    taken(runner, caller, 5)
    open_gate(runner)
    assert [caller.recv()["text"] for _ in range(3)] == ["0", "4", "5"]
    caller.leave()
    caller.end()


def test_a_caller_may_ask_for_a_smaller_buffer(runner: Runner) -> None:
    shut_gate(runner)
    caller = Caller(runner, "/gated", b"max_buffering=1").opened()
    for number in range(4):
        caller.send({"text": str(number)})
    taken(runner, caller, 4)
    open_gate(runner)
    assert caller.recv()["text"] in ("0", "3")
    caller.leave()


def test_waiting_inputs_that_fit_are_one_batch(runner: Runner) -> None:
    shut_gate(runner)
    caller = Caller(runner, "/batched").opened()
    for text, times in (("a", 1), ("b", 1), ("c", 1), ("d", 1), ("e", 2), ("f", 1)):
        caller.send({"text": text, "times": times})
    taken(runner, caller, 6)
    open_gate(runner)
    batches: list[list[str]] = []
    while sum(len(batch) for batch in batches) < 6:
        batches.append(caller.recv()["texts"])
    assert [text for batch in batches for text in batch] == list("abcdef")
    assert batches[-2:] == [["e"], ["f"]], "the first one's can_batch decides"
    assert max(map(len, batches)) in (2, 3)
    caller.leave()


def shut_gate(runner: Runner) -> None:
    runner.call(b"", "/shut", id="shut")


def open_gate(runner: Runner) -> None:
    runner.request("gate", b"", "/open")


def taken(runner: Runner, caller: Caller, count: int) -> None:
    """Wait until the app has taken so many inputs."""
    seen = 0
    while seen < count:
        message = runner.expect(SocketTaken)
        seen += message.messages if message.id == caller.id else 0


def test_a_session_without_input_ends_but_not_while_the_method_works(runner: Runner) -> None:
    caller = Caller(runner, "/brief").opened()
    caller.send({"text": "x"})
    assert caller.recv() == {}
    error = caller.recv()
    assert (error["error"], error["reason"]) == ("TIMEOUT", "No input came for 0.2 s.")
    assert caller.end() == (1000, "", 101)


@pytest.mark.parametrize(
    ("text", "reason", "status"),
    [("app", "too dark", 400), ("raise", "Internal Server Error", 500), ("list", "Internal Server Error", 500)],
)
def test_a_method_that_fails_ends_the_session(runner: Runner, text: str, reason: str, status: int) -> None:
    caller = Caller(runner, "/fails").opened()
    caller.send({"text": text})
    error = caller.recv()
    assert (error["error"], error["reason"]) == ("INTERNAL_ERROR", reason)
    assert caller.end() == (1011, reason, status)
    if text == "list":
        wait_until(lambda: heard_log(runner, "wrap it in a dict"), "the cause to be logged")


def heard_log(runner: Runner, part: str) -> bool:
    if any(part in line for line in runner.logs()):
        return True
    runner.hear()
    return False


def test_a_message_over_the_limit_is_the_apps_error(runner: Runner) -> None:
    caller = Caller(runner, "/large").opened()
    code, reason, status = caller.end()
    assert (code, status) == (1011, 500)
    assert f"{MAX_MESSAGE_BYTES + 1} bytes is over the limit of 16 MiB" in reason


def test_an_app_sends_no_more_than_the_window(runner: Runner) -> None:
    caller = Caller(runner, "/pour").opened()
    got = [caller.expect(SocketMessage).data for _ in range(WINDOW_MESSAGES)]
    runner.send(Credit(caller.id, 1))
    got.append(caller.expect(SocketMessage).data)
    runner.request("between", b"", "/open")
    assert runner.expect(Response).id == "between", "nothing more comes before something is taken"
    for _ in range(200 - len(got)):
        runner.send(Credit(caller.id, 1))
        got.append(caller.expect(SocketMessage).data)
    assert got == [b"%d" % number for number in range(200)]
    assert caller.end() == (1000, "", 101)


def test_a_window_counts_messages_and_bytes() -> None:
    window = Window()
    assert window.open
    window.sent(b"x" * 1024 * 1024 * 3)
    held = window.open
    window.taken(1)
    assert (held, window.open) == (False, True)
    for _ in range(WINDOW_MESSAGES):
        assert window.open
        window.sent("")
    window.taken(1)
    assert window.open
    window.sent("")
    window.taken(1000)
    assert window.open


def test_the_document_tells_of_sockets(runner: Runner) -> None:
    document = json.loads(next(message for message in runner.heard if hasattr(message, "openapi")).openapi)
    assert document["paths"]["/large"] == {"x-fal-protocol": {"type": "websocket", "operationId": "large"}}
    bidi = document["paths"]["/bidi"]
    assert bidi["x-fal-protocol"] == {
        "type": "realtime",
        "operationId": "bidi",
        "realtimeMode": "bidi",
        "contentType": "application/msgpack",
        "config": {"buffering": None, "sessionTimeout": 30, "maxBatchSize": 1},
    }
    body = bidi["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/Input"}
    assert document["components"]["schemas"]["Input"]["x-fal-order-properties"] == ["text", "times"]
    modes = {
        path: item["x-fal-protocol"]["realtimeMode"] for path, item in document["paths"].items() if is_realtime(item)
    }
    assert modes["/server"] == modes["/later"] == "server_streaming"
    assert (modes["/unary"], modes["/client"]) == ("unary", "client_streaming")


def is_realtime(item: dict[str, Any]) -> bool:
    return bool(item.get("x-fal-protocol", {}).get("type") == "realtime")


class Wrong(fal.App):
    @fal.realtime("/nothing")
    def nothing(self) -> None: ...

    @fal.realtime("/sync")
    def sync(self, requests: Iterator[int]) -> None: ...


@pytest.mark.parametrize(
    ("name", "hint"), [("nothing", r"def nothing\(self, input\)"), ("sync", "annotate it with AsyncIterator")]
)
def test_a_method_of_the_wrong_shape_is_told(name: str, hint: str) -> None:
    handler = getattr(Wrong(_allow_init=True), name)
    with pytest.raises(ValueError, match=hint):
        shape_of("Wrong", name, handler, RealtimeOptions())
