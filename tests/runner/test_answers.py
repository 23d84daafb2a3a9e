"""One runner, its requests and what callers see: bodies, statuses and headers of every kind of answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fal._runner.protocol import Cancel, Request, Response, Stage

from tests.runner.harness import BASE_URL, Runner, header, start

SOURCE = '''
from __future__ import annotations

import asyncio
import threading
from typing import Optional

import fal
from fal.exceptions import AppException, CUDAOutOfMemoryException, FieldException, RequestCancelledException
from fastapi import Header, HTTPException, Request, Response
from pydantic import BaseModel


class Input(BaseModel):
    """Declared after `from __future__ import annotations`, so that every annotation is text."""
    prompt: str
    steps: int = 7


class Output(BaseModel):
    text: str


class Demo(fal.App):
    version = "7"

    def setup(self):
        self.loaded = "model"
        self.meeting = threading.Barrier(2)

    @fal.endpoint("/")
    def run(self, request: Input) -> Output:
        return Output(text=f"{request.prompt} {request.steps} {self.loaded}")

    @fal.endpoint("/a/nested")
    async def nested(self, request: Input) -> Output:
        return Output(text=request.prompt)

    @fal.endpoint("/who")
    def who(self, request: Request, x_custom: Optional[str] = Header(None)) -> dict:
        mine = self.current_request
        return {
            "id": mine.request_id, "endpoint": mine.endpoint, "header": mine.headers["x-custom"], "given": x_custom,
            "url": str(request.url), "query": request.query_params.get("q"), "thread": threading.current_thread().name,
        }

    @fal.endpoint("/where")
    async def where(self) -> str:
        return threading.current_thread().name

    @fal.endpoint("/meet")
    def meet(self) -> int:
        return self.meeting.wait(20)

    @fal.endpoint("/field")
    def field(self):
        raise FieldException("prompt", "too rude", billable_units=1.5)

    @fal.endpoint("/teapot")
    def teapot(self):
        raise AppException("short and stout", 418)

    @fal.endpoint("/cancelled")
    def cancelled(self):
        raise RequestCancelledException("stopped")

    @fal.endpoint("/http")
    def http(self):
        raise HTTPException(404, "no such cat", headers={"x-cat": "0"})

    @fal.endpoint("/oom")
    def oom(self):
        raise CUDAOutOfMemoryException()

    @fal.endpoint("/oomtext")
    def oomtext(self):
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")

    @fal.endpoint("/nogpu")
    def nogpu(self):
        raise RuntimeError("Found no NVIDIA driver on your system. CUDA is not there")

    @fal.endpoint("/boom")
    def boom(self):
        return 1 / 0

    @fal.endpoint("/exit")
    def exit(self):
        raise SystemExit(5)

    @fal.endpoint("/aexit")
    async def aexit(self):
        raise SystemExit(5)

    @fal.endpoint("/stop")
    def stop(self):
        raise StopIteration

    @fal.endpoint("/wrong")
    def wrong(self) -> Output:
        return {"nothing": 1}

    @fal.endpoint("/created")
    def created(self, response: Response) -> Output:
        response.status_code = 201
        response.headers["x-mine"] = "yes"
        return Output(text="made")

    def provide_hints(self):
        return ["sdxl", "naïve", "☃"]
'''


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    with start(tmp_path_factory.mktemp("answers"), SOURCE) as runner:
        runner.ready()
        yield runner


def _json(response: Response) -> object:
    return json.loads(response.body)


def test_a_request_is_answered_with_what_setup_loaded(runner: Runner) -> None:
    response = runner.call(b'{"prompt": "rhino"}')
    assert (response.status, _json(response)) == (200, {"text": "rhino 7 model"})
    assert header(response.headers, b"content-type") == b"application/json"
    assert (response.id, response.attempt) == ("r1", 1)


def test_stages_and_document_of_the_start(runner: Runner) -> None:
    stages = runner.all(Stage)
    assert [stage.name for stage in stages] == ["boot", "import", "setup"]
    assert all(stage.seconds >= 0 for stage in stages)


def test_nested_paths_and_trailing_slash(runner: Runner) -> None:
    assert runner.call(b'{"prompt": "x"}', "/a/nested").status == 200
    assert runner.call(b'{"prompt": "x"}', "/a/nested/").status == 404


def test_a_body_without_content_type_is_json(runner: Runner) -> None:
    """`curl -d` with the header forgotten, or an SDK that sends none: newer FastAPI would call it a text body."""
    assert runner.call(b'{"prompt": "x"}', headers=[]).status == 200


def test_validation_failures_have_fastapis_shape(runner: Runner) -> None:
    response = runner.call(b'{"steps": "many"}')
    assert response.status == 422
    detail = json.loads(response.body)["detail"]
    assert [(item["loc"], item["type"]) for item in detail] == [
        (["body", "prompt"], "missing"),
        (["body", "steps"], "int_parsing"),
    ]
    assert header(response.headers, b"x-fal-billable-units") == b"0"


def test_a_long_input_is_not_sent_back(runner: Runner) -> None:
    """A missing field makes pydantic quote the whole body: 20 MB of picture came back with every typo."""
    response = runner.call(json.dumps({"picture": "x" * 1_000_000}).encode())
    assert response.status == 422
    assert json.loads(response.body)["detail"][0]["input"] == {"picture": "<1000000 characters>"}


@pytest.mark.parametrize(
    "body", [b"{not json", b'{"prompt": NaN}', b"\xff\xfe", b"", b"[]", b'{"steps": "\\ud800"}', b"[" * 200_000]
)
def test_a_body_that_cannot_be_read_is_a_422(runner: Runner, body: bytes) -> None:
    """200,000 brackets were answered 500, with a traceback of ours in the app's log."""
    response = runner.call(body)
    assert response.status == 422 or (response.status == 400 and body[:2] in (b"\xff\xfe", b"[["))
    assert json.loads(response.body)["detail"]


def test_unknown_path_and_wrong_method(runner: Runner) -> None:
    response = runner.call(b"{}", "/nope")
    assert (response.status, _json(response)) == (404, {"detail": "Path /nope not found"})
    assert header(response.headers, b"x-fal-billable-units") == b"0"
    assert runner.call(method="GET").status == 405


def test_health(runner: Runner) -> None:
    response = runner.call(path="/health", method="GET")
    assert (response.status, _json(response)) == (200, {"version": "7"})


def test_request_parameters_and_context(runner: Runner) -> None:
    response = runner.call(b"", "/who", headers=[(b"x-custom", b"abc")], query=b"q=1")
    body = json.loads(response.body)
    assert body["thread"].startswith("fal-handler")
    assert body == {
        "id": "r1", "endpoint": "/who", "header": "abc", "given": "abc",
        "url": f"{BASE_URL}/who?q=1", "query": "1", "thread": body["thread"],
    }  # fmt: skip


def test_async_handlers_run_on_the_loop(runner: Runner) -> None:
    assert _json(runner.call(path="/where")) == "MainThread"


def test_one_request_after_another_sees_one_thread(runner: Runner) -> None:
    """Libraries keep state per thread (CUDA streams, BLAS pools); a new thread per request would build it anew."""
    threads = {json.loads(runner.call(b"", "/who", headers=[(b"x-custom", b"")]).body)["thread"] for _ in range(20)}
    assert len(threads) == 1


def test_sync_handlers_run_side_by_side(runner: Runner) -> None:
    runner.request("one", path="/meet")
    runner.request("two", path="/meet")
    answers = {runner.expect(Response).id, runner.expect(Response).id}
    assert answers == {"one", "two"}


@pytest.mark.parametrize(
    ("path", "status", "detail"),
    [
        ("/field", 422, [{"loc": ["body", "prompt"], "msg": "too rude", "type": "value_error"}]),
        ("/teapot", 418, "short and stout"),
        ("/cancelled", 499, "stopped"),
        ("/http", 404, "no such cat"),
        ("/oom", 503, "CUDA error: out of memory"),
        ("/oomtext", 503, "CUDA error: out of memory"),
        ("/nogpu", 500, "Internal Server Error"),
        ("/boom", 500, "Internal Server Error"),
        ("/exit", 500, "Internal Server Error"),
        ("/aexit", 500, "Internal Server Error"),
        ("/stop", 500, "Internal Server Error"),
        ("/wrong", 500, "Internal Server Error"),
    ],
)
def test_what_user_code_raises(runner: Runner, path: str, status: int, detail: object) -> None:
    response = runner.call(path=path)
    assert (response.status, _json(response)) == (status, {"detail": detail})


def test_headers_of_errors(runner: Runner) -> None:
    assert header(runner.call(path="/field").headers, b"x-fal-billable-units") == b"1.50000000"
    assert header(runner.call(path="/http").headers, b"x-cat") == b"0"


def test_a_failing_handler_logs_its_traceback_from_user_code_on(runner: Runner) -> None:
    seen = len(runner.heard)
    runner.call(path="/boom")
    runner.call(b'{"prompt": "x"}')
    lines = [m for m in runner.heard[seen:] if getattr(m, "level", None) == "ERROR"]
    text = "\n".join(line.message for line in lines)  # type: ignore[attr-defined]
    assert "ZeroDivisionError: division by zero" in text
    assert 'app.py", line' in text
    assert "starlette" not in text
    assert {line.request_id for line in lines} == {"r1"}  # type: ignore[attr-defined]


def test_status_and_headers_of_the_handlers_own(runner: Runner) -> None:
    response = runner.call(path="/created")
    assert response.status == 201
    assert header(response.headers, b"x-mine") == b"yes"


def test_hints_that_fit_a_header_are_sent(runner: Runner) -> None:
    assert header(runner.call(path="/health", method="GET").headers, b"x-fal-runner-hints") == "sdxl,naïve".encode(
        "latin-1"
    )


def test_credit_and_cancel_of_unknown_requests_are_ignored(runner: Runner) -> None:
    runner.send(Cancel("never-seen"))
    assert runner.call(b'{"prompt": "x"}').status == 200


def test_a_large_body_goes_both_ways(runner: Runner) -> None:
    text = "x" * (20 * 1024 * 1024)
    response = runner.call(json.dumps({"prompt": text}).encode(), "/a/nested")
    assert json.loads(response.body) == {"text": text}


def test_openapi_keeps_orders(tmp_path: Path) -> None:
    source = SOURCE.replace('"/a/nested"', '"/z"')
    with start(tmp_path, source) as runner:
        ready = runner.ready()
    document = json.loads(ready.openapi)
    assert document["x-fal-order-paths"] == list(document["paths"])
    assert document["paths"]["/"]["post"]["requestBody"]
    assert document["components"]["schemas"]["Input"]["x-fal-order-properties"] == ["prompt", "steps"]
    assert "/health" in document["paths"]
    assert set(ready.endpoints) >= {"/", "/z", "/who"}
    assert ready.device == "cpu"


def test_requests_sent_before_ready_wait(tmp_path: Path) -> None:
    with start(tmp_path, SOURCE) as runner:
        runner.send(Request("early", 2, "POST", "/", b"", [], b'{"prompt": "x"}', BASE_URL))
        runner.ready()
        response = runner.expect(Response)
    assert (response.id, response.attempt, response.status) == ("early", 2, 200)


def test_json_sent_as_a_form_is_told_which_header_is_missing(runner: Runner) -> None:
    """``curl -d '{"prompt": "x"}'`` names its body a form; the 422 quoted the body and said nothing of the header."""
    form = [(b"content-type", b"application/x-www-form-urlencoded")]
    response = runner.call(b'{"prompt": "x"}', headers=form)
    assert response.status == 422
    *_, hint = json.loads(response.body)["detail"]
    assert hint["loc"] == ["header", "content-type"]
    assert '"Content-Type: application/json"' in hint["msg"]
    as_it_should_be = json.loads(runner.call(b'{"steps": 1}').body)["detail"]
    assert all(item["loc"][0] == "body" for item in as_it_should_be)
