"""A GPU that fails under user code is reported, whatever the app makes of it.

The GPU is played here, only its words matter; a real one is in ``tests/gpu``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fal._runner.protocol import GpuFault, Message, Response, ResponseEnd
from fal.exceptions._gpu import fault_of

from tests.runner.harness import Runner, start

#: What torch is to the probe, with a switch for each way in which a card can be.
SOURCE = """
import contextlib, json, sys, types

import fal
from fal.exceptions import AppException
from fastapi.responses import JSONResponse, StreamingResponse

ILLEGAL = "CUDA error: an illegal memory access was encountered\\nCUDA kernel errors might be asynchronously reported"


class Card:
    state = "fine"

    def add_(self, number):
        if self.state != "fine":
            raise RuntimeError(self.state)

    def synchronize(self):
        pass


torch = types.ModuleType("torch")
torch.zeros = lambda *shape, device: Card()
torch.cuda = types.SimpleNamespace(
    is_initialized=lambda: True, device_count=lambda: 2, current_device=lambda: 0, memory_reserved=lambda device: 0,
    device=lambda index: contextlib.nullcontext(), stream=lambda stream: contextlib.nullcontext(), Stream=Card,
)
sys.modules["torch"] = torch


class Demo(fal.App):
    def break_card(self, how=ILLEGAL):
        Card.state = how

    @fal.endpoint("/raises")
    def raises(self):
        raise RuntimeError(ILLEGAL)

    @fal.endpoint("/hidden")
    def hidden(self):
        try:
            self.raises()
        except RuntimeError:
            raise AppException("inference failed", 500)

    @fal.endpoint("/bad-input")
    def bad_input(self):
        raise AppException("no such size", 500)

    @fal.endpoint("/swallowed")
    def swallowed(self):
        self.break_card()
        return JSONResponse({"error": "sorry"}, 500)

    @fal.endpoint("/told")
    async def told(self):
        async def events():
            yield "data: 1\\n\\n"
            self.break_card()
            yield "data: sorry\\n\\n"
        return StreamingResponse(events(), media_type="text/event-stream")

    @fal.endpoint("/breaks-off")
    async def breaks_off(self):
        async def events():
            yield "data: 1\\n\\n"
            raise RuntimeError("CUDA error: device-side assert triggered")
        return StreamingResponse(events(), media_type="text/event-stream")

    @fal.endpoint("/full")
    def full(self):
        self.break_card("CUDA out of memory. Tried to allocate 2.00 MiB")
        return JSONResponse({"error": "another time"}, 500)

    @fal.endpoint("/out-of-memory")
    def out_of_memory(self):
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")

    @fal.endpoint("/fine")
    def fine(self):
        Card.state = "fine"
        return {}
"""
_ILLEGAL = "CUDA error: an illegal memory access was encountered"


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    with start(tmp_path_factory.mktemp("gpu"), SOURCE) as runner:
        runner.ready()
        yield runner


def heard(runner: Runner, path: str, end: type[Message], *, stream: bool = True) -> tuple[Message, list[GpuFault]]:
    """The end of one call, and what was said of the GPU ahead of it."""
    runner.call(path="/fine", id="before")
    seen = len(runner.heard)
    runner.request("r1", b"{}", path, stream=stream)
    last = runner.expect(end)
    return last, [message for message in runner.heard[seen:] if isinstance(message, GpuFault)]


@pytest.mark.parametrize(
    ("path", "status", "kind", "error"),
    [
        ("/raises", 503, "sticky", _ILLEGAL),
        ("/hidden", 500, "sticky", _ILLEGAL),
        ("/swallowed", 500, "sticky", _ILLEGAL),
        ("/out-of-memory", 503, "out_of_memory", "CUDA out of memory. Tried to allocate 20.00 GiB"),
    ],
)
def test_a_failed_gpu_is_reported_ahead_of_the_answer(
    runner: Runner, path: str, status: int, kind: str, error: str
) -> None:
    answer, faults = heard(runner, path, Response)

    assert isinstance(answer, Response)
    assert answer.status == status
    assert faults == [GpuFault("r1", 1, kind, error)]


@pytest.mark.parametrize("path", ["/bad-input", "/full"])
def test_a_gpu_that_works_or_is_only_full_is_left_alone(runner: Runner, path: str) -> None:
    _, faults = heard(runner, path, Response)

    assert faults == []


@pytest.mark.parametrize(
    ("path", "error"),
    [("/told", _ILLEGAL), ("/breaks-off", "CUDA error: device-side assert triggered")],
)
def test_a_stream_does_not_hide_a_failed_gpu(runner: Runner, path: str, error: str) -> None:
    _, faults = heard(runner, path, ResponseEnd)
    assert faults == [GpuFault("r1", 1, "sticky", error)]

    _, faults = heard(runner, path, Response, stream=False)
    assert faults == [GpuFault("r1", 1, "sticky", error)]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("CUDA error: an illegal memory access was encountered", "sticky"),
        ("CUDA error: device-side assert triggered", "sticky"),
        ("CUDA error: unspecified launch failure", "sticky"),
        ("cuLaunchKernel failed: CUDA_ERROR_LAUNCH_FAILED", "sticky"),
        ("[ONNXRuntimeError] CUDA failure 700: cudaErrorIllegalAddress", "sticky"),
        ("CUDA error: uncorrectable ECC error encountered", "broken_card"),
        ("CUDNN_STATUS_ALLOC_FAILED", "out_of_memory"),
        ("CUDA error: invalid device function", None),
        ("the model failed to launch", None),
    ],
)
def test_what_the_words_mean(text: str, kind: str | None) -> None:
    found = fault_of(RuntimeError(text))

    assert (found[0] if found else None) == kind


def test_an_error_that_cannot_be_printed_or_causes_itself_is_looked_through() -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise ValueError("no words")

    odd, inner = Odd(), RuntimeError("CUDA error: device-side assert triggered")
    odd.__cause__, inner.__cause__ = ExceptionGroup("both", [inner]), odd

    assert fault_of(odd) == ("sticky", "CUDA error: device-side assert triggered")
