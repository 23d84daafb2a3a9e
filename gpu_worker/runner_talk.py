"""Everything a runner says, sorted: answers, log lines, files, stages of its start, signs of life, and its end.

Owns the order in which the end is believed: not before the last word has been heard. Leaves what to do about it to
``worker_life``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fal._runner.protocol import (
    FileSaved,
    GpuFault,
    Hello,
    Learned,
    Log,
    Message,
    Ping,
    Pong,
    Ready,
    Response,
    ResponseChunk,
    ResponseEnd,
    ResponseStart,
    SocketAccept,
    SocketClose,
    SocketMessage,
    SocketTaken,
    Stage,
    StartFailed,
    ValueCall,
)

from gpu_worker import process_tree
from gpu_worker.assignment import Assignment
from gpu_worker.health import CHECK_ID
from gpu_worker.log_lines import LogLines, PipeLines
from gpu_worker.runner_link import RunnerLink
from gpu_worker.runner_process import RunnerProcess
from gpu_worker.saved_files import SavedFiles
from gpu_worker.shared_values import SharedValues
from scheduler.store.errors import StoreUnavailable
from scheduler.store.records import LogEntry

if TYPE_CHECKING:
    from gpu_worker.serving import Serving
    from scheduler.store import Lifecycle, Store

#: Seconds between a runner's exit and the belief that nothing more comes out of its socket or pipes: a process that the
#: app forked may hold them open for ever.
LAST_WORDS_SECONDS = 0.25
#: Seconds that a runner may outlive its socket.
DEAF_SECONDS = 1.0
_ANSWERS = (
    Response, ResponseStart, ResponseChunk, ResponseEnd, GpuFault,
    SocketAccept, SocketMessage, SocketTaken, SocketClose,
)  # fmt: skip
#: What a finished stage of the start is followed by.
_NEXT_STAGE = {"boot": "import", "import": "setup", "setup": "ready"}


class RunnerTalk:
    """Both directions of one runner's socket, and its two pipes.

    Args:
        gone: called once, with the reason, when the runner has ended and everything it said has been handled.
        learned: called when the runner tells what its start has shown.
    """

    def __init__(
        self,
        assignment: Assignment,
        runner: RunnerProcess,
        gone: Callable[[str], None],
        learned: Callable[[Learned], None],
    ) -> None:
        self._runner = runner
        self._gone = gone
        self._learned = learned
        #: how the runner's process came to be: ``spawn`` or ``zygote``
        self.start_kind = "spawn"
        self._loop = asyncio.get_running_loop()
        self._store: Store | None = None
        self.app = assignment.app
        self.logs = LogLines(self._append_logs, assignment.worker_id, assignment.secrets.values())
        owner = assignment.app.partition("/")[0]
        self.files = SavedFiles(Path(assignment.files_dir), owner, self._adopt, self._complain)
        self._values = SharedValues(owner, self.send)
        self.serving: Serving | None = None
        self.started: asyncio.Future[Ready | StartFailed] = self._loop.create_future()
        self.exited: asyncio.Future[int] = self._loop.create_future()
        self.stage = "boot"
        self.stages = dict(assignment.stages)
        self.stage_ended = asyncio.Event()
        self.stages["spawn"] = max(0.0, runner.started_at - assignment.ordered_at - sum(assignment.stages.values()))
        self._link: RunnerLink | None = None
        self._link_open = False
        self._said_gone = False
        self._complaint: str | None = None
        self._pipes: list[PipeLines] = []
        self._pings = self._pongs = 0

    async def begin(self) -> None:
        """Listen. What to load has been told to the runner before."""
        process_tree.on_exit(self._runner.pid, self._runner.wait, self._exited, self._loop)
        self._link = await RunnerLink.connect(self._runner, self._receive, self._link_lost)
        self._link_open = True
        for level, pipe in zip(("STDOUT", "STDERR"), self._runner.open_pipes(), strict=True):
            lines = PipeLines(self.logs, level)
            await self._loop.connect_read_pipe(partial(_same, lines), pipe)
            self._pipes.append(lines)

    def attach(self, store: Store) -> None:
        """From now on log lines and files have somewhere to go."""
        self._store = store
        self._values.attach(store)
        self.logs.flush_soon()

    def send(self, message: Message) -> None:
        """Tell the runner; dropped when it has ended.

        Raises:
            ProtocolError: the message is too large.
        """
        if self._link is not None:
            self._link.send(message)

    def ping(self) -> None:
        """Ask for a sign of life."""
        self._pings += 1
        self.send(Ping(self._pings))

    @property
    def unanswered_pings(self) -> int:
        """Pings in a row without an answer."""
        return self._pings - self._pongs

    async def react(self) -> None:
        """Wait for an answer to a ping that is sent now.

        Raises:
            ConnectionError: the runner has ended.
        """
        self.ping()
        sent = self._pings
        while self._pongs < sent:
            if self.exited.done():
                raise ConnectionError("the runner has ended")
            await asyncio.sleep(0.005)

    @property
    def exit_code(self) -> int | None:
        """How the runner ended, negative for a signal; None before that."""
        return self.exited.result() if self.exited.done() else None

    def note_limits(self) -> None:
        """Say in the app's log what has run into a limit of the runner's control group."""
        for complaint in self._runner.group.complaints() if self._runner.group is not None else ():
            self.logs.add("WARN", complaint)

    async def last_words(self, most: int = 20) -> str:
        """Waits for what is left in the pipes; the last lines of standard error, or of output if there are none."""
        if self._pipes:
            await asyncio.wait([pipe.ended for pipe in self._pipes], timeout=LAST_WORDS_SECONDS)
        return next(("\n".join(list(pipe.last)[-most:]) for pipe in reversed(self._pipes) if pipe.last), "")

    # --- hearing ------------------------------------------------------------------------------------------------------

    def _receive(self, message: Message) -> None:
        if isinstance(message, _ANSWERS):
            if self.serving is not None:
                self.serving.receive(message)
        elif isinstance(message, Log):
            self.logs.add(message.level, message.message, at=message.at, request_id=_of_caller(message.request_id))
        elif isinstance(message, Pong):
            self._pongs = message.n
        elif isinstance(message, FileSaved):
            self.files.saved(message)
        elif isinstance(message, ValueCall):
            self._values.called(message)
        elif isinstance(message, Stage):
            self.stages[message.name] = message.seconds
            self.stage = _NEXT_STAGE.get(message.name, self.stage)
            self.stage_ended.set()
        elif isinstance(message, Hello):
            self.start_kind = "zygote" if message.start_kind == "zygote" else "spawn"
        elif isinstance(message, Learned):
            self._learned(message)
        elif isinstance(message, Ready | StartFailed) and not self.started.done():
            self.started.set_result(message)

    def _link_lost(self, complaint: str | None) -> None:
        self._link_open = False
        self._complaint = complaint
        if complaint is not None:
            self._runner.kill()
        elif not self.exited.done():
            self._loop.call_later(DEAF_SECONDS, self._runner.kill)
        self._maybe_gone()

    def _exited(self, code: int) -> None:
        if not self.exited.done():
            self.exited.set_result(code)
            self._loop.call_later(LAST_WORDS_SECONDS, self._stop_listening)
            self._maybe_gone()

    def _stop_listening(self) -> None:
        if self._link is not None:
            self._link.close()

    def _maybe_gone(self) -> None:
        if self._link_open or not self.exited.done() or self._said_gone:
            return
        self._said_gone = True
        ended = self._runner.describe_end()
        self.note_limits()
        self._gone(f"the runner sent an unreadable message ({self._complaint})" if self._complaint else ended)

    # --- passing on ---------------------------------------------------------------------------------------------------

    async def _append_logs(self, entries: Sequence[LogEntry]) -> None:
        if self._store is None:
            raise StoreUnavailable
        await self._store.logs.append(self.app, entries)

    def _adopt(self, path: Path, file_id: str, name: str, content_type: str, lifecycle: Lifecycle) -> None:
        if self._store is None:
            raise OSError("the store is not connected yet")
        self._store.files.adopt(path, file_id, name, content_type, lifecycle)

    def _complain(self, line: str, request_id: str | None) -> None:
        self._loop.call_soon_threadsafe(lambda: self.logs.add("ERROR", line, request_id=_of_caller(request_id)))


def _of_caller(request_id: str | None) -> str | None:
    """None for what the supervisor asked itself: nobody could look up its log."""
    return None if request_id is not None and request_id.startswith(CHECK_ID) else request_id


def _same(lines: PipeLines) -> PipeLines:
    return lines
