"""From a function of this process to the app that its calls go to."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import fal
import pytest
from fal._function_loading import load_function
from fal._loading import LoadError

SOURCE = """
import functools
import fal
import tones_of_test

def load():
    return 1

def other():
    return 2

def plain(first):
    return first

@fal.function(setup_function=load, requirements=["six"], machine_type="M")
def play(first, tone=tones_of_test.LOW):
    return first

remote = fal.function(setup_function=load)(plain)

def twice(function):
    @functools.wraps(function)
    def call(*args):
        return function(*args), function(*args)
    return call

@fal.function()
@twice
def echo(x):
    return x

@twice
@fal.function()
def hidden(x):
    return x
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    (tmp_path / "script_of_test.py").write_text(SOURCE)
    (tmp_path / "tones_of_test.py").write_text("LOW = 'low'\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("script_of_test")
    for name in ("script_of_test", "tones_of_test"):
        sys.modules.pop(name, None)


def test_a_function_becomes_a_private_app_for_calls(script: Any) -> None:
    spec = (loaded := load_function(script.play)).spec
    assert (spec.class_name, spec.name, spec.for_calls, spec.auth) == ("play", "play", True, "private")
    assert (spec.entry_file, spec.setup_function, spec.exposed_port) == ("script_of_test.py", "", 0)
    assert (spec.machine_types, spec.scaling.keep_alive) == (("M",), 10)
    assert spec.environment.requirements == (("six",),)
    assert [file.path for file in loaded.bundle.files] == ["script_of_test.py", "tones_of_test.py"]


def test_other_settings_are_those_of_the_copy(script: Any) -> None:
    spec = load_function(script.play.on(machine_type=["GPU", "S"], setup_function=script.other)).spec
    assert (spec.machine_types, spec.setup_function) == (("GPU", "S"), "other")


def test_functions_that_have_another_name_or_a_decorator(script: Any) -> None:
    """The runner must find the function by the name that the file has for it, and its setup function with it."""
    spec = load_function(script.remote).spec
    assert (spec.class_name, spec.setup_function) == ("plain", "load")
    assert load_function(script.echo).spec.class_name == "echo"


def test_functions_that_no_runner_could_find(script: Any) -> None:
    with pytest.raises(LoadError, match=r"hidden\(\) cannot be found in script_of_test.py"):
        load_function(script.hidden.__wrapped__)
    with pytest.raises(LoadError, match="which script_of_test lacks"):
        load_function(script.play.on(setup_function=lambda: 3))
    with pytest.raises(LoadError, match="which script_of_test lacks"):
        load_function(script.play.on(setup_function=None))

    @fal.function()
    def inner() -> None: ...

    with pytest.raises(LoadError, match="defined inside another function"):
        load_function(inner)
    with pytest.raises(LoadError, match=r"play: keep_alive is -1"):
        load_function(script.play.on(keep_alive=-1))
    with pytest.raises(LoadError, match=r"of kind 'conda', which is not supported"):
        load_function(script.play.on(kind="conda"))
    del sys.modules["script_of_test"]
    with pytest.raises(LoadError, match="lies in no file"):
        load_function(script.play)
