"""The services of a platform: what each is called, how it is started, and a child process that is kept alive.

The same commands run under ``keepwarm up``, in containers (``keepwarm service NAME``) and in the tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

#: service name -> module that runs it. Stopped in this order: first what takes work in, last what others lean on.
SERVICE_MODULES: dict[str, str] = {
    "gateway": "gateway",
    "agent": "gpu_worker",
    "scheduler": "scheduler",
    "jobs": "keepwarm.jobs",
}
#: Seconds a service may take to stop by itself. The agent drains workers, so it gets their grace on top.
STOP_GRACE = {"gateway": 10.0, "agent": 45.0, "scheduler": 10.0, "jobs": 15.0, "redis": 20.0}

_PR_SET_PDEATHSIG = 1


def service_command(name: str) -> list[str]:
    """The command line of a service; -P, so that nothing in the operator's current folder shadows our modules."""
    return [sys.executable, "-P", "-m", SERVICE_MODULES[name]]


def die_with_parent() -> None:
    """Ask the kernel to end this process when the thread that started it ends (Linux; elsewhere nothing).

    Runs between fork and exec. ``keepwarm up`` starts children from its main thread only, because the kernel watches
    the starting thread, not the process.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@dataclass
class Child:
    """One child process, started again with a growing pause whenever it ends by itself.

    Args:
        name: for messages.
        start: starts the process and returns it.
        report: takes one line for the operator.
    """

    name: str
    start: Callable[[], Awaitable[asyncio.subprocess.Process]]
    report: Callable[[str], None]
    process: asyncio.subprocess.Process | None = None
    stopping: bool = False
    restarts: int = 0
    _pause: float = field(default=0.2, repr=False)

    async def keep_alive(self) -> None:
        """Run the process until ``stop``; returns when it was stopped."""
        while True:
            started = time.monotonic()
            self.process = await self.start()
            code = await self.process.wait()
            if self._told_to_stop():
                return
            lived = time.monotonic() - started
            self._pause = 0.2 if lived > 30 else min(self._pause * 2, 10.0)
            self.restarts += 1
            self.report(f"{self.name} ended with {describe_exit(code)}; starting it again in {self._pause:.1f} s")
            await asyncio.sleep(self._pause)
            if self._told_to_stop():
                return

    def _told_to_stop(self) -> bool:
        return self.stopping

    async def stop(self) -> None:
        """SIGTERM, the service's grace, then SIGKILL. Safe to call twice."""
        self.stopping = True
        process = self.process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_GRACE.get(self.name, 10.0))
        except TimeoutError:
            self.report(f"{self.name} did not stop within {STOP_GRACE.get(self.name, 10.0):.0f} s; killing it")
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def describe_exit(code: int) -> str:
    """``exit status 3`` or ``signal SIGKILL``."""
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


async def spawn(
    command: Sequence[str], environ: Mapping[str, str], pass_fds: Sequence[int] = ()
) -> asyncio.subprocess.Process:
    """Start a service in a session of its own, so that a terminal's Ctrl-C reaches only its parent."""
    return await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        env=dict(environ),
        pass_fds=tuple(pass_fds),
        start_new_session=True,
        preexec_fn=die_with_parent,
    )


def run_service(name: str) -> None:
    """Become the service ``name``: replaces this process."""
    command = service_command(name)
    os.execv(command[0], command)
