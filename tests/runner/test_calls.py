"""A runner that answers calls of a function from its user's own machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fal._calls import CONTENT_TYPE, pack_call, unpack_answer
from fal._carried_classes import Classes
from fal._carried_values import Codec
from fal._runner.protocol import GpuFault, Response, StartFailed
from fal.exceptions import CUDAOutOfMemoryException, FalSerializationError, UserFunctionException

from tests.runner.harness import Runner, header, start

SOURCE = """
import asyncio, sys
import fal

class Odd(Exception):
    def __init__(self, number, *, of):
        super().__init__(number)
        self.of = of

def load():
    print("loading")
    return ["loaded"]

def other():
    return "other"

@fal.function(setup_function=load)
def grow(base, *more, fail=False):
    base.extend(more)
    if fail:
        raise Odd(len(base), of=base)
    return tuple(base)

@fal.function()
async def wait(seconds):
    await asyncio.sleep(seconds)
    return Odd

@fal.function()
def leave():
    sys.exit(4)

@fal.function()
def full():
    raise RuntimeError("CUDA error: out of memory")

def plain(a, b=1):
    return a + b

print(grow(1))
raise AssertionError("a script's own lines do not run on the runner")

@fal.function()
def late():
    return 1
"""


@pytest.fixture
def codec(tmp_path: Path) -> Iterator[Codec]:
    """The caller's side, which runs the file as a script."""
    script = ModuleType("script_of_test")
    sys.modules["script_of_test"] = script
    source = SOURCE.partition("print(grow")[0]
    exec(compile(source, str(tmp_path / "app.py"), "exec"), vars(script))
    yield Codec(Classes(script, []))
    del sys.modules["script_of_test"]


def send(runner: Runner, codec: Codec, *args: Any, **kwargs: Any) -> Response:
    arguments = [*((None, "?", value) for value in args), *((name, name, value) for name, value in kwargs.items())]
    return runner.call(pack_call(codec, "f", arguments), headers=((b"content-type", CONTENT_TYPE.encode()),))


def called(runner: Runner, codec: Codec, *args: Any, **kwargs: Any) -> Any:
    answer = send(runner, codec, *args, **kwargs)
    assert header(answer.headers, b"content-type") == CONTENT_TYPE.encode()
    return unpack_answer(codec, "f", answer.body)


def test_the_setup_functions_value_comes_first_and_is_made_once(tmp_path: Path, codec: Codec) -> None:
    with start(tmp_path, SOURCE, "grow", for_calls=True) as runner:
        runner.ready()
        assert called(runner, codec, 1) == ("loaded", 1)
        assert called(runner, codec, 2, 3) == ("loaded", 1, 2, 3)
        assert runner.logs("STDOUT") == ["loading"]


def test_another_setup_function_of_the_file(tmp_path: Path, codec: Codec) -> None:
    with start(tmp_path, SOURCE, "plain", for_calls=True, setup_function="other") as runner:
        runner.ready()
        assert called(runner, codec, "!") == "other!"


def test_what_it_raises_is_raised(tmp_path: Path, codec: Codec) -> None:
    with start(tmp_path, SOURCE, "grow", for_calls=True) as runner:
        runner.ready()
        answer = send(runner, codec, fail=True)
        assert answer.status == 500
        with pytest.raises(Exception, match="1") as raised:
            unpack_answer(codec, "f", answer.body)
        error: Any = raised.value
        assert (type(error).__name__, error.of) == ("Odd", ["loaded"])
        trace = str(error.__cause__)
        assert "raise Odd(len(base), of=base)" in trace
        assert "calls.py" not in trace, "the frames are the user's own"
        with pytest.raises(TypeError, match="unexpected keyword argument 'wrong'"):
            called(runner, codec, wrong=1)


def test_async_functions_and_values_that_cannot_be_sent(tmp_path: Path, codec: Codec) -> None:
    with start(tmp_path, SOURCE, "wait", for_calls=True) as runner:
        runner.ready()
        with pytest.raises(FalSerializationError, match=r"the value that wait\(\) returns holds a value of type type"):
            called(runner, codec, 0)


def test_a_function_that_ends_the_process_only_says_so(tmp_path: Path, codec: Codec) -> None:
    with start(tmp_path, SOURCE, "leave", for_calls=True) as runner:
        runner.ready()
        for _ in range(2):
            with pytest.raises(UserFunctionException, match="SystemExit: 4"):
                called(runner, codec)


def test_a_gpu_failure_asks_for_a_fresh_runner(tmp_path: Path, codec: Codec) -> None:
    with start(tmp_path, SOURCE, "full", for_calls=True) as runner:
        runner.ready()
        answer = send(runner, codec)
        assert answer.status == 503
        assert [fault.kind for fault in runner.all(GpuFault)] == ["out_of_memory"]
        with pytest.raises(RuntimeError, match="out of memory"):
            unpack_answer(codec, "f", answer.body)
    assert issubclass(CUDAOutOfMemoryException, Exception)


def test_bytes_that_are_no_call(tmp_path: Path, codec: Codec) -> None:
    with start(tmp_path, SOURCE, "plain", for_calls=True) as runner:
        runner.ready()
        answer = runner.call(b"\x80\x04cos\nsystem\n", headers=((b"content-type", CONTENT_TYPE.encode()),))
        assert answer.status == 422
        with pytest.raises(FalSerializationError, match=r"the call of plain\(\)"):
            unpack_answer(codec, "f", answer.body)
        assert called(runner, codec, 1, b=2) == 3


@pytest.mark.parametrize(
    ("name", "setup", "why"),
    [
        ("late", "", "behind a call of grow() at the top level, where reading ends: put that call under `if __name__"),
        ("SOURCE", "", "SOURCE is defined in app.py behind"),
        ("plain", "nothing", "nothing (setup_function) is not a function of app.py"),
    ],
)
def test_a_function_that_is_not_there(tmp_path: Path, name: str, setup: str, why: str) -> None:
    with start(tmp_path, SOURCE, name, for_calls=True, setup_function=setup) as runner:
        assert why in runner.expect(StartFailed).error


def test_a_call_on_a_runner_is_refused(tmp_path: Path, codec: Codec) -> None:
    source = """
import fal

@fal.function()
def inner(n):
    return n * 2

@fal.function()
def outer(n, here):
    return inner.run_local(n) if here else inner(n)
"""
    with start(tmp_path, source, "outer", for_calls=True) as runner:
        runner.ready()
        assert called(runner, codec, 2, here=True) == 4
        with pytest.raises(RuntimeError, match=r"inner\(\) is called on a runner.*inner.run_local"):
            called(runner, codec, 2, here=False)
