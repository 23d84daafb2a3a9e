"""The host agent: what it reports, how it starts and buries workers, and that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
from pathlib import Path

import psutil

from scheduler.store.records import RequestState, WorkerState
from tests.support.loop import run
from tests.support.processes import command_of
from tests.support.waiting import await_until, wait_until
from tests.worker.apps import PROBE
from tests.worker.stage import ENVIRONMENT_KEY, Stage, agent, stage


def below(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def all_gone(processes: list[psutil.Process]) -> bool:
    def gone(process: psutil.Process) -> bool:
        try:
            return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    return all(gone(process) for process in processes)


async def stopped(process: subprocess.Popen[bytes]) -> int:
    return await asyncio.to_thread(process.wait, 30)


async def host_is_alive(on: Stage) -> bool:
    return any(host.host == "stage" and host.alive for host in await on.store.hosts.list())


def test_a_host_reports_what_it_offers_and_says_good_bye(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            simulated = {"KEEPWARM_SIMULATED_GPUS": "NVIDIA A100-SXM4-40GB:40960=2", "KEEPWARM_OFFER": "GPU-A100=1"}
            with agent(on, KEEPWARM_CPU_FALLBACK="1", **simulated) as process:
                await await_until(lambda: host_is_alive(on), "the host has reported")
                (host,) = await on.store.hosts.list()
                assert host.machine_types[:2] == ("GPU-A100", "GPU")
                assert [gpu[0] for gpu in host.gpus] == [0]
                assert host.cpu_fallback

                process.send_signal(signal.SIGTERM)
                assert await stopped(process) == 0
                assert not await host_is_alive(on)

    run(story())


def test_an_ordered_worker_serves_and_ends_with_the_agent(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            with agent(on) as process:
                worker = await on.place(app)
                assert (await on.call(app)).state is RequestState.COMPLETED
                running = await on.submit(app, "/slow", b'{"seconds": 1}')
                await on.reaches(worker, WorkerState.RUNNING)
                processes = below(process)
                zygotes = [
                    one for one in processes if "--zygote" in command_of(one) or "zygote_room" in str(command_of(one))
                ]
                assert len(processes) - len(zygotes) == 2

                process.send_signal(signal.SIGTERM)

                assert await stopped(process) == 0
                assert (await on.result(app, running)).state is RequestState.COMPLETED
                assert (await on.worker(worker)).state is WorkerState.TERMINATED
                assert all_gone(processes)
                assert await on.store.workers.orders("stage") == {}

    run(story())


def test_a_second_signal_does_not_wait(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            with agent(on) as process:
                worker = await on.place(app)
                request_id = await on.submit(app, "/slow", b'{"seconds": 60}')
                await on.reaches(worker, WorkerState.RUNNING)
                processes = below(process)

                process.send_signal(signal.SIGTERM)
                await on.reaches(worker, WorkerState.DRAINING)
                process.send_signal(signal.SIGTERM)

                assert await stopped(process) == 0
                assert all_gone(processes)
                assert (await on.worker(worker)).state is WorkerState.TERMINATED
                # Its lease was cut short, so that the reaper need not wait for it.
                assert (await on.store.requests.expired_leases(app))[0][0] == request_id

    run(story())


def test_a_killed_supervisor_is_noticed_at_once(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            with agent(on) as process:
                worker = await on.place(app)
                await on.call(app, "/orphan")
                request_id = await on.submit(app, "/slow", b'{"seconds": 60}')
                await on.reaches(worker, WorkerState.RUNNING)
                processes = below(process)
                supervisor = next(p for p in processes if "gpu_worker.supervisor" in command_of(p))

                supervisor.kill()

                ended = await on.reaches(worker, WorkerState.TERMINATED)
                assert "signal SIGKILL" in (ended.reason or "")
                assert (await on.store.requests.expired_leases(app))[0][0] == request_id
                await asyncio.to_thread(wait_until, lambda: all_gone(processes), "runner and orphans have gone")

                again = await on.place(app)
                await on.reaches(again, WorkerState.IDLE)

    run(story())


def test_a_missing_environment_is_asked_for_again(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            shutil.rmtree(tmp_path / "environments" / ENVIRONMENT_KEY)
            with agent(on):
                worker = await on.place(app)

                ended = await on.reaches(worker, WorkerState.TERMINATED)

                assert "is not on this host" in (ended.reason or "")
                asked = await on.store.environments.take_build_requests(block_s=0)
                assert [key for _, key in asked] == [ENVIRONMENT_KEY]
                revision = await on.store.apps.revision(app, "r1")
                assert revision is not None
                assert revision.startup_failures == 0

    run(story())


def test_an_order_without_a_record_is_dropped(redis_url: str, tmp_path: Path) -> None:
    """Records expire after a day, orders are renewed with each report: left alone, one would be tried for ever."""

    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            await on.store._redis.command("HSET", "kw:host:{stage}:orders", "long-gone", "tester/nothing")
            with agent(on):

                async def dropped() -> bool:
                    return await on.store.workers.orders("stage") == {}

                await await_until(dropped, "the order is dropped")

    run(story())


def test_missing_files_count_as_a_failed_start(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            shutil.rmtree(tmp_path / "bundles")
            with agent(on):
                worker = await on.place(app)

                ended = await on.reaches(worker, WorkerState.TERMINATED)

                assert "cannot be laid out" in (ended.reason or "")
                revision = await on.store.apps.revision(app, "r1")
                assert revision is not None
                assert revision.startup_failures == 1

    run(story())


def test_a_killed_agent_takes_its_workers_along_and_the_next_one_goes_on(redis_url: str, tmp_path: Path) -> None:
    """Orders outlive their agent: without a look at what still runs, the next one would start each a second time."""

    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            with agent(on) as first:
                worker = await on.place(app)
                await on.reaches(worker, WorkerState.IDLE)
                running = await on.submit(app, "/slow", b'{"seconds": 2}')
                await on.reaches(worker, WorkerState.RUNNING)
                processes = below(first)
                first.kill()
                await stopped(first)

                with agent(on) as second:
                    await on.reaches(worker, WorkerState.DRAINING)
                    assert (await on.result(app, running)).state is RequestState.COMPLETED
                    await on.reaches(worker, WorkerState.TERMINATED)
                    await asyncio.to_thread(wait_until, lambda: all_gone(processes), "the old worker has gone")
                    assert below(second) == []

                    again = await on.place(app)
                    await on.reaches(again, WorkerState.IDLE)
                    second.send_signal(signal.SIGTERM)
                    assert await stopped(second) == 0

    run(story())


def test_two_agents_of_one_name_exclude_each_other(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            with agent(on):
                await await_until(lambda: host_is_alive(on), "the host has reported")
                with agent(on) as second:
                    assert await stopped(second) == 1

    run(story())


def test_an_offer_that_the_host_cannot_keep_is_an_error(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            with agent(on, KEEPWARM_OFFER="GPU-A100=64") as process:
                assert await stopped(process) == 1

    run(story())


def test_user_code_sees_nothing_of_the_operators_environment(redis_url: str, tmp_path: Path) -> None:
    """/proc/<parent>/environ showed user code everything that the operator's shell had exported, cloud keys included:
    the supervisor had inherited all of it."""

    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            with agent(on, AWS_SECRET_ACCESS_KEY="s3cret-of-the-operator", KEEPWARM_OWNER="somebody") as process:
                await on.place(app)
                await on.call(app)
                for worker_process in below(process):
                    seen = worker_process.environ()
                    assert "s3cret-of-the-operator" not in seen.values(), worker_process.cmdline()
                    assert redis_url not in seen.values()
                    assert [name for name in seen if name.startswith("KEEPWARM_")] == []

    run(story())


def test_a_folder_of_bundles_that_cannot_be_used_costs_the_start_and_says_why(redis_url: str, tmp_path: Path) -> None:
    """F27: a file in the folder's place makes every use of it fail, for root too. The next start finds it mended."""

    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            bundles = on.settings.data_dir / "bundles"
            away = bundles.rename(tmp_path / "away")
            bundles.touch()
            with agent(on):
                worker = await on.place(app)
                ended = await on.reaches(worker, WorkerState.TERMINATED)
                assert "the files of revision r1 cannot be laid out: " in (ended.reason or "")
                assert "Not a directory" in (ended.reason or "")
                revision = await on.store.apps.revision(app, "r1")
                assert revision is not None
                assert revision.last_startup_error == ended.reason

                bundles.unlink()
                away.rename(bundles)

                await on.reaches(await on.place(app), WorkerState.IDLE)

    run(story())
