"""The process that holds user code: how it is started, what it sees, how it is ended.

Owns its environment variables, its process group and its one socket. Leaves what is said on that socket to
``runner_link``. Standard library only: it is started before anything heavier is imported.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import IO

from gpu_worker import process_tree
from gpu_worker.assignment import Assignment
from gpu_worker.child import AdoptedChild
from gpu_worker.runner_group import RunnerGroup

#: Names that runners inherit from the host without being asked; everything else must be on the operator's list.
INHERITED = ("LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "CUDA_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR", "TMPDIR")
#: Socket and pipes of a runner that a zygote forked, as its supervisor finds them open.
INHERITED_FDS = (3, 4, 5)
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def passed_environ(environ: Mapping[str, str], names: tuple[str, ...]) -> dict[str, str]:
    """What runners get of the host's environment: PATH, INHERITED and the operator's ``names``.

    Names of our own are never passed, whatever the list says: they hold the store's address and its password.
    """
    wanted = dict.fromkeys(("PATH", *INHERITED, *names))
    return {name: environ[name] for name in wanted if name in environ and not name.startswith("KEEPWARM_")}


def runner_environ(assignment: Assignment, app_data: str | None = None) -> dict[str, str]:
    """The whole environment of a runner; nothing is inherited but what ``passed_environ`` chose.

    PYTHONDONTWRITEBYTECODE is absent on purpose: with it every start compiles every module again.

    Args:
        app_data: the path at which the runner sees ``assignment.home_dir``, when it is another one.
    """
    home = Path(app_data or assignment.home_dir)
    cache = home / ".cache"
    given = assignment.passed_environ
    owner, _, name = assignment.app.partition("/")
    environ = {
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "HF_HOME": str(cache / "huggingface"),
        "TORCH_HOME": str(cache / "torch"),
        "XDG_CACHE_HOME": str(cache),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "torchinductor"),
    }
    environ |= given
    environ |= {
        "PATH": os.pathsep.join((str(Path(assignment.python).parent), given.get("PATH", _DEFAULT_PATH))),
        "VIRTUAL_ENV": assignment.environment_dir,
        "PYTHONPATH": assignment.sdk_dir,
        "PYTHONUNBUFFERED": "1",
        "PYTHONNOUSERSITE": "1",
        "PYTHONFAULTHANDLER": "1",
        # NVML's order is the bus order; CUDA's default is "fastest first", and the two would name different cards.
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, assignment.gpu_ids)),
        "IS_ISOLATE_AGENT": "1",
        "FAL_RUNNER_STATE": "SETUP",
        "FAL_APP_NAME": name,
        "FAL_APP_OWNER": owner,
        "FAL_JOB_ID": assignment.worker_id,
        "FAL_REVISION": assignment.revision,
        "FAL_MACHINE_TYPE": assignment.machine_type,
        "FAL_DATA_DIR": str(home),
    }
    environ |= {name: value for name, value in assignment.platform_environ.items() if name not in given}
    return environ


def model_folders(assignment: Assignment, app_data: str | None = None) -> list[str]:
    """Where the runner's models and caches lie, as this process sees them too. ``app_data``: as ``runner_environ``."""
    environ = runner_environ(assignment, app_data)
    return list(dict.fromkeys(environ[name] for name in ("FAL_DATA_DIR", "HF_HOME", "TORCH_HOME", "XDG_CACHE_HOME")))


def start_message(assignment: Assignment) -> bytes:
    """The runner's first message."""
    from fal._runner.protocol import Start, encode

    a = assignment
    start = Start(
        app=a.app,
        entry_file=a.entry_file,
        class_name=a.class_name,
        bundle_dir=a.bundle_dir,
        files_dir=a.files_dir,
        revision=a.revision,
        worker_id=a.worker_id,
        machine_type=a.machine_type,
        max_multiplexing=a.max_multiplexing,
        cpu_fallback_for=a.cpu_fallback_for,
        storage_hosts=list(a.storage_hosts),
        secrets=dict(a.secrets),
        for_calls=a.for_calls,
        setup_function=a.setup_function,
        exposed_port=a.exposed_port,
    )
    return encode(start)


class RunnerProcess:
    """A started runner: leader of its own process group, one socket of ours, two pipes for what it prints.

    ``started_at`` is on the monotonic clock; ``environ`` is what it was started with; ``group`` bounds what it and all
    that it starts may take, None where nothing does.

    Must be started from the main thread: the kernel's parent-death signal follows the thread (see process_tree).
    """

    def __init__(
        self,
        popen: subprocess.Popen[bytes] | AdoptedChild,
        control: socket.socket,
        environ: Mapping[str, str],
        group: RunnerGroup | None = None,
    ) -> None:
        self._popen = popen
        self.group = group
        self.environ = environ
        self.control = control
        self.pid = popen.pid
        self.started_at = time.monotonic()
        self._buried = False

    @classmethod
    def start(
        cls, assignment: Assignment, app_data: str | None = None, group: RunnerGroup | None = None
    ) -> RunnerProcess:
        """Start it in its group; nothing has been said to it yet. ``app_data``: as ``runner_environ``.

        Raises:
            OSError: the interpreter or the bundle's folder is not there.
        """
        _make_folders(assignment)
        environ = runner_environ(assignment, app_data)
        ours, theirs = socket.socketpair()
        try:
            popen = subprocess.Popen(
                [assignment.python, "-m", "fal._runner", "--fd", str(theirs.fileno())],
                # Not the bundle: `-m` puts the working directory first on the path, and an app's own fal.py or
                # msgpack.py would be loaded instead of ours. The runner goes there once it is told where (Start).
                cwd=assignment.sdk_dir,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
                process_group=0,
                preexec_fn=partial(_between_fork_and_exec, group) if sys.platform == "linux" else None,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        return cls(popen, ours, environ, group)

    @classmethod
    def take_over(
        cls,
        assignment: Assignment,
        app_data: str | None,
        born_in: dict[str, str],
        group: RunnerGroup | None = None,
    ) -> RunnerProcess:
        """Turn the process that a zygote forked into the runner; its socket and pipes are open as INHERITED_FDS.

        Args:
            born_in: the namespaces that it and this process were born in; it is led into those of now.
            group: what it is put into, before it runs anything of the app's.

        Raises:
            OSError: it has ended.
        """
        assert assignment.runner_pid is not None
        control, output, errors = INHERITED_FDS
        child = AdoptedChild(assignment.runner_pid, os.fdopen(output, "rb", 0), os.fdopen(errors, "rb", 0))
        for descriptor in INHERITED_FDS:
            os.set_inheritable(descriptor, False)
        ours = socket.socket(fileno=control)
        _make_folders(assignment)
        environ = runner_environ(assignment, app_data)
        word = {
            "parent": os.getpid(),
            "environ": environ,
            "cwd": assignment.sdk_dir,
            "bundle_dir": assignment.bundle_dir,
            "entry_file": assignment.entry_file,
        }
        text = json.dumps(word).encode()
        namespaces = [os.open(f"/proc/self/ns/{kind}", os.O_RDONLY) for kind in _namespaces_unlike(born_in)]
        try:
            _put_into(group, child.pid)
            socket.send_fds(ours, [len(text).to_bytes(4, "big")], namespaces)
            ours.sendall(text)
        except OSError:
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
            ours.close()
            raise
        finally:
            for descriptor in namespaces:
                os.close(descriptor)
        ours.setblocking(False)
        return cls(child, ours, environ, group)

    def tell_start(self, start: bytes) -> None:
        """Its first message, sent before anything else of ours is imported. A runner that has ended is noticed later.

        The socket is empty still, so that it takes the message as a whole.
        """
        self.control.setblocking(True)
        with contextlib.suppress(OSError):
            self.control.sendall(start)
        self.control.setblocking(False)

    def open_pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        """Its standard output and error."""
        assert self._popen.stdout is not None
        assert self._popen.stderr is not None
        return self._popen.stdout, self._popen.stderr

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._popen.poll()

    def wait(self) -> int:
        """Wait for its end; the exit code, negative for a signal."""
        return self._popen.wait()

    def terminate(self) -> None:
        """Ask it to leave: the app's ``handle_exit`` and ``teardown`` run."""
        with contextlib.suppress(ProcessLookupError):
            self._popen.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it and what it has started now. Its process group only one more time once it has been reaped: the number
        may be reused.
        """
        if not self._buried:
            self._buried = self._popen.returncode is not None
            process_tree.kill_group(self.pid)
        if self.group is not None:
            self.group.kill()

    def describe_end(self) -> str:
        """How it has ended, as the reason of all that follows."""
        code = self._popen.returncode
        if code == -signal.SIGKILL and self.group is not None and self.group.has_killed():
            return self.group.out_of_memory
        return f"the runner ended with {process_tree.describe_exit(code or 0)}"

    @property
    def limited(self) -> bool:
        """Whether it is in the group that was made for it, if one was, or has ended."""
        return self.group is None or self.group.holds(self.pid) or self.poll() is not None

    def remove_group(self) -> None:
        """The last thing, once nothing that it has started can be left."""
        if self.group is not None:
            self.group.remove()


def _make_folders(assignment: Assignment) -> None:
    Path(assignment.files_dir).mkdir(parents=True, exist_ok=True, mode=0o700)
    (Path(assignment.home_dir) / ".cache").mkdir(parents=True, exist_ok=True)


def _put_into(group: RunnerGroup | None, pid: int) -> None:
    """Where the kernel refuses it the runner runs all the same; ``limited`` says so."""
    if group is not None:
        with contextlib.suppress(OSError):
            group.add(pid)


def _namespaces_unlike(others: dict[str, str]) -> list[str]:
    """Of the kinds that decide what a process sees of the file system, those in which ours are not ``others``."""
    return [kind for kind, ours in process_tree.namespaces("self").items() if ours != others[kind]]


def _between_fork_and_exec(group: RunnerGroup | None) -> None:
    _put_into(group, 0)
    process_tree.die_with_parent(signal.SIGKILL)
    process_tree.prefer_for_oom_killer()
