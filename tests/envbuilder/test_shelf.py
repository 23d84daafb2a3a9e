"""Environments on disk: found only when complete, kept while used, evicted by last use. No uv."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from envbuilder import BuildSettings, Environment, EnvironmentGone, evict, find, hold
from envbuilder.shelf import size_of, try_lock, write_mark

NOW = 1_700_000_000.0


@pytest.fixture
def settings(tmp_path: Path) -> BuildSettings:
    return BuildSettings(environments=tmp_path / "environments", uv_cache=tmp_path / "cache")


def put(
    settings: BuildSettings, key: str, *, used: float = NOW, size: int = 1000, cpu_only: bool = False
) -> Environment:
    """A ready environment without anything in it but an interpreter's name."""
    path = settings.environments / key / "venv-1"
    python = path / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    made = Environment(key, path, python, "as written", ("six==1.17.0",), {"total": 1.0}, cpu_only, ("six",), size)
    write_mark(made)
    os.utime(path.parent / "environment.json", (used, used))
    return made


def keys(settings: BuildSettings) -> list[str]:
    return sorted(p.name for p in settings.environments.iterdir() if not p.name.startswith("."))


def test_find_gives_back_what_was_marked(settings: BuildSettings) -> None:
    made = put(settings, "a")
    found = find("a", settings)
    assert found is not None
    assert found.cached
    assert found == Environment(**{**made.__dict__, "cached": True})
    assert find("b", settings) is None


@pytest.mark.parametrize("mark", ["", "{", "[]", '{"format": 99, "venv": "venv-1"}', '{"format": 1}'])
def test_a_mark_that_cannot_be_read_is_no_environment(settings: BuildSettings, mark: str) -> None:
    put(settings, "a")
    (settings.environments / "a" / "environment.json").write_text(mark)
    assert find("a", settings) is None


def test_an_environment_whose_interpreter_has_vanished_is_not_found(settings: BuildSettings) -> None:
    made = put(settings, "a")
    made.python.unlink()
    made.python.symlink_to("/no/such/python")
    assert find("a", settings) is None


def test_a_machine_that_got_a_gpu_does_not_take_the_cpu_build(settings: BuildSettings) -> None:
    put(settings, "a", cpu_only=True)
    assert find("a", settings) is not None
    with_gpu = BuildSettings(settings.environments, settings.uv_cache, gpu_present=True)
    assert find("a", with_gpu) is None


def test_the_longest_unused_go_until_the_rest_fits(settings: BuildSettings) -> None:
    for number, key in enumerate("dcba"):
        put(settings, key, used=NOW + number)
    removed = evict(settings, max_bytes=2500, now=NOW + 10)
    assert [e.key for e in removed] == ["d", "c"]
    assert keys(settings) == ["a", "b"]


def test_what_nobody_used_for_long_goes(settings: BuildSettings) -> None:
    put(settings, "old", used=NOW - 1000)
    put(settings, "new", used=NOW)
    assert [e.key for e in evict(settings, unused_for=500, now=NOW)] == ["old"]
    assert evict(settings, now=NOW) == []
    assert keys(settings) == ["new"]


def test_nothing_in_use_is_touched_and_use_counts(settings: BuildSettings) -> None:
    made = put(settings, "a", used=NOW)
    with hold(made), hold(made):
        assert evict(settings, max_bytes=0) == []
    assert evict(settings, unused_for=3600) == [], "a held environment was used until now"
    assert [e.key for e in evict(settings, max_bytes=0)] == ["a"]
    with pytest.raises(EnvironmentGone), hold(made):
        pass


def test_a_user_that_is_killed_lets_go(settings: BuildSettings) -> None:
    made = put(settings, "a")
    code = (
        "import sys, pathlib, envbuilder\n"
        f"root = pathlib.Path({str(settings.environments)!r})\n"
        "found = envbuilder.find('a', envbuilder.BuildSettings(root, root))\n"
        "with envbuilder.hold(found):\n    print('held', flush=True); sys.stdin.read()\n"
    )
    user = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert user.stdin is not None
    assert user.stdout is not None
    with user, user.stdin, user.stdout:
        assert user.stdout.readline() == b"held\n"
        assert evict(settings, max_bytes=0) == []
        user.kill()
    assert [e.key for e in evict(settings, max_bytes=0)] == ["a"]
    assert not made.path.exists()


def test_leftovers_go_but_not_those_of_a_build_that_runs(settings: BuildSettings) -> None:
    made = put(settings, "a")
    for key, name in (("a", "venv-half"), ("b", "work-1"), ("c", "venv-2")):
        (settings.environments / key / name).mkdir(parents=True)
    (settings.environments / ".trash-x").mkdir()
    with try_lock(settings.environments, "c", "build") as locked:
        assert locked
        removed = evict(settings)
    assert {e.key for e in removed} == {"a", "b"}
    assert keys(settings) == ["a", "c"]
    assert made.path.exists()
    assert not (settings.environments / "a" / "venv-half").exists()
    assert not (settings.environments / ".trash-x").exists()


def test_nothing_to_evict_in_a_new_folder(settings: BuildSettings) -> None:
    assert evict(settings, max_bytes=0, unused_for=0) == []


def test_size_counts_each_file_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    once = size_of(tmp_path)
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    (tmp_path / "c").symlink_to("a")
    assert 100_000 <= once <= 200_000
    assert size_of(tmp_path) == once


def test_finding_is_quick(settings: BuildSettings) -> None:
    """Not a measurement: a find that walked the venv would take a hundred times this."""
    put(settings, "a")
    started = time.perf_counter()
    for _ in range(20):
        find("a", settings)
    assert time.perf_counter() - started < 2
