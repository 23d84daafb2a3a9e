"""Runs its owner's commands beside a runner: same environment, same files, same ``/data``; not its secrets, for nothing
shows those again.

Owns the processes. Leaves asking and the way back to the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping
from typing import Literal

from scheduler.store import Store
from scheduler.store.errors import StoreError

#: Commands at once beside one runner.
MOST = 4
_BLOCK = 32 * 1024
_LOOK_SECONDS = 2.0
#: What a shell answers when it finds no such command.
_NOT_FOUND = 127


class Commands:
    """The commands of one worker.

    Args:
        environ: all variables that they see.
        folder: where they start.
    """

    def __init__(self, store: Store, app: str, worker_id: str, environ: Mapping[str, str], folder: str) -> None:
        self._store = store
        self._app = app
        self._worker_id = worker_id
        self._environ = environ
        self._folder = folder
        self._running: dict[str, asyncio.Task[None]] = {}

    @property
    def busy(self) -> bool:
        """Whether a child of ours may be there whose exit we wait for."""
        return bool(self._running)

    def asked(self, command_id: str) -> None:
        """Run a command, unless it runs already."""
        if command_id not in self._running:
            task = asyncio.get_running_loop().create_task(self._run(command_id))
            self._running[command_id] = task
            task.add_done_callback(lambda _: self._running.pop(command_id, None))

    async def close(self) -> None:
        """End them all."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, command_id: str) -> None:
        commands, app = self._store.commands, self._app
        with contextlib.suppress(StoreError):  # without the store nobody can be told anything
            arguments = await commands.take(app, self._worker_id, command_id)
            if arguments is None:
                return
            await commands.write(app, command_id, "started", b"")
            code = await self._execute(command_id, arguments)
            await commands.write(app, command_id, "exit", str(code).encode())
            while await commands.wanted(app, command_id):  # asked again meanwhile, it must not run twice
                await asyncio.sleep(_LOOK_SECONDS / 4)

    async def _execute(self, command_id: str, arguments: list[str]) -> int:
        complaint = "too many commands run beside this runner already" if len(self._running) > MOST else ""
        try:
            process = None if complaint else await self._start(arguments)
        except (OSError, ValueError) as error:
            process, complaint = None, f"{arguments[0]}: {getattr(error, 'strerror', None) or error}"
        if process is None:
            await self._store.commands.write(self._app, command_id, "stderr", f"{complaint}\n".encode())
            return _NOT_FOUND
        assert process.stdout is not None
        assert process.stderr is not None
        watching = asyncio.get_running_loop().create_task(self._end_unwanted(command_id, process.pid))
        try:
            await asyncio.gather(
                self._pass_on(command_id, "stdout", process.stdout), self._pass_on(command_id, "stderr", process.stderr)
            )
            return await process.wait()
        finally:
            watching.cancel()
            _kill(process.pid)
            await process.wait()

    async def _start(self, arguments: list[str]) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *arguments,
            env=dict(self._environ),
            cwd=self._folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )

    async def _pass_on(self, command_id: str, kind: Literal["stdout", "stderr"], stream: asyncio.StreamReader) -> None:
        while data := await stream.read(_BLOCK):
            await self._store.commands.write(self._app, command_id, kind, data)

    async def _end_unwanted(self, command_id: str, pid: int) -> None:
        with contextlib.suppress(StoreError):
            while await self._store.commands.wanted(self._app, command_id):
                await asyncio.sleep(_LOOK_SECONDS)
        _kill(pid)


def _kill(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
