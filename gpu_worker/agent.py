"""The host agent: reports what the machine offers, starts a supervisor for each order, and cleans up after each.

Owns the supervisors' processes. A dead agent takes them along: they drain on the parent-death signal, and the next
agent waits for them (see ``leftovers``). Leaves placing workers to the scheduler.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Coroutine
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from envbuilder import BuildSettings
from gpu_worker import cgroups, lessons, process_tree, runner_group
from gpu_worker.assignment import Assignment
from gpu_worker.child import Process
from gpu_worker.inventory import local_host
from gpu_worker.leftovers import Leftovers, supervisor_command
from gpu_worker.preparation import CannotStart, EnvironmentMissing, prepare
from gpu_worker.runner_process import INHERITED
from gpu_worker.settings import AgentSettings
from gpu_worker.suspension import SuspensionFailed, run_checkpoint
from gpu_worker.worker_life import EXIT_STORE_AWAY
from gpu_worker.zygotes import Zygotes
from scheduler.store import Store, keys
from scheduler.store.errors import StoreError, StoreUnavailable
from scheduler.store.records import LogEntry, WorkerRecord, WorkerState

logger = logging.getLogger(__name__)

#: All that supervisors get of this process's environment: where Python finds our modules, and what INHERITED names.
#: User code can read it in /proc, so it holds no address of the store and nothing that the operator happened to export;
#: what a supervisor must know comes in the assignment.
_FOR_SUPERVISORS = ("PATH", "HOME", "PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", *INHERITED)
REPORT_SECONDS = 5.0
REPORT_TTL_SECONDS = 15.0
POLL_SECONDS = 1.0


@dataclass(eq=False)
class Supervised:
    """A worker of this host: ``popen`` is None while it is being prepared."""

    app: str
    worker_id: str
    held: ExitStack = field(default_factory=ExitStack)
    popen: Process | None = None
    revision: str = ""
    assignment: Assignment | None = None


class HostAgent:
    """One host's agent.

    Args:
        settings: see AgentSettings.
        store: connected.
        builds: where environments lie.

    Raises:
        ValueError: the offer does not fit what the machine has.
    """

    def __init__(self, settings: AgentSettings, store: Store, builds: BuildSettings) -> None:
        self._settings = settings
        self._store = store
        self._builds = builds
        self._workers: dict[str, Supervised] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._orders_changed = asyncio.Event()
        self._stopping = asyncio.Event()
        self._forced = asyncio.Event()
        self._parent = os.getppid()
        self._abandoned = asyncio.Event()
        self._host = local_host(
            cpu_fallback=settings.cpu_fallback,
            offer=settings.offer,
            host_id=settings.host_id,
            gpu_source=settings.gpu_source,
            cpu_overcommit=settings.cpu_overcommit,
            memory_overcommit=settings.memory_overcommit,
        )
        self._leftovers = Leftovers(settings)
        self._zygotes = Zygotes(settings.zygotes, builds)

    async def run(self) -> None:
        """Work until ``stop``; nothing of ours runs afterwards."""
        process_tree.adopt_orphans()
        self._leftovers.find()
        self._prepare_limits()
        await self._offer_suspension()
        lessons.forget_old(self._settings.data_dir)
        subscription = await self._store.subscribe(
            {keys.channel_host(self._settings.host_id): lambda _: self._orders_changed.set()},
            self._orders_changed.set,
        )
        reporting, noticing = (asyncio.create_task(d) for d in (self._keep_reporting(), self._notice_abandonment()))
        working, forced = asyncio.create_task(self._follow_orders()), asyncio.create_task(self._forced.wait())
        try:
            await asyncio.wait({working, forced}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
        finally:
            await self._end_all()
            for task in (reporting, working, forced):
                task.cancel()
            await subscription.close()
            await self._tell(self._store.hosts.report(self._host, ttl_s=0))
            noticing.cancel()

    async def _follow_orders(self) -> None:
        while not self._stopping.is_set():
            self._orders_changed.clear()
            with contextlib.suppress(StoreUnavailable):
                await self.once()
            await self._wait_for_orders()

    async def _notice_abandonment(self) -> None:
        """`keepwarm up` was killed and took Redis along: nobody will hear of what workers would still finish."""
        await self._stopping.wait()
        misses = 0
        while misses < 2:
            await asyncio.sleep(0.2)
            try:
                async with asyncio.timeout(0.6):
                    await self._store.ping()
                misses = 0
            except (StoreError, TimeoutError):
                misses += os.getppid() != self._parent
        self._abandoned.set()
        self._forced.set()

    async def _offer_suspension(self) -> None:
        """Where the driver cannot do it, idle workers are ended as ever, and the operator who wants it hears why."""
        if not self._settings.suspends or not self._host.gpus:
            return
        if not self._settings.simulated_gpus:
            try:
                await run_checkpoint("probe")
            except SuspensionFailed as failure:
                logger.warning("KEEPWARM_SUSPEND has no effect: %s", failure)
                return
        self._host = replace(self._host, suspends=self._settings.suspends)

    def stop(self) -> None:
        """First call: workers drain within the grace. Second call: they are killed."""
        if self._stopping.is_set():
            self._forced.set()
        self._stopping.set()
        self._orders_changed.set()

    async def once(self) -> None:
        """Start what is ordered and not running; end orphans.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        self._end_strays()
        self._leftovers.end_overdue()
        self._zygotes.look([w.assignment for w in self._workers.values() if w.assignment is not None])
        for worker_id, app in (await self._store.workers.orders(self._settings.host_id)).items():
            if worker_id not in self._workers and worker_id not in self._leftovers.worker_ids():
                self._workers[worker_id] = worker = Supervised(app, worker_id)
                self._spawn_task(self._start(worker))

    # --- one worker ---------------------------------------------------------------------------------------------------

    async def _start(self, worker: Supervised) -> None:
        try:
            record = await self._store.workers.get(worker.app, worker.worker_id)
            reason = _why_not(record)
            if record is None or reason is not None:
                await self._forget(worker, reason or "its record is gone")
                return
            worker.revision = record.revision
            assignment = await prepare(self._store, record, self._settings, self._builds, worker.held)
            if self._stopping.is_set():
                await self._forget(worker, "its host stops")
                return
            await self._launch(worker, assignment)
        except EnvironmentMissing as error:
            await self._store.environments.request_build(worker.app, worker.revision)
            await self._forget(worker, f"{error}; its build has been asked for again")
        except (CannotStart, OSError) as error:
            await self._store.apps.startup_failed(worker.app, worker.revision, str(error))
            await self._forget(worker, str(error))
        except StoreUnavailable:
            worker.held.close()
            del self._workers[worker.worker_id]  # the order stands; the next look tries again

    async def _launch(self, worker: Supervised, assignment: Assignment) -> None:
        environ = {name: os.environ[name] for name in _FOR_SUPERVISORS if name in os.environ}
        command = supervisor_command(self._settings, worker.worker_id)
        newborn = await self._zygotes.bear(assignment, command, environ)
        if newborn is not None:
            worker.popen = newborn.supervisor
            newborn.assign(assignment)
        else:
            worker.popen = _spawn(command, environ, assignment)
        worker.assignment = assignment
        self._watch(worker, worker.popen)
        if self._stopping.is_set():  # meanwhile: the others have had their signal
            worker.popen.send_signal(signal.SIGTERM)

    def _watch(self, worker: Supervised, popen: Process) -> None:
        process_tree.on_exit(
            popen.pid,
            popen.wait,
            lambda code: self._spawn_task(self._ended(worker, code)),
            asyncio.get_running_loop(),
        )

    async def _ended(self, worker: Supervised, code: int) -> None:
        """A supervisor has exited: a clean one has said so itself; for any other we do."""
        self._end_strays()
        await asyncio.to_thread(runner_group.clear_away)
        if code == 0:
            self._drop(worker)
            return
        shutil.rmtree(self._settings.data_dir / "incoming" / worker.worker_id, ignore_errors=True)
        reason = f"its supervisor ended with {process_tree.describe_exit(code)}"
        while True:
            try:
                record = await self._store.workers.get(worker.app, worker.worker_id)
                starting = record is not None and record.state in (WorkerState.PENDING, WorkerState.SETUP)
                if starting and code != EXIT_STORE_AWAY:
                    entry = LogEntry("", time.time(), "ERROR", f"The app did not start: {reason}", worker.worker_id)
                    await self._store.logs.append(worker.app, [entry])
                    await self._store.apps.startup_failed(worker.app, worker.revision, reason)
                await self._forget(worker, reason, crashed=not starting and code != EXIT_STORE_AWAY)
                return
            except StoreUnavailable:
                await asyncio.sleep(0.5)

    async def _forget(self, worker: Supervised, reason: str, *, crashed: bool = False) -> None:
        await self._store.workers.remove(worker.app, worker.worker_id, reason, crashed=crashed)
        await self._store.workers.drop_order(self._settings.host_id, worker.worker_id)
        self._drop(worker)

    def _drop(self, worker: Supervised) -> None:
        worker.held.close()
        self._workers.pop(worker.worker_id, None)
        if worker.popen is not None:
            worker.popen.poll()
        self._orders_changed.set()

    # --- the end ------------------------------------------------------------------------------------------------------

    async def _end_all(self) -> None:
        deadline = time.monotonic() + self._settings.stop_grace
        self._signal_all(signal.SIGTERM)
        self._zygotes.close()
        while self._workers and time.monotonic() < deadline and not self._forced.is_set():
            self._orders_changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._orders_changed.wait(), 0.1)
        self._signal_all(signal.SIGKILL)
        if left := process_tree.kill_descendants():
            print(f"gpu_worker: these processes would not die: {left}", file=sys.stderr, flush=True)
        runner_group.clear_away()
        for worker in list(self._workers.values()):
            await self._tell(self._store.workers.remove(worker.app, worker.worker_id, "its host stopped"))
            self._drop(worker)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _tell(self, telling: Coroutine[None, None, object]) -> None:
        """A last word to the store: as long as somebody may hear it, and not while Redis stays away with the rest."""
        told = asyncio.ensure_future(telling)
        abandoned = asyncio.ensure_future(self._abandoned.wait())
        await asyncio.wait({told, abandoned}, return_when=asyncio.FIRST_COMPLETED)
        abandoned.cancel()
        told.cancel()
        with contextlib.suppress(asyncio.CancelledError, StoreError):
            await told

    def _signal_all(self, number: int) -> None:
        for worker in self._workers.values():
            if worker.popen is not None:
                with contextlib.suppress(ProcessLookupError):
                    worker.popen.send_signal(number)

    # --- duties -------------------------------------------------------------------------------------------------------

    def _prepare_limits(self) -> None:
        """Where runners cannot be limited they run all the same."""
        s = self._settings
        for controller, most in ((runner_group.TASKS, s.runner_tasks), (runner_group.MEMORY, s.runner_memory)):
            try:
                if most:
                    cgroups.prepare(controller)
            except cgroups.CannotLimit as reason:
                logger.warning("nothing limits the %s of runners: %s", runner_group.NAMES[controller], reason)

    async def _keep_reporting(self) -> None:
        while True:
            with contextlib.suppress(StoreUnavailable):
                await self._store.hosts.report(self._host, ttl_s=REPORT_TTL_SECONDS)
            await asyncio.to_thread(runner_group.clear_away)  # of supervisors that nobody saw die
            await asyncio.sleep(REPORT_SECONDS)

    async def _wait_for_orders(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._orders_changed.wait(), POLL_SECONDS)

    def _end_strays(self) -> None:
        """End what user code left behind. Not while a zygote gives birth: that child of ours has no name yet."""
        if self._zygotes.births == 0:
            process_tree.reap_adopted(self._own_processes(), kill=True)

    def _own_processes(self) -> set[int]:
        supervisors = {worker.popen.pid for worker in self._workers.values() if worker.popen is not None}
        return supervisors | self._zygotes.pids()

    def _spawn_task(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)  # the loop itself holds tasks only weakly
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            traceback.print_exception(error)


def _spawn(command: list[str], environ: dict[str, str], assignment: Assignment) -> Process:
    popen = subprocess.Popen(command, stdin=subprocess.PIPE, env=environ, start_new_session=True)
    assert popen.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it died at once; its exit status says so
        popen.stdin.write(assignment.to_json())
        popen.stdin.close()
    return popen


def _why_not(record: WorkerRecord | None) -> str | None:
    """Why an order must not be started, or None."""
    if record is None or record.state is WorkerState.TERMINATED:
        return "its record is gone"
    if record.stop_requested:
        return "told to stop before it was started"
    if record.state is not WorkerState.PENDING:
        return "its host's agent was restarted"
    return None
