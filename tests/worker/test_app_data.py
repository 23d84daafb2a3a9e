"""``/data``: user code names it, whatever folder the operator gives to it, and the host's own ``/`` is left alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from gpu_worker import app_data
from gpu_worker.runner_process import runner_environ
from tests.support.loop import run
from tests.worker.stage import Stage, stage
from tests.worker.test_runner_process import assignment

KEEPER = """
import os
from pathlib import Path

import fal
from fal.toolkit import FAL_MODEL_WEIGHTS_DIR, FAL_PERSISTENT_DIR, FAL_REPOSITORY_DIR
from pydantic import BaseModel


class Input(BaseModel):
    write: str = ""


class Probe(fal.App):
    @fal.endpoint("/")
    def keep(self, request: Input) -> dict:
        kept = Path("/data/models/kept.txt")
        if request.write:
            kept.parent.mkdir(exist_ok=True)
            kept.write_text(request.write)
        return {
            "kept": kept.read_text(),
            "paths": [str(FAL_PERSISTENT_DIR), str(FAL_MODEL_WEIGHTS_DIR), str(FAL_REPOSITORY_DIR)],
            "hub": os.environ["HF_HOME"],
            "home": str(Path.home()),
            "root": sorted({*os.listdir("/")} - {"data", "app"}),
            "app": os.path.samefile("/app", "."),
        }

    @fal.endpoint("/where")
    def where(self) -> dict:
        return {"persistent": str(FAL_PERSISTENT_DIR), "named": os.path.exists("/data")}
"""
#: Root without the right to mount: what an ordinary user is to the kernel.
AS_A_USER = ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")
#: ... on a host that lets nobody have a user namespace.
WITHOUT_NAMESPACES = (
    *("unshare", "--user", "--map-root-user", "sh", "-c"),
    f'echo 0 > /proc/sys/user/max_user_namespaces && exec {" ".join(AS_A_USER)} "$@"',
    "sh",
)


async def ask(on: Stage, app: str, path: str = "/", **body: Any) -> dict[str, Any]:
    record = await on.call(app, path, json.dumps(body).encode())
    assert record.outcome is not None
    assert record.outcome.status == 200, record.outcome.body
    answer: dict[str, Any] = json.loads(record.outcome.body)
    return answer


def visible_root() -> list[str]:
    return sorted({*os.listdir("/")} - {"data", "app"})


@pytest.mark.parametrize("in_front", [(), AS_A_USER], ids=["root", "user"])
def test_data_is_one_folder_that_all_workers_share(redis_url: str, tmp_path: Path, in_front: tuple[str, ...]) -> None:
    """User code opened ``/data/models/x`` as it does on fal and got FileNotFoundError: only our own name for the folder
    worked."""
    had_one = os.path.exists("/data")

    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            on.in_front = in_front
            writer, reader = await on.deploy(KEEPER), await on.deploy(KEEPER)
            await on.start_ready(writer)
            await on.start_ready(reader)

            await ask(on, writer, write="weights")
            seen = await ask(on, reader)

            assert seen["kept"] == "weights"
            assert seen["paths"] == ["/data", "/data/.fal/model_weights", "/data/.fal/repos"]
            assert seen["hub"] == "/data/.cache/huggingface"
            assert seen["home"] == "/data"
            assert seen["app"], "its files are at /app"
            assert seen["root"] == visible_root(), "everything else is where it was"
            assert (tmp_path / "data" / "models" / "kept.txt").read_text() == "weights"
            assert list((tmp_path / "view").iterdir()) == [], "what is mounted there is the workers' own"
            assert os.path.exists("/data") == had_one

    run(story())


def test_the_real_place_is_a_setting(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path / "platform", app_data=tmp_path / "big disk") as on:
            app = await on.deploy(KEEPER)
            await on.start_ready(app)
            await ask(on, app, write="there")

    run(story())
    assert (tmp_path / "big disk" / "models" / "kept.txt").read_text() == "there"


def test_a_host_that_cannot_show_it_says_so_and_names_the_folder(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            on.in_front = WITHOUT_NAMESPACES
            app = await on.deploy(KEEPER)
            await on.start_ready(app)

            where = await ask(on, app, "/where")

            assert where == {"persistent": str(tmp_path / "data"), "named": os.path.exists("/data")}
            line = await on.logged(app, "/data cannot be shown to apps on this host")
            assert line.level == "WARN"
            assert f"ln -s {tmp_path / 'data'} /data" in line.message

    run(story())


def test_a_platform_that_lives_in_the_hosts_own_data_is_not_covered(tmp_path: Path) -> None:
    with pytest.raises(app_data.CannotShow, match=r"KEEPWARM_APP_DATA=/data gives apps that folder"):
        app_data.show(tmp_path, tmp_path / "view", (Path("/data/keepwarm"),))


def test_caches_are_named_below_what_the_runner_sees(tmp_path: Path) -> None:
    environ = runner_environ(assignment(tmp_path), "/data")
    assert (environ["HOME"], environ["FAL_DATA_DIR"], environ["TORCH_HOME"]) == ("/data", "/data", "/data/.cache/torch")
