"""Runs its owner's commands beside a runner: same environment, same files, same ``/data``; not its secrets, for nothing
shows those again.

Owns the processes and what they are told. Leaves asking and the way back to the store, terminals to ``terminals``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping
from typing import Literal

from gpu_worker.terminals import PseudoTerminal
from scheduler.store import Store
from scheduler.store.errors import StoreError
from scheduler.store.records import Command

#: Commands at once beside one runner.
MOST = 4
_BLOCK = 32 * 1024
_LOOK_SECONDS = 2.0
#: For what is still in a terminal when its command has ended.
_LAST_WORDS_SECONDS = 5.0
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
        self._told: dict[str, asyncio.Event] = {}

    @property
    def busy(self) -> bool:
        """Whether a child of ours may be there whose exit we wait for."""
        return bool(self._running)

    def asked(self, command_id: str) -> None:
        """Run a command, or look what one that runs is told."""
        if command_id in self._running:
            self._told[command_id].set()
            return
        self._told[command_id] = asyncio.Event()
        self._running[command_id] = task = asyncio.get_running_loop().create_task(self._run(command_id))
        task.add_done_callback(lambda _: self._ended(command_id))

    def _ended(self, command_id: str) -> None:
        self._running.pop(command_id, None)
        self._told.pop(command_id, None)

    async def close(self) -> None:
        """End them all."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, command_id: str) -> None:
        commands, app = self._store.commands, self._app
        with contextlib.suppress(StoreError):  # without the store nobody can be told anything
            command = await commands.take(app, self._worker_id, command_id)
            if command is None:
                return
            await commands.write(app, command_id, "started", b"")
            code = await self._execute(command_id, command)
            await commands.write(app, command_id, "exit", str(code).encode())
            while await commands.wanted(app, command_id):  # asked again meanwhile, it must not run twice
                await asyncio.sleep(_LOOK_SECONDS / 4)

    async def _execute(self, command_id: str, command: Command) -> int:
        complaint = "too many commands run beside this runner already" if len(self._running) > MOST else ""
        terminal = PseudoTerminal(command.terminal) if command.terminal is not None and not complaint else None
        try:
            process = None if complaint else await self._start(command, terminal)
        except (OSError, ValueError) as error:
            process, complaint = None, f"{command.arguments[0]}: {getattr(error, 'strerror', None) or error}"
        if process is None:
            await self._store.commands.write(self._app, command_id, "stderr", f"{complaint}\n".encode())
            return _NOT_FOUND
        loop = asyncio.get_running_loop()
        beside = [loop.create_task(self._end_unwanted(command_id, process.pid))]
        if command.takes_input:
            told: PseudoTerminal | _Pipe = terminal or _Pipe(process)
            beside.append(loop.create_task(self._listen(command_id, told)))
        try:
            return await self._until_over(command_id, process, terminal)
        finally:
            for task in beside:
                task.cancel()
            _kill(process.pid)
            await process.wait()
            if terminal is not None:
                await asyncio.gather(*beside, return_exceptions=True)  # they must not touch a number that is used again
                terminal.close()

    async def _start(self, command: Command, terminal: PseudoTerminal | None) -> asyncio.subprocess.Process:
        if terminal is not None:
            return await terminal.start(command.arguments, self._environ, self._folder)
        return await asyncio.create_subprocess_exec(
            *command.arguments,
            env=dict(self._environ),
            cwd=self._folder,
            stdin=asyncio.subprocess.PIPE if command.takes_input else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )

    async def _until_over(
        self, command_id: str, process: asyncio.subprocess.Process, terminal: PseudoTerminal | None
    ) -> int:
        """Pass on what it says until its end; its exit status."""
        if terminal is None:
            assert process.stdout is not None
            assert process.stderr is not None
            await asyncio.gather(
                self._pass_on(command_id, "stdout", process.stdout), self._pass_on(command_id, "stderr", process.stderr)
            )
            return await process.wait()
        showing = asyncio.get_running_loop().create_task(self._show(command_id, terminal))
        try:
            code = await process.wait()
            # What it left in the background keeps the terminal open, and goes with it.
            _kill(process.pid)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(showing), _LAST_WORDS_SECONDS)
            return code
        finally:
            showing.cancel()
            await asyncio.gather(showing, return_exceptions=True)

    async def _show(self, command_id: str, terminal: PseudoTerminal) -> None:
        while data := await terminal.read():
            await self._store.commands.write(self._app, command_id, "stdout", data)

    async def _listen(self, command_id: str, told: PseudoTerminal | _Pipe) -> None:
        """Hand on what the caller says."""
        news = self._told[command_id]
        while True:
            news.clear()
            with contextlib.suppress(StoreError):
                for kind, data in await self._store.commands.heard(self._app, command_id):
                    if kind == "bytes":
                        await told.write(data)
                    elif kind == "end":
                        await told.end()
                    elif isinstance(told, PseudoTerminal):
                        rows, columns = map(int, data.split())
                        told.resize(rows, columns)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(news.wait(), _LOOK_SECONDS)

    async def _pass_on(self, command_id: str, kind: Literal["stdout", "stderr"], stream: asyncio.StreamReader) -> None:
        while data := await stream.read(_BLOCK):
            await self._store.commands.write(self._app, command_id, kind, data)

    async def _end_unwanted(self, command_id: str, pid: int) -> None:
        with contextlib.suppress(StoreError):
            while await self._store.commands.wanted(self._app, command_id):
                await asyncio.sleep(_LOOK_SECONDS)
        _kill(pid)


class _Pipe:
    """The input of a command that has no terminal."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        self._stdin = process.stdin

    async def write(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # it may have closed its input
            self._stdin.write(data)
            await self._stdin.drain()

    async def end(self) -> None:
        self._stdin.close()


def _kill(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
