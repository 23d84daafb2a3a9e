"""The toolkit's helpers around endpoints and setup, in an app: retries, callers who hang up, missing packages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fal._runner.protocol import Cancel, Log, Response

from tests.runner.harness import Runner, start

SOURCE = """
import asyncio
import time
import warnings

import fal
from fal.toolkit.image.nsfw_filter import NSFWImageDetectionInput, run_nsfw_estimation
from fal.toolkit.image.safety_checker import postprocess_images
from fal.toolkit.optimize import optimize
from fal.toolkit.utils.endpoint import cancel_on_disconnect
from fal.toolkit.utils.retry import retry
from fal.toolkit.utils.setup_utils import patch_onnx_runtime
from fastapi import Request
from PIL import Image as Pillow
from pydantic import BaseModel


class Flaky(BaseModel):
    failures: int
    retries: int = 3
    kind: str = "fixed"
    is_async: bool = False
    pick: bool = False
    jitter: bool = False


def missing(call, *args):
    try:
        call(*args)
    except ImportError as error:
        return str(error)


class Demo(fal.App, max_multiplexing=4):
    @fal.endpoint("/retry")
    async def retried(self, flaky: Flaky) -> dict:
        began = []

        def fail():
            began.append(time.monotonic())
            if len(began) <= flaky.failures:
                raise ValueError(f"failure {len(began)}")
            return "done"

        async def fail_async():
            return fail()

        decorate = retry(
            max_retries=flaky.retries, base_delay=0.02, max_delay=0.05, backoff_type=flaky.kind, jitter=flaky.jitter,
            should_retry=(lambda error: "1" in str(error)) if flaky.pick else None,
        )
        try:
            result = await decorate(fail_async)() if flaky.is_async else await asyncio.to_thread(decorate(fail))
        except ValueError as error:
            result = str(error)
        return {"calls": len(began), "result": result, "pauses": [b - a for a, b in zip(began, began[1:])]}

    @fal.endpoint("/cancelled-once")
    async def cancelled_once(self) -> dict:
        calls = []

        @retry(max_retries=3, base_delay=0)
        async def give_up():
            calls.append(1)
            raise asyncio.CancelledError

        try:
            await give_up()
        except asyncio.CancelledError:
            return {"calls": len(calls)}

    @fal.endpoint("/wait")
    async def wait(self, request: Request) -> dict:
        async with cancel_on_disconnect(request):
            print("computing for", (await request.json())["who"])
            await asyncio.sleep(600)
        print("the block is over")
        await asyncio.sleep(0.01)
        print("and cleaned up")
        return {}

    @fal.endpoint("/quick")
    async def quick(self, request: Request) -> dict:
        async with cancel_on_disconnect(request):
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        return {"body": await request.json()}

    @fal.endpoint("/wrong")
    async def wrong(self, request: Request) -> dict:
        try:
            async with cancel_on_disconnect(request):
                raise ValueError("of its own")
        except ValueError as error:
            return {"error": str(error)}

    @fal.endpoint("/missing")
    def missing(self) -> dict:
        pixel = Pillow.new("RGB", (1, 1))
        return {
            "onnx": missing(patch_onnx_runtime),
            "checker": missing(postprocess_images, [pixel]),
            "filter": missing(run_nsfw_estimation, NSFWImageDetectionInput(image_url="data:,")),
            "off": len(postprocess_images([pixel], False)["images"]),
            "none": postprocess_images([]),
        }

    @fal.endpoint("/optimize")
    def optimized(self) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            return [optimize("a model"), *(str(item.message) for item in caught)]
"""


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    with start(tmp_path_factory.mktemp("utils"), SOURCE, max_multiplexing=4) as running:
        running.ready()
        yield running


def ask(runner: Runner, path: str, **body: Any) -> Any:
    response = runner.call(json.dumps(body).encode(), path)
    assert response.status == 200, (response.body, runner.logs("ERROR"))
    return json.loads(response.body)


@pytest.mark.parametrize("is_async", [False, True])
def test_retry_calls_again_with_pauses(runner: Runner, is_async: bool) -> None:
    twice = ask(runner, "/retry", failures=2, is_async=is_async)
    assert (twice["calls"], twice["result"]) == (3, "done")
    assert all(pause >= 0.02 for pause in twice["pauses"])
    growing = ask(runner, "/retry", failures=3, kind="exponential", is_async=is_async)
    assert all(took >= least for took, least in zip(growing["pauses"], (0.02, 0.04, 0.05), strict=True))
    assert ask(runner, "/retry", failures=9, jitter=True, is_async=is_async)["result"] == "failure 4"
    assert ask(runner, "/retry", failures=9, retries=0, is_async=is_async)["calls"] == 1
    picky = ask(runner, "/retry", failures=9, pick=True, is_async=is_async)
    assert (picky["calls"], picky["result"]) == (2, "failure 2")


def test_a_cancelled_call_is_not_retried(runner: Runner) -> None:
    assert ask(runner, "/cancelled-once") == {"calls": 1}


def test_a_block_ends_when_its_caller_hangs_up_and_the_handler_goes_on(runner: Runner) -> None:
    """The helper did nothing of its own: the platform cancelled the whole handler, and what came after the block never
    ran."""
    runner.request("hung-up", b'{"who": "nobody"}', "/wait")
    while "computing for nobody" not in runner.logs():
        runner.expect(Log)
    runner.send(Cancel("hung-up"))
    while "and cleaned up" not in runner.logs():
        runner.expect(Log)
    assert "the block is over" in runner.logs()
    assert runner.expect(Response).id == "hung-up"
    assert ask(runner, "/quick", a=1) == {"body": {"a": 1}}, "the runner serves on"


def test_a_block_that_ends_by_itself_is_left_alone(runner: Runner) -> None:
    assert ask(runner, "/quick", a=1) == {"body": {"a": 1}}
    assert ask(runner, "/wrong") == {"error": "of its own"}


def test_helpers_whose_packages_are_missing_name_the_requirement(runner: Runner) -> None:
    said = ask(runner, "/missing")
    assert said["onnx"].endswith("add 'onnxruntime' to requirements")
    assert said["checker"] == (
        "the safety checker needs torch, which this app does not have: "
        "add 'torch', 'transformers', 'diffusers', 'accelerate' to requirements"
    )
    assert "add 'torch', 'transformers' to requirements" in said["filter"]
    assert (said["off"], said["none"]) == (1, {"images": [], "has_nsfw_concepts": []})


def test_optimize_is_only_a_name(runner: Runner) -> None:
    model, warning = ask(runner, "/optimize")
    assert model == "a model"
    assert "it was removed from fal" in warning
