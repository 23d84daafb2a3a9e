"""What a runner sees of its host, and that nothing of it stays when it is ended."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import fal
import psutil

from gpu_worker import process_tree
from gpu_worker.assignment import Assignment
from gpu_worker.preparation import _has_own_key, platform_environ, storage_hosts
from gpu_worker.runner_process import RunnerProcess, passed_environ, runner_environ
from gpu_worker.settings import AgentSettings
from tests.support.waiting import wait_until

HOST = {
    "PATH": "/usr/bin",
    "LANG": "de_DE.UTF-8",
    "HOME": "/root",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONPATH": "/somewhere",
    "KEEPWARM_REDIS_URL": "redis://:secret@host",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "HF_HOME": "/models",
    "HF_HUB_OFFLINE": "1",
}


def assignment(tmp_path: Path) -> Assignment:
    bundle = tmp_path / "bundle"
    bundle.mkdir(exist_ok=True)
    return Assignment(
        app="ada/hello",
        worker_id="w1",
        revision="r1",
        machine_type="GPU-A100",
        gpu_ids=(0, 2),
        python=sys.executable,
        environment_dir="/env",
        bundle_dir=str(bundle),
        files_dir=str(tmp_path / "incoming"),
        home_dir=str(tmp_path / "home"),
        sdk_dir=str(Path(fal.__file__).parents[1]),
        data_dir=str(tmp_path),
        redis_url="redis://:secret@host",
        entry_file="app.py",
        class_name="App",
        ordered_at=0.0,
        parent_pid=os.getpid(),
        passed_environ=passed_environ(HOST, ("HF_HOME", "HF_HUB_OFFLINE", "KEEPWARM_REDIS_URL")),
    )


def test_a_runner_sees_what_it_was_given_and_nothing_else(tmp_path: Path) -> None:
    environ = runner_environ(assignment(tmp_path))

    assert "secret" not in " ".join(environ.values())
    assert not [name for name in environ if name.startswith("KEEPWARM_")]
    assert "PYTHONDONTWRITEBYTECODE" not in environ
    assert environ["PYTHONPATH"] == str(Path(fal.__file__).parents[1])
    assert environ["PATH"] == f"{Path(sys.executable).parent}:/usr/bin"
    assert environ["LANG"] == "de_DE.UTF-8"
    assert environ["CUDA_VISIBLE_DEVICES"] == "0,2"
    assert environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert (environ["IS_ISOLATE_AGENT"], environ["FAL_APP_NAME"]) == ("1", "hello")


def test_caches_lie_in_the_data_folder_unless_the_operator_passes_another(tmp_path: Path) -> None:
    given = assignment(tmp_path)
    bare = runner_environ(replace(given, passed_environ={}))

    assert runner_environ(given)["HF_HOME"] == "/models"
    assert runner_environ(given)["HF_HUB_OFFLINE"] == "1"
    assert bare["HF_HOME"].startswith(str(tmp_path / "home"))
    assert bare["HOME"] == str(tmp_path / "home")


def test_without_gpus_none_is_visible(tmp_path: Path) -> None:
    assert runner_environ(replace(assignment(tmp_path), gpu_ids=()))["CUDA_VISIBLE_DEVICES"] == ""


def test_an_assignment_survives_the_way_to_the_supervisor(tmp_path: Path) -> None:
    given = replace(assignment(tmp_path), retry_config={"timeout": 1}, storage_hosts=("localhost:8000",))

    assert Assignment.from_json(given.to_json()) == given


def test_downloads_may_reach_the_platform_by_every_name_of_loopback(tmp_path: Path) -> None:
    settings = AgentSettings(
        redis_url="", data_dir=tmp_path, sdk_dir=tmp_path, host_id="h", public_url="https://models.example.org"
    )
    assert storage_hosts(settings) == ("models.example.org",)

    local = replace(settings, local_url="http://127.0.0.1:8000")
    assert storage_hosts(local) == ("models.example.org", "127.0.0.1:8000", "localhost:8000", "[::1]:8000")


def test_an_apps_own_key_is_never_taken_to_fals_cloud(tmp_path: Path) -> None:
    """The official client goes to fal.run unless it is told otherwise, and sends the key that it finds. A key that was
    given may be one for there."""
    settings = AgentSettings(redis_url="", data_dir=tmp_path, sdk_dir=tmp_path, host_id="h")
    assert platform_environ(settings, True) == {}, "no address, and no key then"
    local = replace(settings, local_url="http://127.0.0.1:8000")
    assert platform_environ(local, False) == {"KEEPWARM_URL": "http://127.0.0.1:8000"}
    assert platform_environ(local, True) == {
        "KEEPWARM_URL": "http://127.0.0.1:8000",
        "FAL_RUN_HOST": "127.0.0.1:8000/run",
        "FAL_QUEUE_RUN_HOST": "127.0.0.1:8000/queue",
    }
    public = replace(local, public_url="https://gpu.example")
    assert platform_environ(public, False) == {"KEEPWARM_URL": "https://gpu.example"}

    given = replace(assignment(tmp_path), platform_environ=platform_environ(public, True))
    assert runner_environ(given)["FAL_RUN_HOST"] == "gpu.example/run"
    assert _has_own_key({"TOKEN": "t"}, local)
    for name in ("FAL_KEY", "FAL_KEY_ID", "FAL_RUN_HOST", "KEEPWARM_URL"):
        assert not _has_own_key({name: "given"}, local), name
        assert not _has_own_key({}, replace(local, passed_environ={name: "given"})), name
    assert "KEEPWARM_URL" not in runner_environ(assignment(tmp_path))


def test_a_started_runner_leads_its_own_group_and_is_killed_with_it(tmp_path: Path) -> None:
    runner = RunnerProcess.start(assignment(tmp_path))
    try:
        assert os.getpgid(runner.pid) == runner.pid
        assert runner.poll() is None
    finally:
        runner.kill()
        assert runner.wait() == -9
        runner.control.close()
        for pipe in runner.open_pipes():
            pipe.close()
    assert process_tree.describe_exit(-9) == "signal SIGKILL (out of memory?)"


def test_orphans_that_detached_themselves_are_found_and_killed(tmp_path: Path) -> None:
    """A fork that calls setsid() leaves its group and survives the group's kill; only adoption finds it again."""
    listing = tmp_path / "pid"
    code = (
        "import os,sys,time\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from gpu_worker import process_tree\n"
        "process_tree.adopt_orphans()\n"
        "if os.fork() == 0:\n"
        "    if os.fork() == 0:\n"
        "        os.setsid()\n"
        "        open(sys.argv[1], 'w').write(str(os.getpid()))\n"
        "        time.sleep(60)\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "while not os.path.exists(sys.argv[1]) or not open(sys.argv[1]).read(): time.sleep(0.01)\n"
        "sys.exit(len(process_tree.kill_descendants()))\n"
    )
    status = os.spawnv(
        os.P_WAIT, sys.executable, [sys.executable, "-c", code, str(listing), str(Path(__file__).parents[2])]
    )

    assert status == 0
    wait_until(lambda: not psutil.pid_exists(int(listing.read_text())), "the orphan has gone")
