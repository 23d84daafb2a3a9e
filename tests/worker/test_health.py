"""A runner is asked whether it works: who notices what, what a failure costs, and what it must never cost."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from fal._spec import EndpointSpec, HealthCheckSpec

from scheduler.store.records import RequestState, WorkerState
from tests.support.loop import run
from tests.support.waiting import await_until
from tests.worker.stage import Stage, stage

#: Its checks do what a file says: pass, fail, hang on the loop's side, or hang in a thread.
PATIENT = """
import asyncio, pathlib, time

import fal
from fastapi import Request, Response
from fastapi.responses import JSONResponse

FOLDER = pathlib.Path(FOLDER_NAME)


class Probe(fal.App):
    def setup(self):
        self.checks = self.calls = 0

    def mood(self):
        self.checks += 1
        (FOLDER / "checks").write_text(str(self.checks))
        file = FOLDER / "mood"
        return file.read_text() if file.exists() else "well"

    @fal.endpoint("/check", health_check=fal.HealthCheck())
    async def check(self, request: Request):
        print("asked for its health")
        assert request.headers["x-fal-runner-health-check"] == "1"
        mood = self.mood()
        if mood == "hangs":
            await asyncio.sleep(600)
        if mood == "ill":
            return JSONResponse({"detail": "the tiles are out"}, 500)
        return {"request": self.current_request.request_id}

    @fal.endpoint("/check-in-thread")
    def check_in_thread(self) -> dict:
        if self.mood() == "hangs":
            time.sleep(600)
        return {}

    def health(self):
        (FOLDER / "asked-health").touch()
        if self.mood() == "ill":
            raise RuntimeError("the tiles are out")

    @fal.endpoint("/")
    def count(self) -> dict:
        self.calls += 1
        return {"calls": self.calls}

    @fal.endpoint("/answer")
    async def answer(self, request: Request) -> Response:
        wanted = await request.json()
        return JSONResponse({}, wanted["status"], headers=wanted.get("headers"))

    @fal.endpoint("/hold-the-loop")
    async def hold_the_loop(self, request: Request) -> dict:
        wanted = await request.json()
        (FOLDER / "holding").touch()
        while not (FOLDER / "let-go").exists():
            time.sleep(0.01)
        return {"held": True}

    @fal.endpoint("/slow")
    async def slow(self) -> dict:
        while not (FOLDER / "let-go").exists():
            await asyncio.sleep(0.01)
        return {"slow": True}
"""
PAUSE = 0.3


class Patient:
    """One worker of that app, and the folder by which it is made ill."""

    def __init__(self, on: Stage, folder: Path) -> None:
        self.on = on
        self.folder = folder
        self.app = ""

    async def start(self, path: str = "/check", startup_timeout: float = 60, **settings: Any) -> Any:
        source = PATIENT.replace("FOLDER_NAME", repr(str(self.folder)))
        multiplexing = settings.pop("max_multiplexing", 1)
        settings.setdefault("timeout_seconds", 1)
        self.app = await self.on.deploy(
            source,
            health_check=HealthCheckSpec(path, **settings),
            endpoints=(EndpointSpec(path, "check"),),
            max_multiplexing=multiplexing,
            startup_timeout=startup_timeout,
        )
        return await self.on.start_ready(self.app)

    def becomes(self, mood: str) -> None:
        (self.folder / "mood").write_text(mood)

    def checks(self) -> int:
        file = self.folder / "checks"
        return int(file.read_text() or "0") if file.exists() else 0

    async def checked(self, more: int = 2) -> None:
        """Wait for so many further checks."""
        await self.has_checked(self.checks() + more)

    async def has_checked(self, wanted: int) -> None:
        """Wait until there were so many checks."""

        async def reached() -> bool:
            return self.checks() >= wanted

        await await_until(reached, f"{wanted} checks")

    async def exists(self, name: str) -> None:
        async def there() -> bool:
            return (self.folder / name).exists()

        await await_until(there, name)

    async def unhealthy(self, worker: Any) -> Any:
        async def marked() -> Any:
            record = await self.on.worker(worker)
            return record if record.unhealthy else None

        return await await_until(marked, "the worker to be found unhealthy")

    async def streak(self) -> int:
        revision = await self.on.store.apps.revision(self.app, "r1")
        assert revision is not None
        return revision.crash_streak


def test_a_runner_that_fails_its_check_gets_no_more_requests_and_waits_for_its_successor(
    redis_url: str, tmp_path: Path
) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path, health_seconds=PAUSE) as on:
            patient = Patient(on, tmp_path)
            worker = await patient.start(failure_threshold=3)
            assert (await on.call(patient.app)).state is RequestState.COMPLETED
            await patient.checked()

            patient.becomes("ill")

            record = await patient.unhealthy(worker)
            why = 'health check POST /check failed 3 times in a row, last: 500 {"detail":"the tiles are out"}'
            assert record.retiring == why
            assert await patient.streak() == 1
            await on.logged(patient.app, f"This runner is replaced: {why}.")
            waits = await on.submit(patient.app)
            second = await on.start_ready(patient.app)
            assert (await on.result(patient.app, waits)).worker_id == second.worker_id
            assert (await on.worker(worker)).state is WorkerState.IDLE
            assert not (tmp_path / "asked-health").exists()

            await on.store.workers.request_stop(patient.app, worker.worker_id, "drain", why)
            assert (await on.reaches(worker, WorkerState.TERMINATED)).reason == why

    run(story())


def test_checks_leave_no_trace_among_the_requests(redis_url: str, tmp_path: Path) -> None:
    """They are no requests: not in the store, not counted, in nobody's log, and a worker is idle while they run."""

    async def story() -> None:
        async with stage(redis_url, tmp_path, health_seconds=0.05) as on:
            patient = Patient(on, tmp_path)
            worker = await patient.start()
            before = await on.reaches(worker, WorkerState.IDLE)

            await patient.checked(10)
            await on.logged(patient.app, "asked for its health")

            record = await on.worker(worker)
            assert (record.served, record.in_flight, record.idle_since_ms) == (0, 0, before.idle_since_ms)
            assert not [line for line in await on.log(patient.app) if line.request_id is not None]
            assert await on.store._redis.command("KEYS", "*health-check-*") == []

    run(story())


def test_a_check_takes_no_slot(redis_url: str, tmp_path: Path) -> None:
    """A worker of one slot is asked, and replaced, while its only slot is taken; and the request in it goes on."""

    async def story() -> None:
        async with stage(redis_url, tmp_path, health_seconds=PAUSE) as on:
            patient = Patient(on, tmp_path)
            worker = await patient.start(failure_threshold=2)
            running = await on.submit(patient.app, "/slow", mode="direct")
            await on.reaches(worker, WorkerState.RUNNING)
            await patient.checked()

            patient.becomes("ill")
            await patient.unhealthy(worker)
            (tmp_path / "let-go").touch()

            record = await on.result(patient.app, running)
            assert record.state is RequestState.COMPLETED
            assert record.worker_id == worker.worker_id

    run(story())


def test_a_request_that_holds_the_loop_is_no_failure(redis_url: str, tmp_path: Path) -> None:
    """Computing on the event loop is how much of fal's code is written: no check is answered meanwhile."""

    async def story() -> None:
        async with stage(redis_url, tmp_path, health_seconds=0.1) as on:
            patient = Patient(on, tmp_path)
            worker = await patient.start(failure_threshold=1, timeout_seconds=0.1)
            await patient.checked(1)
            running = await on.submit(patient.app, "/hold-the-loop", mode="direct")
            await patient.exists("holding")
            await asyncio.sleep(2.0)  # time for many checks, each of which would be enough
            (tmp_path / "let-go").touch()

            assert (await on.result(patient.app, running)).state is RequestState.COMPLETED
            await patient.checked(2)
            record = await on.worker(worker)
            assert (record.unhealthy, record.state) == (False, WorkerState.IDLE)

    run(story())


def test_a_runner_that_answers_no_check_and_has_nothing_to_do_is_killed(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path, health_seconds=PAUSE) as on:
            patient = Patient(on, tmp_path)
            worker = await patient.start(failure_threshold=2)
            await patient.checked()

            patient.becomes("hangs")

            ended = await on.reaches(worker, WorkerState.TERMINATED)
            assert ended.reason == "health check POST /check failed 2 times in a row, last: no answer within 1 s"
            assert await patient.streak() == 1

    run(story())


def test_hanging_checks_do_not_pile_up(redis_url: str, tmp_path: Path) -> None:
    """A handler in a thread cannot be cancelled. Asked again and again, it would take every thread of the app."""

    async def story() -> None:
        async with stage(redis_url, tmp_path, health_seconds=PAUSE) as on:
            patient = Patient(on, tmp_path)
            worker = await patient.start("/check-in-thread", failure_threshold=4)
            await patient.checked()

            patient.becomes("hangs")
            before = patient.checks()

            await on.reaches(worker, WorkerState.TERMINATED)
            assert patient.checks() <= before + 2  # one may have been on its way

    run(story())


def test_a_hanging_check_never_costs_a_running_request(redis_url: str, tmp_path: Path) -> None:
    """Others overtake the check, so that it is the check that hangs and not the loop: the worker is replaced, but what
    it runs is not killed."""

    async def story() -> None:
        async with stage(redis_url, tmp_path, health_seconds=PAUSE) as on:
            patient = Patient(on, tmp_path)
            worker = await patient.start(failure_threshold=2, max_multiplexing=2)
            running = await on.submit(patient.app, "/slow", mode="direct")
            await on.reaches(worker, WorkerState.RUNNING)
            await patient.checked()

            patient.becomes("hangs")

            async def overtaken() -> bool:
                await on.submit(patient.app)
                return (await on.worker(worker)).unhealthy

            await await_until(overtaken, "the worker to be found unhealthy", interval=0.1)
            assert (await on.worker(worker)).state is WorkerState.RUNNING
            (tmp_path / "let-go").touch()
            assert (await on.result(patient.app, running)).worker_id == worker.worker_id

    run(story())


def test_failures_of_the_start_period_do_not_count(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path, health_seconds=0.1) as on:
            patient = Patient(on, tmp_path)
            patient.becomes("ill")
            worker = await patient.start(failure_threshold=1)

            await patient.checked(5)
            assert not (await on.worker(worker)).unhealthy
            line = "The health check POST /check fails (500"
            await on.logged(patient.app, line)
            assert len([entry for entry in await on.log(patient.app) if line in entry.message]) == 1

            patient.becomes("well")
            await patient.checked(2)
            patient.becomes("ill")
            await patient.unhealthy(worker)

    run(story())


def test_the_start_period_ends(redis_url: str, tmp_path: Path) -> None:
    """A worker that has never passed is not left in place for ever; ``startup_timeout`` is the least it gets."""

    async def story() -> None:
        async with stage(redis_url, tmp_path, health_seconds=0.1) as on:
            patient = Patient(on, tmp_path)
            patient.becomes("ill")
            worker = await patient.start(failure_threshold=1, start_period_seconds=0, startup_timeout=8)
            await on.logged(patient.app, "failures count once one has passed")
            await patient.unhealthy(worker)

    run(story())


def test_on_demand_nobody_asks_before_something_went_wrong(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path, health_seconds=0.2) as on:
            patient = Patient(on, tmp_path)
            worker = await patient.start(call_regularly=False, failure_threshold=2)
            for status in (200, 404, 422, 501):
                await on.call(patient.app, "/answer", json.dumps({"status": status}).encode())
            await asyncio.sleep(1.0)  # five regular checks
            assert patient.checks() == 0

            await on.call(patient.app, "/answer", b'{"status": 500}')
            await patient.has_checked(1)
            await on.call(patient.app, "/answer", b'{"status": 200, "headers": {"x-fal-runner-health-check": "1"}}')
            await patient.has_checked(2)

            patient.becomes("ill")
            await on.call(patient.app, "/answer", b'{"status": 502}')
            # One bad answer is enough: a failure on demand is looked into until it is one or the other.
            record = await patient.unhealthy(worker)
            assert "failed 2 times in a row" in str(record.retiring)

    run(story())


def test_many_bad_answers_are_few_checks(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path, health_seconds=600) as on:
            patient = Patient(on, tmp_path)
            await patient.start(call_regularly=False)

            for _ in range(20):
                await on.call(patient.app, "/answer", b'{"status": 500}')

            await patient.has_checked(1)
            assert patient.checks() == 1  # the next one is two minutes away

    run(story())


def test_a_revision_is_trusted_again_once_a_check_has_passed_after_a_request(redis_url: str, tmp_path: Path) -> None:
    """Its workers serve one request and fall ill. A first good answer that forgave everything would restart them at
    full speed for ever."""

    async def story() -> None:
        async with stage(redis_url, tmp_path, health_seconds=PAUSE) as on:
            patient = Patient(on, tmp_path)
            for failures in (1, 2):
                patient.becomes("well")
                worker = await patient.start() if failures == 1 else await on.start_ready(patient.app)
                await patient.checked(1)
                patient.becomes("ill")
                assert (await on.call(patient.app)).state is RequestState.COMPLETED
                await patient.unhealthy(worker)
                assert await patient.streak() == failures
                await on.store.workers.request_stop(patient.app, worker.worker_id, "kill", "test")
                await on.reaches(worker, WorkerState.TERMINATED)

            patient.becomes("well")
            await on.start_ready(patient.app)
            await on.call(patient.app)

            async def trusted() -> bool:
                return await patient.streak() == 0

            await await_until(trusted, "the revision to be trusted again")

    run(story())


def test_health_of_its_own_is_what_an_app_is_asked_for(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path, health_seconds=PAUSE) as on:
            patient = Patient(on, tmp_path)
            worker = await patient.start("/health", method="GET", failure_threshold=1)
            await patient.checked(1)
            patient.becomes("ill")
            record = await patient.unhealthy(worker)
            assert str(record.retiring).startswith("health check GET /health failed once, last: 500")

    run(story())
