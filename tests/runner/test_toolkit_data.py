"""What an app fetches and keeps: downloads, weights, repositories and compiled kernels, by real runner processes."""

from __future__ import annotations

import http.server
import json
import os
import stat
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.runner.harness import Runner, start

SOURCE = """
import os
import sys
from pathlib import Path

import fal
from fal.toolkit import (
    FAL_MODEL_WEIGHTS_DIR, FAL_PERSISTENT_DIR, FAL_REPOSITORY_DIR, DownloadError, Image, clone_repository,
    download_file, download_model_weights, get_gpu_type, load_inductor_cache, sync_inductor_cache,
    synchronized_inductor_cache,
)
from pydantic import BaseModel


class Download(BaseModel):
    url: str
    folder: str = "models"
    force: bool = False
    limit: int | None = None
    headers: dict[str, str] | None = None


class Clone(BaseModel):
    url: str = "https://git.example/me/code.git"
    commit: str | None = None
    name: str | None = None
    force: bool = False
    on_path: bool = False


class Compile(BaseModel):
    key: str = "my-model/v1"
    kernel: str = ""
    fail: bool = False


def tried(call, *args, **options):
    try:
        return {"path": str(call(*args, **options))}
    except (DownloadError, ValueError) as error:
        return {"error": str(error), "type": type(error).__name__}


class Demo(fal.App):
    @fal.endpoint("/paths")
    def paths(self) -> list[str]:
        return [str(FAL_PERSISTENT_DIR), str(FAL_MODEL_WEIGHTS_DIR), str(FAL_REPOSITORY_DIR)]

    @fal.endpoint("/download")
    def download(self, d: Download) -> dict:
        return tried(download_file, d.url, d.folder, force=d.force, request_headers=d.headers, filesize_limit=d.limit)

    @fal.endpoint("/picture")
    def picture(self, d: Download) -> dict:
        return tried(Image(url=d.url).to_pil)

    @fal.endpoint("/weights")
    def weights(self, d: Download) -> dict:
        return tried(download_model_weights, d.url, force=d.force, request_headers=d.headers)

    @fal.endpoint("/clone")
    def clone(self, c: Clone) -> dict:
        found = tried(clone_repository, c.url, commit_hash=c.commit, repo_name=c.name, force=c.force,
                      include_to_path=c.on_path)
        if c.on_path:
            import cloned_code
            found["value"] = cloned_code.VALUE
        return found

    @fal.endpoint("/compile")
    def compile(self, c: Compile) -> dict:
        try:
            with synchronized_inductor_cache(c.key):
                folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
                found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
                if c.kernel:
                    (folder / "fx").mkdir(exist_ok=True)
                    (folder / "fx" / c.kernel).write_text("code of " + c.kernel)
                    Path(os.environ["TRITON_CACHE_DIR"]).mkdir(exist_ok=True)
                    (Path(os.environ["TRITON_CACHE_DIR"]) / c.kernel).write_text("binary")
                if c.fail:
                    raise RuntimeError("the warm-up failed")
        except (ValueError, RuntimeError) as error:
            return {"error": str(error)}
        return {"found": found, "gpu": get_gpu_type(), "in": str(folder)}

    @fal.endpoint("/by-hand")
    def by_hand(self, c: Compile) -> dict:
        before = load_inductor_cache(c.key)
        sync_inductor_cache(c.key, before)
        return {"made": os.path.exists(f"{FAL_PERSISTENT_DIR}/inductor-caches/{get_gpu_type()}/{c.key}.zip")}
"""


class Site(http.server.BaseHTTPRequestHandler):
    seen: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        Site.seen.append((self.path, self.headers.get("X-Token")))
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "http://169.254.169.254/latest/meta-data")
            self.end_headers()
            return
        body = b"0123456789" * 200_000
        announced = {"/short": len(body) * 2, "/huge.png": 50 * 1024 * 1024 + 1}.get(self.path, len(body))
        self.send_response(404 if self.path == "/missing" else 200)
        self.send_header("Content-Length", str(announced))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """A server on loopback that the platform calls its own storage."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "init.defaultBranch=main")
    command = ("git", "-C", str(folder), *identity, *arguments)
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("origin")
    git(folder, "init")
    for value in (1, 2):
        (folder / "cloned_code.py").write_text(f"VALUE = {value}\n")
        git(folder, "add", ".")
        git(folder, "commit", "-m", f"value {value}")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def runner(folder: Path, site: str, origin: Path) -> Iterator[Runner]:
    # git itself maps the https address to the folder, so that no network is needed.
    environment = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{origin}.insteadOf",
        "GIT_CONFIG_VALUE_0": "https://git.example/me/code.git",
    }
    with start(folder, SOURCE, environment=environment, storage_hosts=[site.removeprefix("http://")]) as running:
        running.ready()
        yield running


def ask(runner: Runner, path: str, **body: Any) -> Any:
    response = runner.call(json.dumps(body).encode(), path)
    assert response.status == 200, (response.body, runner.logs("ERROR"))
    return json.loads(response.body)


def test_the_folders_hang_together(runner: Runner, folder: Path) -> None:
    data = folder / "data"
    assert ask(runner, "/paths") == [str(data), str(data / ".fal/model_weights"), str(data / ".fal/repos")]


def test_download_file(runner: Runner, folder: Path, site: str) -> None:
    target = folder / "data" / "models" / "weights.bin"
    first = ask(runner, "/download", url=f"{site}/weights.bin?signature=x", headers={"X-Token": "t"})
    assert (first["path"], target.stat().st_size) == (str(target), 2_000_000)
    assert ("/weights.bin?signature=x", "t") in Site.seen
    target.write_bytes(b"m" * 2_000_000)
    ask(runner, "/download", url=f"{site}/weights.bin")
    assert target.read_bytes()[:1] == b"m", "a file of the same name and size is kept"
    ask(runner, "/download", url=f"{site}/weights.bin", force=True)
    assert target.read_bytes()[:1] == b"0"
    elsewhere = folder / "elsewhere"
    assert ask(runner, "/download", url=f"{site}/a", folder=str(elsewhere))["path"] == str(elsewhere / "a")


@pytest.mark.parametrize(
    ("path", "options", "says"),
    [
        ("/missing", {}, "404"),
        ("/short", {}, "broke off after 2000000 of 4000000"),
        ("/large", {"limit": 1}, "limit is 1 MiB"),
        ("/away", {}, "169.254.169.254, which is not a public address"),
    ],
)
def test_a_download_that_fails_says_why_and_leaves_nothing(
    runner: Runner, folder: Path, site: str, path: str, options: dict[str, Any], says: str
) -> None:
    answer = ask(runner, "/download", url=site + path, folder="failed", **options)
    assert answer["type"] == "DownloadError"
    assert says in answer["error"]
    assert not [left for left in (folder / "data" / "failed").rglob("*") if left.is_file()]


def test_a_picture_over_50_mib_is_not_even_read(runner: Runner, site: str) -> None:
    assert "52428801 bytes; the limit is 52428800" in ask(runner, "/picture", url=f"{site}/huge.png")["error"]
    assert "no picture" in ask(runner, "/picture", url=f"{site}/a.png")["error"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "http://localhost/x", "http://10.0.0.1/", "file:///etc/passwd"])
def test_other_private_addresses_are_refused(runner: Runner, url: str) -> None:
    assert ask(runner, "/download", url=url)["type"] == "DownloadError"
    assert ask(runner, "/weights", url=url)["type"] == "DownloadError"


def test_weights_are_fetched_once_for_all(runner: Runner, folder: Path, site: str) -> None:
    url = f"{site}/model.safetensors"
    kept = folder / "data" / ".fal" / "model_weights" / sha256(url.encode()).hexdigest()
    assert ask(runner, "/weights", url=url)["path"] == str(kept / "model.safetensors")
    ask(runner, "/weights", url=url)
    assert [path for path, _ in Site.seen].count("/model.safetensors") == 1
    assert (kept / ".fal_used").exists()
    ask(runner, "/weights", url=url, force=True)
    assert [path for path, _ in Site.seen].count("/model.safetensors") == 2


def test_repositories_are_cloned_once_and_imported(runner: Runner, folder: Path, origin: Path) -> None:
    older = git(origin, "rev-parse", "HEAD~1")
    parent = folder / "data" / ".fal" / "repos"
    cloned = ask(runner, "/clone", commit=older, on_path=True)
    assert (cloned["path"], cloned["value"]) == (str(parent / f"code-{older[:8]}"), 1)
    (Path(cloned["path"]) / "mine").touch()
    ask(runner, "/clone", commit=older)
    assert (Path(cloned["path"]) / "mine").exists()
    ask(runner, "/clone", commit=older, force=True)
    assert not (Path(cloned["path"]) / "mine").exists()
    assert ask(runner, "/clone", name="named")["path"] == str(parent / "named")
    assert "at least 8" in ask(runner, "/clone", commit="abc")["error"]
    assert "checkout failed" in ask(runner, "/clone", commit="0" * 40)["error"]
    assert "not an https URL" in ask(runner, "/clone", url="git@example.com:x")["error"]
    assert sorted(path.name for path in parent.iterdir()) == [f"code-{older[:8]}", "named"]


def driver(folder: Path, says: str) -> dict[str, str]:
    """A PATH with an nvidia-smi that lists one card."""
    tool = folder / "bin" / "nvidia-smi"
    tool.parent.mkdir(exist_ok=True)
    tool.write_text(f"#!/bin/sh\necho '{says}'\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    return {
        "PATH": f"{tool.parent}:{os.environ['PATH']}",
        "TMPDIR": str(folder / "tmp"),
        "TRITON_CACHE_DIR": "/nowhere",
    }


def test_what_one_worker_compiled_another_loads(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    environment = driver(tmp_path, "NVIDIA H100 80GB HBM3")
    archive = tmp_path / "data" / "inductor-caches" / "H100" / "my-model" / "v1.zip"
    with start(tmp_path, SOURCE, environment=environment) as first:
        first.ready()
        assert ask(first, "/by-hand") == {"made": False}, "nothing compiled, nothing shared"
        compiled = ask(first, "/compile", kernel="one")
        assert (compiled["found"], compiled["gpu"]) == ([], "H100")
        assert Path(compiled["in"]).is_relative_to(tmp_path / "tmp")
        with zipfile.ZipFile(archive) as packed:
            assert sorted(packed.namelist()) == ["fx/one", "triton/one"]
        made = archive.stat().st_mtime_ns
        ask(first, "/compile")
        assert archive.stat().st_mtime_ns == made, "unchanged, so not written again"
    with start(tmp_path, SOURCE, environment=environment) as second:
        second.ready()
        assert ask(second, "/compile", kernel="two", fail=True) == {"error": "the warm-up failed"}
        assert ask(second, "/compile")["found"] == ["fx/one", "fx/two", "triton/one", "triton/two"]
        for key in ("../escape", "/etc/x", "a//b", "a/../b", ""):
            assert "must be a name" in ask(second, "/compile", key=key)["error"]
    with zipfile.ZipFile(archive) as packed:
        assert "fx/two" in packed.namelist(), "shared although the block failed"
    assert list(archive.parent.iterdir()) == [archive]


def test_a_broken_archive_costs_only_the_time_it_would_have_saved(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    archive = tmp_path / "data" / "inductor-caches" / "UNKNOWN" / "my-model" / "v1.zip"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(b"half an archive")
    environment = {"TMPDIR": str(tmp_path / "tmp"), "PATH": "/nonexistent"}
    with start(tmp_path, SOURCE, environment=environment) as runner:
        runner.ready()
        assert ask(runner, "/compile", kernel="k")["gpu"] == "UNKNOWN"
        assert any("cannot be used" in line for line in runner.logs())
    assert zipfile.is_zipfile(archive)


@pytest.mark.parametrize(
    ("card", "kind"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        ("NVIDIA RTX A6000", "A6000"),
        ("NVIDIA L40S", "L40S"),
        ("Tesla T4", "T4"),
        ("NVIDIA H200\nNVIDIA H100 PCIe", "H200"),
    ],
)
def test_types_of_cards(tmp_path: Path, card: str, kind: str) -> None:
    (tmp_path / "tmp").mkdir()
    with start(tmp_path, SOURCE, environment=driver(tmp_path, card)) as runner:
        runner.ready()
        assert ask(runner, "/compile")["gpu"] == kind
