"""Real builds with real uv against the real index: small packages, and source packages that misbehave on purpose."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from fal._spec import EnvironmentSpec

from envbuilder import BadRequirement, BuildError, BuildSettings, build, evict, find
from envbuilder.errors import DiskFull, LimitReached, NoInterpreter, SmokeImportFailed, SourceBuildFailed, Unsatisfiable
from envbuilder.install import failure
from envbuilder.key import environment_key
from envbuilder.process import Finished
from tests.envbuilder.builds import PYTHON, Built, command_of, gone, spec_of, write_source_package
from tests.envbuilder.conftest import MakeSettings
from tests.support.loop import run
from tests.support.waiting import wait_until


def folders(built_under: Path, prefix: str) -> list[str]:
    return [path.name for path in built_under.glob(f"*/{prefix}*")]


# --- one good build ---------------------------------------------------------------------------------------------------


def test_an_environment_holds_the_users_packages_and_the_runners(small: Built) -> None:
    environment = small.environment
    assert not environment.cached
    assert (small.version("six"), environment.resolved) == ("1.17.0", "as written")
    assert {"fastapi", "pydantic", "msgpack", "pillow", "python-multipart"} <= {
        p.split("==")[0] for p in environment.packages
    }
    assert "fal" not in {p.split("==")[0] for p in environment.packages}
    assert {"venv", "install", "smoke", "total"} <= set(environment.seconds)
    output = subprocess.run(
        [environment.python, "-c", "import six, sys; print(sys.prefix)"], capture_output=True, text=True
    )
    assert output.stdout.strip() == str(environment.path)


def test_its_lines_were_streamed(small: Built) -> None:
    assert "Installing packages as written: six==1.17.0" in small.text
    assert " + six==1.17.0" in small.lines
    assert "smoke import: six" in small.text
    assert "\x1b" not in small.text


def test_the_smoke_import_left_the_bytecode_although_our_own_process_forbids_it(small: Built) -> None:
    """A builder that inherits PYTHONDONTWRITEBYTECODE makes environments whose every start compiles again: 2.7 x."""
    assert list(small.environment.path.glob("lib/*/site-packages/__pycache__/six.*.pyc"))
    assert list(small.environment.path.glob("lib/*/site-packages/fastapi/__pycache__/routing.*.pyc"))


def test_no_file_is_shared_with_another_environment(small: Built) -> None:
    """One tenant once appended a line to a hard-linked six.py, and it ran in every other tenant's app."""
    (module,) = small.environment.path.glob("lib/*/site-packages/six.py")
    assert module.stat().st_nlink == 1


def test_nothing_else_is_left(small: Built) -> None:
    assert folders(small.settings.environments, "work-") == []
    assert folders(small.settings.environments, "venv-") == [small.environment.path.name]


def test_the_second_time_it_is_there(small: Built) -> None:
    lines: list[str] = []
    again = run(build(small.spec, small.settings, lines.append))
    assert again.cached
    assert again.path == small.environment.path
    assert lines == []
    assert find(environment_key(small.spec), small.settings) == again


def test_new_imports_are_tried_in_the_environment_that_is_there(small: Built) -> None:
    lines: list[str] = []
    spec = spec_of("six==1.17.0", smoke_imports=("six", "six.moves", "my_own_module", "fal.toolkit"))
    again = run(build(spec, small.settings, lines.append))
    assert again.path == small.environment.path
    assert [line for line in lines if "own_module" in line and "not part of the environment" in line]
    assert not any("fal" in line for line in lines)
    lines.clear()
    assert run(build(spec, small.settings, lines.append)).smoked[-1] == "my_own_module"
    assert lines == []


# --- several builders, killed builders --------------------------------------------------------------------------------


def test_the_second_of_two_builders_waits_and_gets_the_same_until_it_is_evicted(make_settings: MakeSettings) -> None:
    settings = make_settings()
    first: list[str] = []
    second: list[str] = []

    async def both() -> None:
        one, other = await asyncio.gather(
            build(spec_of("six"), settings, first.append), build(spec_of("six"), settings, second.append)
        )
        assert one.path == other.path
        assert sorted((one.cached, other.cached)) == [False, True]

    run(both())
    (removed,) = evict(settings, max_bytes=0)
    assert removed.size > 1_000_000
    assert find(environment_key(spec_of("six")), settings) is None
    waiting, building = sorted((first, second), key=len)
    assert waiting == ["waiting for another build of this environment (0 s)"]
    assert "Installing packages as written: six" in building


def test_a_killed_builder_leaves_nothing_running_and_nothing_half_used(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    """uv and its children once went on after their builder was killed, and wrote into the next builder's venv."""
    links, slow = tmp_path / "links", tmp_path / "slow"
    slow.touch()
    write_source_package(
        links,
        "kwslow",
        f"while pathlib.Path({str(slow)!r}).exists(): time.sleep(0.05)",
    )
    settings = make_settings(UV_FIND_LINKS=str(links))
    code = (
        "import asyncio, os, envbuilder\n"
        "from fal._spec import EnvironmentSpec\n"
        f"spec = EnvironmentSpec({PYTHON!r}, (('kwslow',),))\n"
        "settings = envbuilder.BuildSettings.from_env(os.environ)\n"
        "asyncio.run(envbuilder.build(spec, settings, lambda line: print(line, flush=True)))\n"
    )
    environ = {
        **os.environ,
        "KEEPWARM_DATA": str(settings.environments.parent),
        "KEEPWARM_UV_CACHE_DIR": str(settings.uv_cache),
        "UV_FIND_LINKS": str(links),
    }
    builder = subprocess.Popen([sys.executable, "-c", code], env=environ, stdout=subprocess.DEVNULL)
    try:
        tree = wait_until(lambda: backend_and_parents(builder.pid), "the package's own build to run")
    finally:
        builder.send_signal(signal.SIGKILL)
        builder.wait()
    wait_until(lambda: all(gone(process.pid) for process in tree), "everything that the builder started to be ended")
    assert folders(settings.environments, "venv-"), "the kill came in the middle"
    key = environment_key(spec_of("kwslow"))
    assert find(key, settings) is None
    slow.unlink()
    built = run(Built.make(settings, "kwslow"))
    assert built.version("kwslow") == "1.0"
    assert folders(settings.environments, "venv-") == [built.environment.path.name]


def backend_and_parents(builder: int) -> list[psutil.Process]:
    """The builder's processes once the package's own build script is among them."""
    tree = psutil.Process(builder).children(recursive=True)
    return tree if any("build_wheel" in command_of(process) for process in tree) else []


# --- which versions ---------------------------------------------------------------------------------------------------


def test_pins_beside_floating_names_get_the_set_of_their_time(make_settings: MakeSettings) -> None:
    """environs 9.5.0 (January 2022) reads an attribute that marshmallow 4 no longer has: as written it cannot be
    imported any more. The runner's own packages of that time do not do, so they alone are newer."""
    built = run(Built.make(make_settings(), "environs==9.5.0", "marshmallow", smoke_imports=("environs",)))
    assert built.environment.resolved == "as of the pins 2022-02-13, runtime newer"
    assert (built.version("marshmallow") or "").startswith("3.")
    assert built.lines[-1].endswith("MB")
    assert "as of the pins 2022-02-13" in built.lines[-1]


def test_pins_alone_fall_back_to_their_time_when_they_do_not_import(make_settings: MakeSettings) -> None:
    built = run(Built.make(make_settings(), "environs==9.5.0", smoke_imports=("environs",)))
    assert built.environment.resolved == "as of the pins 2022-02-13, runtime newer"
    assert "has no attribute '__version_info__'" in built.text
    assert len(folders(built.settings.environments, "venv-")) == 1


def test_a_set_that_did_not_exist_then_is_taken_as_written(make_settings: MakeSettings) -> None:
    """annotated-doc appeared years after six 1.16.0."""
    built = run(Built.make(make_settings(), "six==1.16.0", "annotated-doc"))
    assert built.environment.resolved == "as written"
    assert "trying as written instead" in built.text


def test_the_app_says_the_date(make_settings: MakeSettings) -> None:
    built = run(Built.make(make_settings(), "marshmallow", exclude_newer="2024-06-10"))
    assert built.version("marshmallow") == "3.21.3"
    assert built.environment.resolved == "as of 2024-06-11T00:00:00Z (exclude_newer)"


def test_the_users_own_pin_of_a_runner_package_and_layers_in_order(make_settings: MakeSettings) -> None:
    spec = EnvironmentSpec(PYTHON, (("fal==1.0", "six==1.16.0"), ("pillow==11.3.0", "six==1.17.0")), ("idna<3.8",))
    lines: list[str] = []
    environment = run(build(spec, make_settings(), lines.append))
    assert {"pillow==11.3.0", "six==1.17.0", "idna==3.7"} <= set(environment.packages)
    assert any("brings its own fal" in line for line in lines)
    assert [line.split(" as ")[0] for line in lines if line.startswith("Installing")] == [
        "Installing layer 1 of 2",
        "Installing layer 2 of 2",
    ]


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["boom", "Failed to build six", "No solution found", "dns error"])
def test_the_next_step_is_a_step(text: str) -> None:
    """ "Next: see its words below" stood behind uv's words, which had come with the build's log, and was no step."""
    first, *words = failure(Finished(2, (text,)), ()).message.splitlines()
    assert "below" not in first
    assert " Next: " in first
    assert text in "\n".join(words)


def test_what_cannot_be_met_is_said_in_uvs_words(make_settings: MakeSettings) -> None:
    settings = make_settings()
    with pytest.raises(Unsatisfiable) as caught:
        run(Built.make(settings, "six==1.17.0", "six<1.10"))
    first, *rest = caught.value.message.splitlines()
    assert "you require six" in " ".join(rest)
    assert "Next: correct or loosen" in first
    assert any("No solution found" in line for line in caught.value.log_tail)
    assert folders(settings.environments, "venv-") == []


@pytest.mark.parametrize("steps", [1, 9])
def test_the_requirement_that_does_not_fit_is_named_however_long_the_reasoning(steps: int) -> None:
    """A proof of two sentences was too long: "uv explains why. Next: correct or loosen the lines named here." """
    parts = (f"part-{n}==1.0 depends on part-{n + 1}>=2, we conclude more." for n in range(steps))
    proof = "\n      And because ".join([*parts, "you require numpy<1.20, we can conclude that it cannot be."])
    said = f"error: No solution found when resolving\n  cause: Because {proof}\n\n      hint: no"
    first = failure(Finished(2, (said,)), ()).message.splitlines()[0]
    assert "Because part-0==1.0 depends on part-1>=2" in first
    assert "you require numpy<1.20" in first
    assert len(first) < 500
    assert "hint" not in first


def test_a_package_that_does_not_build_is_shown_with_its_own_words(make_settings: MakeSettings, tmp_path: Path) -> None:
    write_source_package(tmp_path / "links", "kwbad", "raise RuntimeError('\\x1b[31mgcc is missing')")
    with pytest.raises(SourceBuildFailed, match=r"did not build from its source.*Next: ") as caught:
        run(Built.make(make_settings(UV_FIND_LINKS=str(tmp_path / "links")), "kwbad"))
    assert "RuntimeError: gcc is missing" in caught.value.message
    forbidden = make_settings(UV_FIND_LINKS=str(tmp_path / "links"), KEEPWARM_BUILD_FROM_SOURCE="0")
    with pytest.raises(BuildError, match="kwbad"):
        run(Built.make(forbidden, "kwbad"))


def test_a_module_that_does_not_import_fails_the_build_with_its_own_traceback(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    write_source_package(tmp_path / "links", "kwbroken", module="def f():\n    from six import cached_download\nf()\n")
    settings = make_settings(UV_FIND_LINKS=str(tmp_path / "links"))
    with pytest.raises(SmokeImportFailed) as caught:
        run(Built.make(settings, "kwbroken", "six", smoke_imports=("kwbroken", "not_here")))
    first, *rest = caught.value.message.splitlines()
    assert first.startswith('Installed, but "kwbroken" does not import: ImportError: cannot import name')
    assert "Next: " in first
    assert any("kwbroken.py" in line for line in rest)
    assert not any("smoke_script" in line or "importlib" in line for line in rest)
    assert folders(settings.environments, "venv-") == []


def test_a_module_that_ends_the_process_is_named(make_settings: MakeSettings, tmp_path: Path) -> None:
    write_source_package(tmp_path / "links", "kwcrash", module="import os\nos.abort()\n")
    with pytest.raises(SmokeImportFailed, match=r'Importing "kwcrash" ended the Python process \(exit status 134\)'):
        run(Built.make(make_settings(UV_FIND_LINKS=str(tmp_path / "links")), "kwcrash", smoke_imports=("kwcrash",)))


def test_a_module_that_only_wants_a_gpu_fails_no_build_on_a_machine_without_one(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    module = 'raise ImportError("libcuda.so.1: cannot open shared object file")'
    write_source_package(tmp_path / "links", "kwgpu", module=module)
    settings = replace(make_settings(UV_FIND_LINKS=str(tmp_path / "links")), gpu_present=False)
    built = run(Built.make(settings, "kwgpu", smoke_imports=("kwgpu",)))
    assert '"kwgpu" needs a GPU to import and this machine has none; not checked' in built.text
    with pytest.raises(SmokeImportFailed, match=r"libcuda\.so\.1"):
        run(Built.make(replace(settings, gpu_present=True), "kwgpu", smoke_imports=("kwgpu", "kwgpu:name")))


def test_a_build_that_hangs_is_ended(make_settings: MakeSettings, tmp_path: Path) -> None:
    write_source_package(tmp_path / "links", "kwhang", "time.sleep(1000)")
    links = {"UV_FIND_LINKS": str(tmp_path / "links")}
    with pytest.raises(LimitReached, match="no output and no work for 2 s"):
        run(Built.make(make_settings(**links, KEEPWARM_BUILD_SILENCE_SECONDS="2"), "kwhang"))
    with pytest.raises(LimitReached, match="passed its limit of 2 s"):
        run(Built.make(make_settings(**links, KEEPWARM_BUILD_WALL_SECONDS="2"), "kwhang"))


def test_a_build_does_not_begin_on_a_full_disk(make_settings: MakeSettings) -> None:
    with pytest.raises(DiskFull, match=r"builds stop at .* Next: free some room"):
        run(Built.make(make_settings(KEEPWARM_BUILD_DISK_FLOOR_BYTES=str(1 << 60)), "six"))


def test_a_folder_that_cannot_be_used_is_said_so(make_settings: MakeSettings, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where a folder should be")
    with pytest.raises(BuildError, match=r"could not use its folder: .*data.* Next: check its owner"):
        run(Built.make(make_settings(), "six"))


@pytest.mark.parametrize("line", ["-r requirements.txt", "--trusted-host=evil", "six=1"])
def test_refused_lines_start_nothing(make_settings: MakeSettings, line: str) -> None:
    settings = make_settings()
    with pytest.raises(BadRequirement, match="Next: "):
        run(Built.make(settings, line))
    assert not settings.environments.exists()


def test_a_python_that_is_not_here_is_answered_with_those_that_are(make_settings: MakeSettings) -> None:
    with pytest.raises(NoInterpreter, match=rf"has no Python 3\.99; it has .*{PYTHON}\."):
        run(build(EnvironmentSpec("3.99"), make_settings(), lambda line: None))
    for bad in ("3.9", "python3", "3.11; rm"):
        with pytest.raises(BadRequirement, match="Next: "):
            run(build(EnvironmentSpec(bad), make_settings(), lambda line: None))


def test_an_index_that_does_not_answer_is_not_called_a_wrong_requirement(make_settings: MakeSettings) -> None:
    settings = make_settings(UV_DEFAULT_INDEX="http://user:secret@127.0.0.1:9/simple", UV_HTTP_RETRIES="0")
    with pytest.raises(BuildError, match=r"could not be reached. Next: check the builder's network") as caught:
        run(Built.make(settings, "kw-never-cached"))
    assert "secret" not in caught.value.message + "".join(caught.value.log_tail)


# --- heavy ------------------------------------------------------------------------------------------------------------


@pytest.mark.heavy
def test_torch_on_a_machine_without_a_gpu_is_the_cpu_build(shared_builds: Path) -> None:
    """The index's torch brings gigabytes of CUDA; where find-links offers a CPU wheel, no nvidia package may come."""
    settings = BuildSettings.from_env({**os.environ, "KEEPWARM_DATA": str(shared_builds)})
    built = run(Built.make(settings, "torch==2.13.0", "diffusers>=0.42,<0.43", "transformers>=5,<6", "accelerate"))
    assert built.version("torch") == "2.13.0+cpu"
    assert not [package for package in built.environment.packages if package.startswith(("nvidia", "triton"))]
