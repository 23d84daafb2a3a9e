"""What a start reads is in the page cache before the next one asks for it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from gpu_worker import lessons, read_ahead
from tests.support.loop import run
from tests.support.waiting import wait_until
from tests.worker.stage import stage

SIZE = 4 * 1024 * 1024
LOADS = """
import os
from pathlib import Path

import fal


class Probe(fal.App):
    def setup(self):
        model = Path(os.environ["FAL_DATA_DIR"]) / "model"
        (model / "config.json").read_text()
        descriptor = os.open(model / "weights.safetensors", os.O_RDONLY)  # as native code does: nobody hears of it
        while os.read(descriptor, 1 << 20):
            pass
        Path(__file__).read_text()
        Path("/etc/passwd").read_text()

    @fal.endpoint("/")
    def run(self) -> dict:
        return {}
"""


def fill(path: Path) -> None:
    with path.open("wb") as stream:
        stream.write(os.urandom(SIZE))
        stream.flush()
        os.fsync(stream.fileno())


def forget(path: Path) -> None:
    """Have the kernel drop it from the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def resident(path: Path) -> bool:
    return read_ahead.worth_reading([str(path)], [str(path.parent)]) == [str(path)]


def test_a_start_teaches_which_weights_it_read(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            model = tmp_path / "data" / "model"
            model.mkdir(parents=True)
            (model / "config.json").write_text("{}")
            for name in ("weights.safetensors", "other-format.bin"):
                fill(model / name)
            forget(model / "other-format.bin")
            app = await on.deploy(LOADS)
            await on.start_ready(app)

            def learned() -> tuple[str, ...]:
                return next((lessons.read(file).files for file in (tmp_path / "starts").glob("*.json")), ())

            (file,) = await asyncio.to_thread(wait_until, learned, "the start has taught something")
            assert file.endswith("model/weights.safetensors")

    run(story())


def test_learned_files_are_read_into_the_page_cache(tmp_path: Path) -> None:
    weights = tmp_path / "model.gguf"
    fill(weights)
    forget(weights)
    assert not resident(weights)

    thread = read_ahead.begin([str(weights)], [str(tmp_path)])

    assert thread is not None
    thread.join()
    wait_until(lambda: resident(weights), "the file is in the page cache")


def test_only_files_of_the_apps_folders_are_read(tmp_path: Path) -> None:
    """User code names the files: a pipe would hold the thread for ever, a link leads anywhere."""
    folder, outside = tmp_path / "data", tmp_path / "outside.bin"
    folder.mkdir()
    fill(outside)
    (folder / "link.bin").symlink_to(outside)
    os.mkfifo(folder / "pipe.bin")
    named = [str(outside), str(folder / "link.bin"), str(folder / "pipe.bin"), str(folder / "gone"), "a\0b"]

    assert read_ahead.worth_reading(named, [str(folder)]) == []
    forget(outside)
    thread = read_ahead.begin(named, [str(folder)])
    assert thread is not None
    thread.join(10)
    assert not thread.is_alive()
    assert not resident(outside)
