"""The life of one worker: its runner starts, becomes ready, serves, drains and ends, and the store knows each step.

Owns when and why the runner is ended. Leaves requests to ``serving``, what the runner says to ``runner_talk`` and
processes to ``runner_process``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from fal._runner.protocol import Learned, Ready, StartFailed

from gpu_worker import lessons, outcomes, process_tree, read_ahead
from gpu_worker.assignment import Assignment
from gpu_worker.commands import Commands
from gpu_worker.flight import Ending
from gpu_worker.gpu_usage import GpuUsage, usage_source
from gpu_worker.health import HealthChecks
from gpu_worker.runner_process import RunnerProcess
from gpu_worker.runner_talk import RunnerTalk
from gpu_worker.serving import Limits, Serving
from gpu_worker.suspending import Suspending
from gpu_worker.suspension import Suspension
from gpu_worker.wear import wear
from scheduler.store import Inbox, Store
from scheduler.store.errors import StoreError, StoreUnavailable
from scheduler.store.outcomes import NOT_READY_IN_TIME
from scheduler.store.records import WorkerState
from scheduler.store.retry_rules import RetryRules

#: Exit status when the store could not be reached or could not be told how the worker ended.
EXIT_STORE_AWAY = 5
LEASE_MS = 30_000
#: A quarter of the lease, so that three heartbeats may fail before anybody else takes over.
HEARTBEAT_SECONDS = LEASE_MS / 4 / 1000
BEAT_SECONDS = 5.0
MISSED_PINGS = 3
#: Seconds into draining after which no claim can still be on its way, so that the app may be told to wind up.
LAST_CLAIM_SECONDS = 1.0
#: Seconds for ``teardown()``, even when draining has used up the grace.
TEARDOWN_SECONDS = 2.0

Stop = Literal["drain", "kill"]


class Worker:
    """One worker, from a started runner process to nothing left of it. Create it inside the running loop.

    Args:
        assignment: what was ordered.
        runner: its process, started and told what to load.
        folders: where models lie that the next start may read ahead.
        warnings: first lines for the app's log.
    """

    def __init__(
        self, assignment: Assignment, runner: RunnerProcess, folders: Sequence[str] = (), warnings: Sequence[str] = ()
    ) -> None:
        self._a = assignment
        self._runner = runner
        self._loop = asyncio.get_running_loop()
        self._talk = RunnerTalk(assignment, runner, self._runner_gone, self._learned)
        self._folders = folders
        for warning in warnings:
            self._talk.logs.add("WARN", warning)
        self._news = asyncio.Event()  # a stop was asked for, the runner is ready or has ended
        self._beat_early = asyncio.Event()
        self._how: Stop | None = None
        self._why = ""
        self._ordered = False
        self._stop_by = float("inf")
        self._gone: Ending | None = None
        self._serving: Serving | None = None
        self._ready_at = 0.0
        self._retiring = False
        self._checking: asyncio.Task[None] | None = None
        self._commands: Commands | None = None
        self._suspending: Suspending | None = None
        self._usage = GpuUsage(assignment.gpu_ids, usage_source(assignment.simulated_gpus))

    async def run(self) -> int:
        """Live. Returns the exit status: 0, or EXIT_STORE_AWAY when the store could not be told how it ended."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self.stop, "drain", "its host stops")
        try:
            await self._talk.begin()
            store = await Store.connect(self._a.redis_url, Path(self._a.data_dir), files=self._a.files)
            try:
                await self._live(store)
                await self._report_end(store)
                return 0
            finally:
                await store.close()
        except StoreError as error:
            # The host's agent tells the store once it answers; leases run out meanwhile.
            print(f"worker {self._a.worker_id}: {error}", file=sys.stderr, flush=True)
            return EXIT_STORE_AWAY
        finally:
            self._runner.kill()
            process_tree.kill_descendants()
            self._runner.remove_group()

    def stop(self, how: Stop, why: str) -> None:
        """``drain``: take nothing new, finish within the grace, leave. ``kill``: end the runner now.

        The first reason stays; a kill overtakes a drain.
        """
        if self._suspending is not None and self._suspending.standing:
            how = "kill"  # a runner that stands still cannot wind up
        if self._how is None:
            self._why = why
            self._stop_by = self._loop.time() + self._a.termination_grace
        if self._how != "kill":
            self._how = how
        if how == "kill":
            self._runner.kill()
        if self._checking is not None:
            self._checking.cancel()
        self._news.set()

    # --- the whole, step by step --------------------------------------------------------------------------------------

    async def _live(self, store: Store) -> None:
        self._talk.attach(store)
        inbox = await store.open_inbox(self._a.app, self._a.worker_id, self._a.revision, lease_ms=LEASE_MS)
        inbox.stop_requested = self._stop_ordered
        self._commands = Commands(store, self._a.app, self._a.worker_id, self._runner.environ, self._a.bundle_dir)
        inbox.command_asked = self._commands.asked
        duties = [self._loop.create_task(self._beat(store))]
        try:
            if await self._start(store):
                self._serving = self._talk.serving = Serving(
                    store,
                    inbox,
                    self._talk,
                    self._limits(),
                    self._runner_must_go,
                    self._beat_early.set,
                    revision=self._a.revision,
                    card=self._card(),
                )
                if self._gone is not None:
                    self._serving.runner_ended(self._gone)
                duties += [self._loop.create_task(self._renew(inbox)), self._loop.create_task(self._ping())]
                self._check_health(store, inbox, self._serving)
                if self._a.gpu_ids:
                    self._suspending = self._may_suspend(store, inbox, self._serving)
                await self._serve(store, inbox, self._serving)
            await self._end_runner()
            await self._talk.last_words()
        finally:
            for duty in duties:
                duty.cancel()
            if self._checking is not None:
                self._checking.cancel()
            inbox.close_to_new()
            if self._suspending is not None:
                await self._suspending.close()
            await self._commands.close()
            self._runner.kill()
            process_tree.kill_descendants()
            shutil.rmtree(self._a.files_dir, ignore_errors=True)

    async def _start(self, store: Store) -> bool:
        """Wait for the runner to be ready; False when it will not be."""
        workers, app, worker_id = store.workers, self._a.app, self._a.worker_id
        if not await workers.update(app, worker_id, state=WorkerState.SETUP, stages=self._talk.stages):
            self.stop("kill", "its record is gone")
            return False
        left = self._a.startup_timeout - (time.monotonic() - self._a.ordered_at)
        self._talk.started.add_done_callback(lambda _: self._news.set())
        telling = self._loop.create_task(self._tell_stages(store))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), left)
        telling.cancel()
        started = self._talk.started.result() if self._talk.started.done() else None
        if isinstance(started, StartFailed):
            await self._start_failed(
                store, f"{_STAGES.get(started.stage, started.stage)} failed: {started.error}", started.traceback
            )
        elif self._gone is not None and self._gone.blames:
            words = await self._talk.last_words()
            await self._start_failed(store, f"{self._gone.why} {self._during()}", words)
        elif self._how is not None:
            return False
        elif started is None:
            limit = self._a.startup_timeout
            await self._start_failed(store, f"{NOT_READY_IN_TIME} ({limit:g} s), {self._during()}", "")
        else:
            await self._ready(store, started)
            return True
        return False

    async def _ready(self, store: Store, ready: Ready) -> None:
        a, stages = self._a, self._talk.stages
        self._ready_at = time.monotonic()
        stages["total"] = self._ready_at - a.ordered_at
        await asyncio.gather(
            store.workers.update(
                a.app,
                a.worker_id,
                state=WorkerState.IDLE,
                ready=True,
                stages=stages,
                device=ready.device,
                start_kind=self._talk.start_kind,
            ),
            store.apps.startup_succeeded(a.app, a.revision, ready.openapi, stages),
        )

    async def _tell_stages(self, store: Store) -> None:
        """Whoever waits for this start can see how far it is."""
        while True:
            await self._talk.stage_ended.wait()
            self._talk.stage_ended.clear()
            with contextlib.suppress(StoreError):
                await store.workers.update(self._a.app, self._a.worker_id, stages=self._talk.stages)

    def _during(self) -> str:
        if self._talk.stage == "ready" and self._a.exposed_port:
            return f"while nothing listened on its exposed_port {self._a.exposed_port} (or on PORT)"
        return {"boot": "while Python started", "import": "during import"}.get(self._talk.stage, "during setup()")

    def _learned(self, message: Learned) -> None:
        """Keep it for the next start; in a thread, for the disk may be slow and requests are waiting."""
        forked = self._talk.start_kind == "zygote"
        self._loop.run_in_executor(None, _keep_lessons, self._a, message, self._folders, forked)

    async def _start_failed(self, store: Store, error: str, details: str) -> None:
        error = self._talk.logs.masked(error)  # it goes to callers and is kept with the revision
        self.stop("kill", error)
        if self._talk.start_kind == "zygote" and self._a.lessons_file is not None:
            with contextlib.suppress(OSError):
                lessons.write(self._a.lessons_file, replace(lessons.read(self._a.lessons_file), doubted=True))
        self._why = error  # the runner's exit may have been seen first; this says more
        for line in details.splitlines():
            self._talk.logs.add("ERROR", line)
        self._talk.logs.add("ERROR", f"The app did not start: {error}")
        await self._talk.logs.flush()
        await store.apps.startup_failed(self._a.app, self._a.revision, error)

    async def _serve(self, store: Store, inbox: Inbox, serving: Serving) -> None:
        """Serve until told to stop; then finish what can be finished within the grace and give back the rest."""
        working = self._loop.create_task(serving.run())
        working.add_done_callback(lambda _: self._news.set())
        self._news.clear()
        if self._how is None:
            await self._news.wait()
        inbox.close_to_new()
        if not working.done():
            if self._how == "drain":
                await self._drain(store, working)
            if not working.done():
                self._runner.kill()
                await asyncio.wait({working})
        try:
            working.result()
        except* StoreError as refused:
            raise refused.exceptions[0] from None

    async def _drain(self, store: Store, working: asyncio.Task[None]) -> None:
        with contextlib.suppress(StoreUnavailable):
            reason = None if self._ordered else self._why
            await store.workers.update(self._a.app, self._a.worker_id, state=WorkerState.DRAINING, reason=reason)
        if self._serving is not None:
            self._serving.end_connections(1012, "The worker is being replaced or stopped. Connect again.")
        await asyncio.wait({working}, timeout=min(LAST_CLAIM_SECONDS, self._a.termination_grace / 2))
        if not working.done():
            self._runner.terminate()
            while not working.done() and self._how == "drain" and self._loop.time() < self._stop_by:
                await asyncio.wait({working}, timeout=0.1)

    async def _end_runner(self) -> None:
        """Let the app tear itself down, unless it was killed."""
        if self._how != "kill" and not self._talk.exited.done():
            self._runner.terminate()
            left = max(self._stop_by - self._loop.time(), TEARDOWN_SECONDS)
            await asyncio.wait({self._talk.exited}, timeout=left)
        if not self._talk.exited.done():
            self._runner.kill()
            await asyncio.wait({self._talk.exited}, timeout=TEARDOWN_SECONDS)

    async def _report_end(self, store: Store) -> None:
        await self._talk.logs.flush()
        why = self._why or "its runner ended"
        if self._ordered and (record := await store.workers.get(self._a.app, self._a.worker_id)) is not None:
            why = record.reason or why  # who gave the order knows better
        crashed = self._serving is not None and self._gone is not None and self._gone.blames
        await store.workers.remove(self._a.app, self._a.worker_id, why, crashed=crashed)

    # --- duties beside requests ---------------------------------------------------------------------------------------

    async def _beat(self, store: Store) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._beat_early.wait(), BEAT_SECONDS)
            self._beat_early.clear()
            with contextlib.suppress(StoreUnavailable):
                in_flight = self._serving.in_flight if self._serving is not None else 0
                self._stop_ordered(await store.workers.beat(self._a.app, self._a.worker_id, in_flight) or "")
            standing = self._suspending is not None and self._suspending.standing
            if not standing and (self._commands is None or not self._commands.busy):
                process_tree.reap_adopted({self._runner.pid})
            self._talk.note_limits()
            if not standing:
                await self._measure_gpus(store)
                await self._retire_if_worn(store)
            elif self._suspending is not None:
                self._suspending.give_up_if_memory_is_short()

    async def _retire_if_worn(self, store: Store) -> None:
        """Ask for a successor, and serve on until it is there."""
        if self._serving is None or self._retiring:
            return
        why = wear(self._a, self._serving.answered, self._ready_at, self._runner.pid)
        if why is None:
            return
        with contextlib.suppress(StoreError):
            await store.workers.update(self._a.app, self._a.worker_id, retiring=why)
            self._retiring = True
            self._talk.logs.add("INFO", f"This runner is replaced: {why}.")

    async def _measure_gpus(self, store: Store) -> None:
        """What its revision's workers need of a GPU is learned from what they use; see ``placing.need_of``."""
        if not self._a.gpu_ids:
            return
        before, pid = self._usage.peak_mb, self._runner.pid
        peak = await asyncio.to_thread(self._usage.look, {pid, *process_tree.descendants(pid)})
        if peak > before:
            with contextlib.suppress(StoreError):
                await store.apps.gpu_peak(self._a.app, self._a.revision, peak)

    async def _renew(self, inbox: Inbox) -> None:
        assert self._serving is not None
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            with contextlib.suppress(StoreUnavailable):
                for request_id, attempt in await inbox.heartbeat():
                    self._serving.must_stop(request_id, attempt)

    async def _ping(self) -> None:
        """Counts pings, not seconds: a supervisor that was itself held up has sent none meanwhile."""
        while self._talk.unanswered_pings < MISSED_PINGS:
            if self._suspending is None or not self._suspending.standing:
                self._talk.ping()
            await asyncio.sleep(self._a.ping_seconds)
        seconds = self._a.ping_seconds * MISSED_PINGS
        why = f"the runner did not react for {seconds:g} s"
        self._gone = Ending(why, outcomes.runner_hung(seconds), "connection_error", blames=True)
        self.stop("kill", why)

    def _may_suspend(self, store: Store, inbox: Inbox, serving: Serving) -> Suspending:
        def check(wanted: bool) -> None:
            if wanted:
                self._check_health(store, inbox, serving)
            elif self._checking is not None:
                self._checking.cancel()

        suspension = Suspension(
            self._runner.pid, self._a.simulated_gpus, self._usage, self._talk.react, self._a.runner_memory
        )
        return Suspending(
            store,
            self._a,
            self._talk,
            suspension,
            busy=lambda: serving.in_flight > 0,
            check=check,
            stop=self.stop,
        )

    def _check_health(self, store: Store, inbox: Inbox, serving: Serving) -> None:
        check = self._a.health_check
        if check is None or self._how is not None:
            return

        async def failed(why: str, silent: bool) -> None:
            await self._unhealthy(store, inbox, serving, why, silent=silent)

        serving.health = HealthChecks(
            check,
            self._a.health_seconds,
            self._a.ordered_at + check.start_period_seconds,
            serving,
            self._talk.send,
            passed=serving.found_healthy,
            excused=lambda why: self._talk.logs.add("WARN", why),
            failed=failed,
        )
        self._checking = self._loop.create_task(serving.health.run())

    async def _unhealthy(self, store: Store, inbox: Inbox, serving: Serving, why: str, *, silent: bool) -> None:
        """Take nothing new, and stay until a successor is there. A runner that does not react though it has nothing to
        do is of no use to anybody; one that has is left to its requests, whatever its checks say."""
        why = self._talk.logs.masked(why)  # it is kept with the worker and its revision
        inbox.rest()
        self._retiring = True
        self._talk.logs.add("ERROR", f"This runner is replaced: {why}.")
        while True:
            with contextlib.suppress(StoreUnavailable):
                await store.workers.mark_unhealthy(self._a.app, self._a.worker_id, why)
                break
            await asyncio.sleep(1.0)
        if silent and serving.in_flight == 0:
            serving.leave_hung(why)

    # --- events -------------------------------------------------------------------------------------------------------

    def _stop_ordered(self, order: str) -> None:
        if order == "gone":
            self.stop("kill", "its record is gone")
        elif order in ("suspend", "resume"):
            if self._suspending is not None and self._how is None:
                self._suspending.follow("suspend" if order == "suspend" else "resume")
        elif order:
            self._ordered = self._ordered or self._how is None
            self.stop("kill" if order == "kill" else "drain", "told to stop")

    def _runner_must_go(self, how: outcomes.StopRunner, why: str) -> None:
        if how != "no":
            self.stop(how, why)

    def _runner_gone(self, why: str) -> None:
        """The runner has ended and everything that it said has been heard."""
        if self._gone is None:
            by_us = self._how is not None or (self._suspending is not None and self._suspending.standing)
            reason = self._why if by_us else why
            last_word = outcomes.runner_disconnected(reason)
            self._gone = Ending(reason, last_word, None if by_us else "server_error", blames=not by_us)
        if self._serving is not None:
            self._serving.runner_ended(self._gone)
        self.stop("kill", why)

    # --- what others are told -----------------------------------------------------------------------------------------

    def _card(self) -> str:
        return f"{os.uname().nodename}:{','.join(map(str, self._a.gpu_ids))}"

    def _limits(self) -> Limits:
        rules = RetryRules(frozenset(self._a.skip_retry_conditions), self._a.retry_config)
        checked = self._a.health_check is not None and self._a.health_check.call_regularly
        slots = max(1, self._a.max_multiplexing)
        return Limits(slots, self._a.request_timeout, rules, self._a.cancel_grace, checked)


def _keep_lessons(assignment: Assignment, learned: Learned, folders: Sequence[str], forked: bool) -> None:
    file = assignment.lessons_file
    if file is None:
        return
    known = lessons.read(file)
    files = read_ahead.worth_reading(learned.files[: lessons.MAX_FILES], folders)
    fallback = assignment.cpu_fallback_for
    after = lessons.after_start(known, learned.modules, files, cpu_fallback_for=fallback, forked=forked)
    with contextlib.suppress(OSError):
        if after == known:
            os.utime(file)
        else:
            lessons.write(file, after)


_STAGES = {"import": "import", "setup": "setup()"}
