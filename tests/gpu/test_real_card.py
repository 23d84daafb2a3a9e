"""Real failures of a real GPU, through a real runner: that it says so, and that it was right.

Run by ``make check-gpu PYTHON=...`` with an interpreter that has torch for the card at hand; no part of CI.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fal._runner.protocol import GpuFault, Message, Ready, Response, ResponseEnd

from gpu_worker.gpu_usage import nvml_usage
from gpu_worker.suspension import run_checkpoint
from tests.runner.harness import Runner, start
from tests.support.loop import run

pytestmark = pytest.mark.gpu

SOURCE = """
import fal
from fastapi.responses import JSONResponse, StreamingResponse


class Demo(fal.App):
    def setup(self):
        import torch
        self.torch = torch
        self.weights = torch.ones(1 << 20, device="cuda")

    def assert_on_the_device(self):
        index = self.torch.tensor([1 << 30], device="cuda")
        self.torch.index_select(self.weights, 0, index)
        self.torch.cuda.synchronize()

    @fal.endpoint("/sum")
    def sum(self):
        return {"sum": float(self.weights.sum())}

    @fal.endpoint("/raises")
    def raises(self):
        self.assert_on_the_device()

    @fal.endpoint("/swallowed")
    def swallowed(self):
        try:
            self.assert_on_the_device()
        except RuntimeError:
            return JSONResponse({"error": "sorry"}, 500)

    @fal.endpoint("/told")
    async def told(self):
        async def events():
            yield "data: 1\\n\\n"
            try:
                self.assert_on_the_device()
            except RuntimeError:
                yield "data: sorry\\n\\n"
        return StreamingResponse(events(), media_type="text/event-stream")

    @fal.endpoint("/boom")
    def boom(self):
        return 1 / 0

    @fal.endpoint("/too-large")
    def too_large(self):
        return {"size": self.torch.empty(1 << 50, dtype=self.torch.uint8, device="cuda").numel()}
"""


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[Runner]:
    python = os.environ.get("KEEPWARM_GPU_PYTHON")
    assert python, "set KEEPWARM_GPU_PYTHON to an interpreter that has torch for this machine's GPU"
    with start(tmp_path, SOURCE, python=python, environment={"CUDA_VISIBLE_DEVICES": "0"}) as runner:
        runner.expect(Ready, 300)
        assert b'"sum":1048576.0' in runner.call(path="/sum").body
        yield runner


def faults(runner: Runner, path: str, end: type[Message]) -> list[str]:
    runner.request("r2", b"{}", path)
    runner.expect(end)
    return [fault.kind for fault in runner.all(GpuFault)]


@pytest.mark.parametrize(("path", "end"), [("/raises", Response), ("/swallowed", Response), ("/told", ResponseEnd)])
def test_a_device_side_assert_is_sticky_and_is_noticed(runner: Runner, path: str, end: type[Message]) -> None:
    assert faults(runner, path, end) == ["sticky"]
    assert runner.call(path="/sum", id="after").status == 503, "this process can do nothing more on its GPU"


def test_what_is_no_failure_of_the_gpu_is_none(runner: Runner) -> None:
    assert faults(runner, "/boom", Response) == []
    assert b'"sum":1048576.0' in runner.call(path="/sum", id="after").body


def test_a_full_gpu_goes_on_working(runner: Runner) -> None:
    assert faults(runner, "/too-large", Response) == ["out_of_memory"]
    assert b'"sum":1048576.0' in runner.call(path="/sum", id="after").body


def test_an_idle_runner_lends_its_card_and_comes_back(runner: Runner) -> None:
    pid = runner.process.pid
    assert nvml_usage(0, {pid}), "it is on the card"
    run(run_checkpoint("probe"))
    run(run_checkpoint("suspend", [pid]))
    assert not nvml_usage(0, {pid}), "the card is free"
    run(run_checkpoint("resume", [pid]))
    assert b'"sum":1048576.0' in runner.call(path="/sum", id="after").body
