"""What a worker does when its runner dies, hangs, takes too long or never starts; nobody waits for ever."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path

import psutil
import pytest
from fal._spec import ScalingSpec

from keepwarm import redis_server as embedded
from scheduler.store.records import Mode, RequestRecord, RequestState, WorkerState
from tests.support.loop import run
from tests.support.waiting import await_until, wait_until
from tests.worker.apps import DIES_IN_SETUP, FAILS_IN_IMPORT, FAILS_IN_SETUP, HANGS_IN_SETUP, PROBE
from tests.worker.stage import Stage, stage


def answer(record: RequestRecord) -> dict[str, object]:
    assert record.outcome is not None
    content: dict[str, object] = json.loads(record.outcome.body)
    return content


def has_ended(process: psutil.Process) -> bool:
    """Gone, or dead and waiting for whoever adopted it."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_killed_runner_costs_a_queued_request_one_attempt(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            first = await on.start_ready(app)
            body = json.dumps({"flag": str(tmp_path / "flag")}).encode()
            request_id = await on.submit(app, "/die-once", body)

            ended = await on.reaches(first, WorkerState.TERMINATED)
            assert "SIGKILL" in (ended.reason or "")
            assert await asyncio.to_thread(on.ended, first) == 0
            await on.promoted(app, request_id)
            await on.start_ready(app)
            record = await on.result(app, request_id)

            assert (record.state, record.attempt) == (RequestState.COMPLETED, 2)
            assert answer(record) == {"survived": True}

    run(story())


def test_a_killed_runner_ends_a_direct_request_at_once(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            await on.start_ready(app)

            record = await on.call(app, "/die", mode="direct")

            assert record.outcome is not None
            assert (record.outcome.status, record.error_type) == (503, "runner_disconnected")
            assert "exit status 66" in str(answer(record)["detail"])

    run(story())


def test_a_crash_with_several_in_flight_accuses_nobody_for_good(redis_url: str, tmp_path: Path) -> None:
    """An innocent request beside a poisonous one must not be counted as a crash: both run again, alone."""

    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE, max_multiplexing=2)
            first = await on.start_ready(app)
            innocent = await on.submit(app, "/slow", b'{"seconds": 0.5}')
            await on.reaches(first, WorkerState.RUNNING)
            await on.submit(app, "/die")
            await on.reaches(first, WorkerState.TERMINATED)

            async def innocent_done() -> bool:
                await on.store.requests.promote(app, epoch=1)
                if not await on.store.workers.list(app):
                    await on.start(app)
                return (await on.store.requests.get(app, innocent)).state.terminal  # type: ignore[union-attr]

            await await_until(innocent_done, "the innocent request has ended", interval=0.1)
            record = await on.result(app, innocent)

            assert (record.state, record.attempt) == (RequestState.COMPLETED, 2)

    run(story())


def test_a_stopped_runner_is_noticed_and_killed(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path, ping_seconds=0.5) as on:
            app = await on.deploy(PROBE)
            worker = await on.start_ready(app)
            runner = on.runner_of(worker)

            record = await on.call(app, "/stop", mode="direct")

            assert (record.error_type, answer(record)["detail"]) == (
                "runner_connection_timeout",
                "The runner did not react for 1.5 s and was ended.",
            )
            await on.reaches(worker, WorkerState.TERMINATED)
            assert has_ended(runner)

    run(story())


def test_a_runner_that_holds_the_interpreter_for_ever_is_killed(redis_url: str, tmp_path: Path) -> None:
    """F04: a regular expression that never ends holds the GIL: not even the thread that answers pings runs, and no
    time-out inside the process could either."""

    async def story() -> None:
        async with stage(redis_url, tmp_path, ping_seconds=0.5) as on:
            source = PROBE.replace("await asyncio.sleep(seconds)", "__import__('re').match('(a+)+$', 'a' * 40 + 'b')")
            app = await on.deploy(source)
            worker = await on.start_ready(app)
            runner = on.runner_of(worker)

            record = await on.call(app, "/slow", b'{"seconds": 0}', mode="direct")

            assert record.error_type == "runner_connection_timeout"
            await on.reaches(worker, WorkerState.TERMINATED)
            assert has_ended(runner)

    run(story())


def test_a_blocked_event_loop_is_no_hang(redis_url: str, tmp_path: Path) -> None:
    """setup() or a handler may hold the loop for long; the runner still answers pings from another thread."""

    async def story() -> None:
        async with stage(redis_url, tmp_path, ping_seconds=0.7) as on:
            source = PROBE.replace("await asyncio.sleep(seconds)", "time.sleep(seconds)")
            app = await on.deploy(source)
            await on.start_ready(app)

            record = await on.call(app, "/slow", b'{"seconds": 2.5}')

            assert record.state is RequestState.COMPLETED

    run(story())


def test_a_request_over_its_time_kills_the_runner_and_is_not_retried(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE, scaling=ScalingSpec(request_timeout=0.5), max_multiplexing=2)
            worker = await on.start_ready(app)
            slow = await on.submit(app, "/block")
            await on.logged(app, "blocking")
            beside = await on.submit(app, "/slow", b'{"seconds": 0.45}')

            record = await on.result(app, slow)

            assert record.outcome is not None
            assert (record.outcome.status, record.error_type, record.attempt) == (504, "request_timeout", 1)
            ended = await on.reaches(worker, WorkerState.TERMINATED)
            assert "request_timeout (0.5 s)" in (ended.reason or "")
            # The neighbour is not to blame: it is back in the queue at once.
            assert await on.store.requests.state(app, beside) in (RequestState.IN_QUEUE, RequestState.COMPLETED)

    run(story())


@pytest.mark.parametrize(("mode", "error_type"), [("queued", "client_cancelled"), ("direct", "client_disconnected")])
def test_a_cancelled_request_that_will_not_stop_costs_its_runner_where_the_app_wishes_so(
    redis_url: str, tmp_path: Path, mode: Mode, error_type: str
) -> None:
    """A sync handler cannot be interrupted: cancelled, it went on computing for nobody, and the card with it."""

    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE, cancel_grace_seconds=0.3, max_multiplexing=2)
            worker = await on.start_ready(app)
            stuck = await on.submit(app, "/block", mode=mode)
            await on.logged(app, "blocking")
            beside = await on.submit(app, "/slow", b'{"seconds": 30}')
            await await_until(lambda: _runs(on, app, beside), "its neighbour runs")

            assert await on.store.requests.cancel(app, stuck, error_type=error_type) == "cancelled_running"

            ended = await on.reaches(worker, WorkerState.TERMINATED)
            assert "cancel_grace_seconds (0.3 s)" in (ended.reason or "")
            assert await on.store.requests.state(app, stuck) is RequestState.CANCELLED
            # The neighbour is not to blame: it is back in the queue at once.
            record = await on.store.requests.get(app, beside)
            assert record is not None
            assert (record.state, record.attempt) == (RequestState.IN_QUEUE, 1)

    run(story())


def test_a_slot_in_which_a_cancelled_request_runs_on_is_known_until_it_ends(redis_url: str, tmp_path: Path) -> None:
    """A caller hung up; the next one waited a quarter of a minute for that code to end, beside room for more workers:
    the worker counted as idle."""

    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            worker = await on.start_ready(app)
            stuck = await on.submit(app, "/nap")
            await on.logged(app, "napping")

            assert await on.store.requests.cancel(app, stuck) == "cancelled_running"

            async def leftover() -> int:
                return (await on.worker(worker)).leftover

            async def taken() -> bool:
                return await leftover() == 1

            async def free() -> bool:
                return await leftover() == 0

            await await_until(taken, "the slot counts as taken")
            await await_until(free, "the slot is free again")
            assert (await on.worker(worker)).state is WorkerState.IDLE

    run(story())


async def _runs(on: Stage, app: str, request_id: str) -> bool:
    return await on.store.requests.state(app, request_id) is RequestState.IN_PROGRESS


def test_503_is_retried_on_a_new_runner(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            worker = await on.start_ready(app)

            request_id = await on.submit(app, "/answer", b'{"status": 503}', max_attempts=2)

            await on.reaches(worker, WorkerState.TERMINATED)
            assert await on.store.requests.state(app, request_id) is RequestState.IN_QUEUE
            await on.promoted(app, request_id)
            await on.start_ready(app)
            record = await on.result(app, request_id)
            assert record.outcome is not None
            assert (record.outcome.status, record.attempt, answer(record)) == (503, 2, {"answered": 503})

    run(story())


def test_a_call_that_comes_while_a_runner_must_go_is_served_by_the_next_one(redis_url: str, tmp_path: Path) -> None:
    """An app answered 503 on one of two slots; what was pushed to the other one while that was written down died with
    the runner. Redis holds its writes back here, so that the call arrives exactly then."""

    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE, max_multiplexing=2)
            first = await on.start_ready(app)
            gate = tmp_path / "gate"
            await on.submit(app, "/gated-503", json.dumps({"gate": str(gate)}).encode())
            await on.reaches(first, WorkerState.RUNNING)

            await on.store._redis.command("CLIENT", "PAUSE", 1500, "WRITE")
            gate.touch()
            await await_until(lambda: _exists(tmp_path / "gate-passed"), "the app to answer")
            submitting = asyncio.create_task(on.submit(app, mode="direct"))

            await on.reaches(first, WorkerState.TERMINATED)
            second = await on.start_ready(app)
            record = await on.result(app, await submitting)
            assert record.state is RequestState.COMPLETED
            assert record.worker_id == second.worker_id

    run(story())


async def _exists(path: Path) -> bool:
    return path.exists()


def test_a_caller_may_count_the_retries(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            worker = await on.start_ready(app)

            body = b'{"status": 503, "headers": {"x-fal-stop-runner": "false"}}'
            never = await on.result(app, await on.submit(app, "/answer", body, retries={"server_error": 0}))
            once = await on.submit(app, "/answer", body, retries={"server_error": 1})
            await on.promoted(app, once)
            twice = await on.result(app, once)

            assert (never.attempt, twice.attempt) == (1, 2)
            assert never.outcome is not None
            assert never.outcome.status == 503
            assert twice.outcome is not None
            assert twice.outcome.status == 503
            assert worker.worker_id == twice.worker_id

    run(story())


def test_what_the_caller_says_of_server_errors_holds_for_a_dead_runner_too(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            await on.start_ready(app)

            record = await on.result(app, await on.submit(app, "/die", retries={"server_error": 0}))

            assert (record.state, record.attempt, record.error_type) == (RequestState.ERROR, 1, "runner_disconnected")

    run(story())


def test_an_app_may_ask_for_a_new_runner_after_a_good_answer(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            worker = await on.start_ready(app)
            body = b'{"status": 200, "headers": {"x-fal-stop-runner": "true"}}'

            record = await on.call(app, "/answer", body)

            assert record.state is RequestState.COMPLETED
            await on.reaches(worker, WorkerState.TERMINATED)
            await on.logged(app, "teardown runs")

    run(story())


async def failed_start(on: Stage, app: str) -> tuple[str, str]:
    """The reason of the worker's end, and the revision's last startup error."""
    worker = await on.start(app)
    ended = await on.reaches(worker, WorkerState.TERMINATED)
    assert await asyncio.to_thread(on.ended, worker) == 0
    revision = await on.store.apps.revision(app, "r1")
    assert revision is not None
    assert revision.startup_failures == 1
    return ended.reason or "", revision.last_startup_error or ""


def test_a_failing_setup_is_reported_with_its_traceback(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(FAILS_IN_SETUP)

            reason, error = await failed_start(on, app)

            assert reason == error == "setup() failed: RuntimeError: the weights are not there"
            lines = [entry.message for entry in await on.log(app)]
            assert "about to fail" in lines
            assert any('app.py", line 8, in setup' in line for line in lines)
            assert lines[-1] == f"The app did not start: {error}"

    run(story())


def test_a_failing_import_is_reported(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(FAILS_IN_IMPORT)

            _, error = await failed_start(on, app)

            assert error.startswith("import failed: ModuleNotFoundError: No module named 'a_module_that_is_not_there'")

    run(story())


def test_a_runner_that_dies_in_setup_is_reported_with_its_last_words(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(DIES_IN_SETUP)

            _, error = await failed_start(on, app)

            assert error == "the runner ended with signal SIGABRT during setup()"
            assert any("free(): invalid pointer" in entry.message for entry in await on.log(app))

    run(story())


def test_a_start_over_its_time_is_ended(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(HANGS_IN_SETUP, startup_timeout=1.5)

            _, error = await failed_start(on, app)

            # Which stage it was in depends on how busy the machine is.
            assert error.startswith("not ready within startup_timeout (1.5 s), ")
            assert (await on.log(app))[-1].message == f"The app did not start: {error}"

    run(story())


def test_a_killed_supervisor_leaves_no_runner_behind(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            worker = await on.start_ready(app)
            runner = on.runner_of(worker)

            on.supervisors[worker.worker_id].kill()

            await asyncio.to_thread(wait_until, lambda: has_ended(runner), "the runner has gone")

    run(story())


def test_what_user_code_forked_off_ends_with_the_worker(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            worker = await on.start_ready(app)
            await on.call(app, "/orphan")
            supervisor = psutil.Process(on.supervisors[worker.worker_id].pid)
            below = supervisor.children(recursive=True)
            assert len(below) >= 2

            await on.store.workers.request_stop(app, worker.worker_id, "kill", "test")

            await on.reaches(worker, WorkerState.TERMINATED)
            assert not [process for process in below if not has_ended(process)]

    run(story())


MODE_OF = """
import stat

def mode_of(n):
    try:
        return os.fstat(n).st_mode if os.get_inheritable(n) is False and is_ours(n) else 0
    except OSError:
        return 0

def is_ours(n):
    import socket
    other = socket.socket(fileno=os.dup(n))
    with other:
        # made by whoever started this process; those of its own event loop were made by itself
        return other.family == socket.AF_UNIX and other.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 4)[:4] \
            != os.getpid().to_bytes(4, "little")
"""


def test_garbage_on_the_socket_ends_the_runner(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            noise = "[os.write(n, bytes(64 * [255])) for n in range(3, 30) if stat.S_ISSOCK(mode_of(n))]"
            source = PROBE.replace("os._exit(66)", noise) + MODE_OF
            app = await on.deploy(source)
            worker = await on.start_ready(app)

            record = await on.call(app, "/die", mode="direct")

            assert record.error_type == "runner_disconnected"
            ended = await on.reaches(worker, WorkerState.TERMINATED)
            assert "unreadable message" in (ended.reason or "")

    run(story())


def test_a_redis_that_was_away_gets_the_result_when_it_is_back(tmp_path: Path) -> None:
    """The result of a long computation must not be thrown away because Redis was restarted in the meantime."""

    async def story() -> None:
        with tempfile.TemporaryDirectory(prefix="kwt-") as short:
            folder = Path(short)
            redis = await asyncio.to_thread(embedded.start, folder, "everysec")
            try:
                async with stage(f"unix://{embedded.socket_path(folder)}", tmp_path) as on:
                    app = await on.deploy(PROBE)
                    worker = await on.start_ready(app)
                    request_id = await on.submit(app, "/slow", b'{"seconds": 0.5}')
                    await on.reaches(worker, WorkerState.RUNNING)

                    redis.kill()
                    await asyncio.to_thread(redis.wait)
                    await asyncio.sleep(0.7)  # until the answer is there and nobody to give it to
                    redis = await asyncio.to_thread(embedded.start, folder, "everysec")

                    record = await on.result(app, request_id)
                    assert (record.state, record.attempt) == (RequestState.COMPLETED, 1)
                    assert (await on.call(app)).state is RequestState.COMPLETED
            finally:
                redis.kill()
                redis.wait()

    run(story())
