"""The CPU that stands in for a GPU: the import hook, and what torch then does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from fal._runner.after_import import _AfterImport
from fal._runner.protocol import Log
from fal._spec import EnvironmentSpec

from envbuilder.builder import build
from envbuilder.settings import BuildSettings
from tests.runner.harness import SDK, header, start
from tests.support.loop import run

FACTS = Path(__file__).with_name("stand_in_facts.py")


def test_the_hook_runs_once_after_the_module_and_before_who_imports_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kw_hooked.py").write_text("VALUE = 1\n")
    (tmp_path / "kw_user.py").write_text("from kw_hooked import VALUE\n")
    monkeypatch.syspath_prepend(tmp_path)
    seen: list[int] = []

    def patch(module: ModuleType) -> None:
        seen.append(module.VALUE)
        setattr(module, "VALUE", 2)  # noqa: B010 - the type knows no such name

    hook = _AfterImport("kw_hooked", patch)
    monkeypatch.setattr(sys, "meta_path", [hook, *sys.meta_path])
    import kw_user  # type: ignore[import-not-found]

    assert (kw_user.VALUE, seen) == (2, [1])
    assert hook not in sys.meta_path
    for name in ("kw_hooked", "kw_user"):
        sys.modules.pop(name)


def test_a_module_that_is_not_installed_stays_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    hook = _AfterImport("kw_missing", lambda module: None)
    monkeypatch.setattr(sys, "meta_path", [hook, *sys.meta_path])
    with pytest.raises(ModuleNotFoundError):
        import kw_missing  # type: ignore[import-not-found]  # noqa: F401
    assert hook in sys.meta_path, "it may be there at the next try"


def test_every_answer_says_that_the_cpu_stands_in(tmp_path: Path) -> None:
    source = """
import fal

class Demo(fal.App):
    @fal.endpoint("/")
    def run(self): ...
"""
    with start(tmp_path, source, cpu_fallback_for="GPU-A100") as runner:
        assert runner.ready().device == "cpu (standing in for GPU-A100)"
        assert header(runner.call().headers, b"x-keepwarm-device") == b"cpu (standing in for GPU-A100)"
        assert not runner.all(Log), "an app without torch has nothing to be told"


@pytest.mark.heavy
def test_code_for_a_gpu_runs_on_the_cpu_in_full_precision(shared_builds: Path) -> None:
    """The same environment as examples/sdxl_cpu.py, so that torch is built once for all tests."""
    requirements = ("torch==2.13.0", "diffusers>=0.42,<0.43", "transformers>=5,<6", "accelerate")
    spec = EnvironmentSpec(f"{sys.version_info[0]}.{sys.version_info[1]}", (requirements,))
    settings = BuildSettings.from_env({**os.environ, "KEEPWARM_DATA": str(shared_builds)})
    environment = run(build(spec, settings, lambda line: None))
    answer = subprocess.run(
        [environment.python, str(FACTS)],
        env={"PYTHONPATH": str(SDK), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    facts = json.loads(answer.stdout)
    told = facts.pop("told")
    assert len(told) == 1
    assert "the CPU stands in for GPU-A100" in told[0]
    unusual = {
        "is_available": False,
        "is a generator": True,
        "meta": [True, True],
        "factory on the CPU": "cpu float16",
        "tensor to on the CPU": "cpu float16",
        "pinned": "cpu float16",
        "integers": "cpu int64",
        "doubles": "cpu float64",
    }
    assert facts == {name: unusual.get(name, "cpu float32") for name in facts}
