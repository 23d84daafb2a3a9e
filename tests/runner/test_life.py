"""From Hello to the exit code: starts that fail, stops in order, and who answers when user code holds everything."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from fal._runner.protocol import Log, Ping, Pong, Ready, Response, StartFailed

from tests.runner.harness import Runner, spawn, start

SIMPLE = """
import fal

class Demo(fal.App):
    @fal.endpoint("/")
    def run(self) -> str:
        return "ok"
"""

NEVER_READY = SIMPLE.replace(
    "    @fal",
    """    def setup(self):
        import time
        print("in setup")
        time.sleep(60)

    @fal""",
)


def _fails(runner: Runner) -> StartFailed:
    failed = runner.expect(StartFailed)
    assert runner.wait() == 3
    return failed


def test_setup_that_raises(tmp_path: Path) -> None:
    source = """
import fal

class Demo(fal.App):
    def setup(self):
        print("loading")
        raise FileNotFoundError("/data/weights.bin is not there")

    @fal.endpoint("/")
    def run(self): ...
"""
    with start(tmp_path, source) as runner:
        failed = _fails(runner)
        assert (failed.stage, failed.error) == ("setup", "FileNotFoundError: /data/weights.bin is not there")
        assert failed.traceback.startswith("Traceback")
        assert f'File "{tmp_path}/bundle/app.py", line 7, in setup' in failed.traceback
        assert "fal/_runner" not in failed.traceback
        assert runner.logs("STDOUT") == ["loading"]


@pytest.mark.parametrize(
    ("source", "class_name", "error"),
    [
        ("import fal\n1 / 0\n", "Demo", "ZeroDivisionError: division by zero"),
        ("import fal\ndef broken(:\n", "Demo", "SyntaxError: invalid syntax (app.py, line 2)"),
        (
            "import no_such_package\n",
            "Demo",
            "ModuleNotFoundError: No module named 'no_such_package' (add the package that provides it to requirements, "
            "or 'no_such_package' to local_python_modules)",
        ),
        (SIMPLE, "Demmo", "Demmo is not defined in app.py: did you mean 'Demo'?"),
        ("import fal\nDemo = 3\n", "Demo", "Demo is not a fal.App in app.py: it defines no fal.App"),
        ("raise SystemExit(0)\n", "Demo", "SystemExit: 0"),
        ("import fal\nclass Demo(fal.App): ...\n", "Demo", "ValueError: Demo has no endpoint"),
    ],
)
def test_files_that_do_not_import(tmp_path: Path, source: str, class_name: str, error: str) -> None:
    with start(tmp_path, source, class_name) as runner:
        failed = _fails(runner)
    assert failed.stage == "import"
    assert failed.error.startswith(error)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with start(tmp_path, None) as runner:
        assert _fails(runner).error == "the bundle has no file 'app.py'"


def test_an_async_setup_is_awaited_and_state_is_kept(tmp_path: Path) -> None:
    source = """
import asyncio, os
import fal

class Demo(fal.App):
    async def setup(self):
        await asyncio.sleep(0)
        self.seen = [os.environ["FAL_RUNNER_STATE"], os.environ["IS_ISOLATE_AGENT"], os.environ["FAL_APP_NAME"]]

    @fal.endpoint("/")
    def run(self) -> list[str]:
        return [*self.seen, os.environ["FAL_RUNNER_STATE"], os.getcwd()]
"""
    with start(tmp_path, source) as runner:
        runner.ready()
        assert json.loads(runner.call().body) == ["SETUP", "1", "demo", "RUNNING", str(tmp_path / "bundle")]


def test_a_signal_wakes_a_loop_that_was_about_to_wait(tmp_path: Path) -> None:
    """SIGTERM came after the loop's last bytecode and before its system call: handle_exit() ran half a minute later,
    when the next message woke the loop."""
    source = """
import signal
import fal

class Demo(fal.App):
    @fal.endpoint("/")
    async def run(self) -> bool:
        wakes = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(wakes)
        return wakes != -1
"""
    with start(tmp_path, source) as runner:
        runner.ready()
        runner.request()
        assert runner.expect(Response).body == b"true"


def test_sigterm_lets_requests_finish_and_ends_in_order(tmp_path: Path) -> None:
    source = """
import os, threading
import fal

class Demo(fal.App):
    def setup(self):
        self.leaving = threading.Event()

    @fal.endpoint("/")
    def run(self) -> str:
        print("running")
        self.leaving.wait(30)
        print("finished")
        return "ok"

    def handle_exit(self):
        print("handle_exit", os.environ["FAL_RUNNER_STATE"])
        self.leaving.set()

    async def teardown(self):
        print("teardown", os.environ["FAL_RUNNER_STATE"])
"""
    with start(tmp_path, source) as runner:
        runner.ready()
        runner.request()
        runner.expect(Log)
        runner.process.send_signal(signal.SIGTERM)
        assert runner.expect(Response).body == b'"ok"'
        with pytest.raises(EOFError):
            runner.expect(Ready)
        assert runner.wait() == 0
        assert runner.logs() == ["running", "handle_exit RUNNING", "finished", "teardown TERMINATING"]


def test_handle_exit_reaches_an_app_that_holds_the_loop(tmp_path: Path) -> None:
    """A handler that computes inside `async def` blocks the loop; it can only learn of the stop from handle_exit."""
    source = """
import time
import fal

class Demo(fal.App):
    leave = False

    @fal.endpoint("/")
    async def run(self) -> str:
        print("running")
        while not self.leave:
            time.sleep(0.01)
        return "left"

    def handle_exit(self):
        self.leave = True
        raise RuntimeError("not fatal")
"""
    with start(tmp_path, source) as runner:
        runner.ready()
        runner.request()
        runner.expect(Log)
        runner.send(Ping(1))
        assert runner.expect(Pong).n == 1, "the watcher answers although the loop is held"
        runner.process.send_signal(signal.SIGTERM)
        assert runner.expect(Response).body == b'"left"'
        assert runner.wait() == 0
        with pytest.raises(EOFError):
            runner.expect(Ready)
        assert "RuntimeError: not fatal" in runner.logs("ERROR")


def test_ping_is_answered_during_setup(tmp_path: Path) -> None:
    source = SIMPLE.replace(
        "    @fal",
        """    def setup(self):
        import os, time
        print("in setup")
        while not os.path.exists("go"):
            time.sleep(0.01)

    @fal""",
    )
    with start(tmp_path, source) as runner:
        runner.expect(Log)
        runner.send(Ping(3))
        assert runner.expect(Pong).n == 3
        assert not runner.all(Ready)
        (tmp_path / "bundle" / "go").touch()
        runner.ready()


def test_sigterm_during_setup_ends_at_once(tmp_path: Path) -> None:
    source = SIMPLE.replace(
        "    @fal", "    def setup(self):\n        print('x')\n        import time; time.sleep(60)\n\n    @fal"
    )
    with start(tmp_path, source) as runner:
        runner.expect(Log)
        runner.process.send_signal(signal.SIGTERM)
        assert runner.wait() == -signal.SIGTERM


def test_a_runner_whose_supervisor_vanished_ends(tmp_path: Path) -> None:
    source = (
        SIMPLE
        + """
    def teardown(self):
        open("teardown", "w").close()
"""
    )
    with start(tmp_path, source) as runner:
        runner.ready()
        runner.sock.close()
        assert runner.wait() == 0
    assert (tmp_path / "bundle" / "teardown").exists()


def test_a_runner_whose_supervisor_vanished_during_setup_ends(tmp_path: Path) -> None:
    source = SIMPLE.replace(
        "    @fal", "    def setup(self):\n        print('x')\n        import time; time.sleep(60)\n\n    @fal"
    )
    with start(tmp_path, source) as runner:
        runner.expect(Log)
        runner.sock.close()
        assert runner.wait() == 1


def test_no_start_at_all(tmp_path: Path) -> None:
    with spawn(tmp_path) as runner:
        runner.sock.close()
        assert runner.wait() == 0


def test_a_background_thread_does_not_keep_the_runner(tmp_path: Path) -> None:
    source = """
import atexit, threading
import fal

atexit.register(lambda: open("atexit", "w").close())

class Demo(fal.App):
    def setup(self):
        threading.Thread(target=threading.Event().wait).start()

    @fal.endpoint("/")
    def run(self): ...
"""
    with start(tmp_path, source) as runner:
        runner.ready()
        runner.process.send_signal(signal.SIGTERM)
        assert runner.wait() == 0
    assert (tmp_path / "bundle" / "atexit").exists()


def test_modules_beside_the_file_and_packages(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    (bundle / "pack").mkdir(parents=True)
    (bundle / "pack" / "__init__.py").touch()
    (bundle / "pack" / "near.py").write_text("VALUE = 'near'\n")
    (bundle / "top.py").write_text("VALUE = 'top'\n")
    source = """
import fal
import top
from .near import VALUE
from pack.near import VALUE as AGAIN

class Demo(fal.App):
    @fal.endpoint("/")
    def run(self) -> list[str]:
        return [VALUE, AGAIN, top.VALUE, __name__, type(self).__module__]
"""
    with start(tmp_path, source, entry_file="pack/app.py") as runner:
        runner.ready()
        assert json.loads(runner.call().body) == ["near", "near", "top", "pack.app", "pack.app"]


def test_files_with_the_names_of_modules_in_use(tmp_path: Path) -> None:
    """The app's own file called json.py, beside a socket.py and a msgpack.py, must not break the runner itself."""
    (tmp_path / "bundle").mkdir()
    for name in ("socket.py", "msgpack.py", "email.py"):
        (tmp_path / "bundle" / name).write_text("raise RuntimeError('loaded instead of the real one')\n")
    with start(tmp_path, SIMPLE, entry_file="json.py") as runner:
        runner.ready()
        assert runner.call().body == b'"ok"'


def test_a_served_function(tmp_path: Path) -> None:
    source = """
import fal
from pydantic import BaseModel

class Input(BaseModel):
    n: int

def load():
    return 40

@fal.function(serve=True, setup_function=load)
def add(base, given: Input) -> int:
    return base + given.n
"""
    with start(tmp_path, source, "add") as runner:
        runner.ready()
        assert runner.call(b'{"n": 2}').body == b"42"


def test_native_output_stays_on_the_pipes_and_children_do_not_use_the_socket(tmp_path: Path) -> None:
    """A forked child that prints used to write frames into the middle of its parent's."""
    source = """
import os
import fal

class Demo(fal.App):
    @fal.endpoint("/")
    def run(self) -> str:
        os.write(1, b"native\\n")
        pid = os.fork()
        if pid == 0:
            print("from the child")
            os._exit(0)
        os.waitpid(pid, 0)
        print("from the parent")
        return "ok"
"""
    with start(tmp_path, source) as runner:
        runner.ready()
        assert runner.call().status == 200
        assert runner.logs("STDOUT") == ["from the parent"]
        runner.sock.close()
        assert runner.process.stdout is not None
        assert runner.process.stdout.read() == b"native\nfrom the child\n"


def test_a_slow_supervisor_does_not_stop_the_app(tmp_path: Path) -> None:
    source = """
import fal

class Demo(fal.App):
    @fal.endpoint("/")
    def run(self) -> str:
        for number in range(30_000):
            print("line", number)
        return "ok"
"""
    with start(tmp_path, source) as runner:
        runner.ready()
        runner.request()
        response = runner.expect(Response)
        assert response.status == 200
        numbers = [int(line.removeprefix("line ")) for line in runner.logs("STDOUT")]
        assert numbers[:1000] == list(range(1000))
        assert numbers == sorted(set(numbers)), "a flood loses lines; those that are left keep their order"


def test_many_threads_write_whole_frames(tmp_path: Path) -> None:
    source = """
import threading
import fal

class Demo(fal.App):
    @fal.endpoint("/")
    def run(self) -> str:
        def talk(name):
            for number in range(300):
                print(name, number)
        threads = [threading.Thread(target=talk, args=(name,)) for name in "abcd"]
        [t.start() for t in threads]
        [t.join() for t in threads]
        return "ok"
"""
    with start(tmp_path, source) as runner:
        runner.ready()
        runner.call()
        lines = runner.logs("STDOUT")
    for name in "abcd":
        assert [line for line in lines if line[0] == name] == [f"{name} {number}" for number in range(300)]
