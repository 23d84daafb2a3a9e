"""Functions called from one's own machine, through a whole platform."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from fal import _remote_calls
from fal._calls import RemoteTraceback
from fal.exceptions import FalSerializationError, FalServerlessError

from tests.support.platform import BIN, PlatformUnderTest, command_environ
from tests.support.waiting import wait_until
from tests.system.apps.functions import Note, OutOfTune, Tone, compare, crash, large, length, never, play, sleep, where


@pytest.fixture
def shell(platform: PlatformUnderTest, monkeypatch: pytest.MonkeyPatch) -> PlatformUnderTest:
    """This process as a shell that knows the platform."""
    for name, value in platform.shell().items():
        monkeypatch.setenv(name, value)
    return platform


NOTE = Note(tone=Tone.HIGH, lengths={(1, 4): 0.5})


def test_a_call_returns_its_value_and_shows_what_it_prints(
    shell: PlatformUnderTest, capfd: pytest.CaptureFixture[str]
) -> None:
    assert play(NOTE, times=2) == [NOTE, NOTE]
    heard = capfd.readouterr()
    assert "Build complete" in heard.err
    assert "playing high" in heard.err
    assert heard.out == "", "standard output is the script's own"
    play(NOTE)
    again = capfd.readouterr().err
    assert "Build" not in again, "the app is there already"
    assert again.count("playing high") == 1


def test_an_exception_is_the_callers(shell: PlatformUnderTest) -> None:
    with pytest.raises(OutOfTune, match=r"high is out of tune by 0\.5") as raised:
        play(NOTE, off_by=0.5)
    assert (raised.value.note, raised.value.by) == (NOTE, 0.5)
    assert isinstance(raised.value.__cause__, RemoteTraceback)
    assert "raise OutOfTune(note, by=off_by)" in str(raised.value.__cause__)


def test_settings_choose_another_app(shell: PlatformUnderTest) -> None:
    prefix, pid, machine = where()
    assert (prefix != sys.prefix, machine) == (True, "XS")
    assert where.on(keep_alive=30)()[1] == pid, "the same settings are the same app"
    assert where.on(machine_type="S")()[1:] != (pid, "XS")
    with pytest.raises(ValueError, match="did you mean 'machine_type'"):
        where.on(machine_tpe="S")


def test_the_setup_function_is_called_once_per_runner(
    shell: PlatformUnderTest, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second = compare(2), compare(count=3)
    assert (first["calls"], second) == (2, {"pid": first["pid"], "calls": 5})
    assert capfd.readouterr().err.count("struck the fork") == 1
    here = compare.run_local(1)
    assert here["calls"] == 1
    assert here["pid"] != first["pid"]


def test_submitted_calls_run_at_the_same_time(shell: PlatformUnderTest) -> None:
    sleep(0)
    futures = [sleep.submit(1.0) for _ in range(4)]
    ends = [future.result(60) for future in futures]
    assert max(ends) - min(ends) < 1.0, "one after the other they would take four seconds"
    begun = play.spawn(NOTE)
    assert begun.wait(60) == [NOTE]
    assert begun.url == f"{shell.url}/{begun.application}"
    assert begun.logs.get(timeout=5)["message"] == "playing high"
    failed = play.spawn(NOTE, off_by=1)
    assert isinstance(failed.future.exception(60), OutOfTune)


def test_only_the_owner_can_call(shell: PlatformUnderTest) -> None:
    begun = length.spawn(b"abc")
    assert begun.return_value == 3
    with shell.client() as client:
        client.headers.pop("authorization")
        assert client.post(begun.url, content=b"").status_code == 401


def test_what_is_too_large_or_cannot_be_sent(shell: PlatformUnderTest) -> None:
    assert len(large(5_000_000)) == 5_000_000
    assert length(bytes(5_000_000)) == 5_000_000
    with pytest.raises(FalSerializationError, match=r"the value that large\(\) returns takes 65.0 MiB; at most 64 MiB"):
        large(65 * 2**20)
    with pytest.raises(FalSerializationError, match=r"the arguments of length\(\) take 70.0 MiB.*MAX_BODY_BYTES"):
        length(bytes(70 * 2**20))
    with pytest.raises(TypeError, match=r"argument 'data' of length\(\) holds a value of type object"):
        length(object())
    with pytest.raises(TypeError, match=r"length\(\): missing a required argument: 'data'"):
        length()


def test_failures_of_the_runner_are_the_platforms_words(shell: PlatformUnderTest) -> None:
    with pytest.raises(FalServerlessError, match=r"crash\(\) could not be run \(503\).*exit status 7") as ended:
        crash()
    assert ended.value.status_code == 503
    with pytest.raises(FalServerlessError, match=r"never\(\) could not be run.*the fork is bent"):
        never()


def test_a_call_that_takes_too_long_is_ended(shell: PlatformUnderTest) -> None:
    with pytest.raises(FalServerlessError, match=r"sleep\(\) could not be run \(504\).*1 s") as ended:
        sleep.on(request_timeout=1)(60)
    assert ended.value.status_code == 504


def test_an_app_that_was_deleted_is_made_again(shell: PlatformUnderTest) -> None:
    begun = length.spawn(b"ab")
    assert begun.return_value == 2
    shell.fal("apps", "delete", begun.application, "--yes")
    again = length.spawn(b"abc")
    assert again.return_value == 3
    assert again.application != begun.application


SCRIPT = """
import sys
import fal

@fal.function(requirements=[])
def greet(name):
    print(f"about to greet {name}")
    return f"hello {name}"

print(greet("Ada"), file=open(sys.argv[1], "w"))
greet("Grace")
"""


def run_script(folder: Path, environ: dict[str, str], source: str = SCRIPT) -> subprocess.CompletedProcess[str]:
    file = folder / "script.py"
    file.write_text(source)
    return subprocess.run(
        [sys.executable, str(file), str(folder / "told.txt")], env=environ, capture_output=True, text=True, timeout=150
    )


def test_a_script_that_calls_at_its_top_level_leaves_nothing_behind(
    platform: PlatformUnderTest, tmp_path: Path
) -> None:
    """The first lines of fal's own tutorial: the file is a script here, and must only be read on the runner."""
    done = run_script(tmp_path, platform.shell())
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "told.txt").read_text() == "hello Ada\n"
    assert [line[13:] for line in done.stderr.splitlines() if "greet" in line] == [
        "about to greet Ada",
        "about to greet Grace",
    ]
    assert "greet" not in platform.fal("apps", "list", "--all").stdout


def test_without_a_platform_one_is_started_and_gone_with_the_script(home: Path) -> None:
    done = run_script(home, command_environ(home))
    assert done.returncode == 0, done.stderr
    assert "Starting a platform for this run" in done.stderr
    assert (home / "told.txt").read_text() == "hello Ada\n"
    wait_until(lambda: not (home / ".keepwarm" / "platform.json").exists(), "the platform to leave")


def test_a_build_that_fails_is_told_to_everybody_who_waits_for_it(platform: PlatformUnderTest, tmp_path: Path) -> None:
    source = SCRIPT.replace("requirements=[]", "requirements=['no-such-package-anywhere']").partition("print(greet")[0]
    source += """
from fal.api import FalServerlessError
futures = [greet.submit("a"), greet.submit("b")]
for future in futures:
    assert isinstance(future.exception(), FalServerlessError), future
    assert "could not be built" in str(future.exception())
"""
    done = run_script(tmp_path, platform.shell(), source)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Building environment...") == 1


def test_arrays_and_what_is_missing_here(
    platform: PlatformUnderTest, tmp_path: Path, start_platform: Callable[..., PlatformUnderTest]
) -> None:
    source = """
import fal.api

@fal.function(requirements=["numpy"])
def double(values=None):
    import numpy
    return numpy.arange(3) if values is None else values * 2

try:
    double()
except fal.api.FalMissingDependencyError as error:
    print(error)
"""
    done = run_script(tmp_path, platform.shell(), source)
    assert done.stdout == "the value that double() returned holds a numpy array, and numpy is not installed here.\n", (
        done.stderr
    )
    folder = tmp_path / "here"
    subprocess.run(
        [str(BIN / "uv"), "pip", "install", "--quiet", "--python", sys.executable, "--target", str(folder), "numpy"],
        check=True,
        timeout=150,
    )
    source = (
        source.partition("try:")[0]
        + """
import numpy
found = double(numpy.array([[1, 2], [3, 4]], dtype=">i2"))
print(found.tolist(), found.dtype.kind, double(numpy.float32(1.5)))
"""
    )
    done = run_script(tmp_path, platform.shell({"PYTHONPATH": str(folder)}), source)
    assert done.stdout.split() == ["[[2,", "4],", "[6,", "8]]", "i", "3.0"], done.stderr


def test_a_function_without_a_file_is_refused(platform: PlatformUnderTest) -> None:
    code = "import fal\n@fal.function()\ndef f(): ...\nf()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=platform.shell(), capture_output=True, text=True, timeout=60, check=False
    )
    assert "f() lies in no file, so that it cannot be sent to the platform" in done.stderr
    assert "write it into a .py file" in done.stderr


def test_a_caller_who_stops_waiting_cancels_its_call(platform: PlatformUnderTest, tmp_path: Path) -> None:
    source = """
import time
import fal

@fal.function()
def forever():
    print("begun")
    time.sleep(12)

if __name__ == "__main__":
    forever()
"""
    file = tmp_path / "forever.py"
    file.write_text(source)
    process = subprocess.Popen(
        [sys.executable, str(file)], env=platform.shell(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    with process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "begun" in line:
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(60) != 0, "".join([*lines, rest])
    assert "KeyboardInterrupt" in rest
    # The app was once left to its session: the connection had been closed before the call that removes it.
    assert "Exception ignored" not in rest
    wait_until(lambda: "forever" not in platform.fal("apps", "list", "--all").stdout, "its app to be gone")


@pytest.fixture(autouse=True, scope="module")
def _apps_end_with_these_tests() -> object:
    yield
    _remote_calls._runs().end()
    for thread in threading.enumerate():
        if thread.name.startswith("fal-session"):
            thread.join(10)
