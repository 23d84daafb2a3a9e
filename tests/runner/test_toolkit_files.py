"""Files, pictures, sounds and archives in an app: what callers send, what they get, and where it was kept."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fal._runner.protocol import FileSaved
from PIL import Image as Pillow

from tests.runner.harness import BASE_URL, Runner, start

SOURCE = """
import asyncio
import os
import threading
import warnings
from pathlib import Path

import fal
from fal.toolkit import (
    Audio, CompressedFile, File, FileRepository, FileUploadException, Image, ImageSize, ImageSizeInput, PendingFile,
    Video, get_image_size,
)
from fal.toolkit.file import FileData
from PIL import Image as Pillow
from pydantic import BaseModel


class Shelf(FileRepository):
    '''A folder, as an app's own bucket would be.'''

    def __init__(self, broken=""):
        self.broken = broken

    def save(self, data, folder="shelf"):
        if self.broken:
            raise OSError(self.broken)
        Path(folder).mkdir(exist_ok=True)
        (Path(folder) / data.file_name).write_bytes(data.as_bytes())
        return f"shelf://{folder}/{data.file_name}"


class Mover(Shelf):
    def save_file(self, file_path, content_type, multipart=None, folder="shelf"):
        return f"moved://{Path(file_path).name}?multipart={multipart}", None


class Duck:
    def save(self, data):
        return f"duck://{data.content_type}/{len(data.data)}"


class Media(BaseModel):
    image: Image | None = None
    video: Video | None = None
    audio: Audio | None = None
    archive: CompressedFile | None = None
    any: File | None = None


class Sizes(BaseModel):
    size: ImageSizeInput = "square_hd"


class Demo(fal.App):
    @fal.endpoint("/read")
    def read(self, given: Media) -> dict:
        found = {}
        if given.image:
            picture = given.image.to_pil()
            found["image"] = [picture.mode, *picture.size, given.image.to_pil("L").mode]
        for name in ("video", "audio", "any"):
            if (file := getattr(given, name)) is not None:
                found[name] = [type(file).__name__, file.as_bytes().decode(), file.content_type]
        if given.archive:
            folder = Path(next(iter(given.archive))).parent
            found["archive"] = sorted(path.name for path in given.archive)
            found["glob"] = [path.read_text() for path in given.archive.glob("deep/*.txt")]
            found["dir"] = given.archive.extract_dir
            given.archive = None
        return found

    @fal.endpoint("/gone")
    def gone(self, given: Media) -> dict:
        next(iter(given.archive))
        folder = given.archive.extract_dir
        held = os.path.exists(folder)
        given.archive = None
        return {"held": held, "after": os.path.exists(folder)}

    @fal.endpoint("/make")
    async def make(self) -> dict:
        Path("song.wav").write_bytes(b"la la")
        picture = Pillow.new("RGBA", (6, 4), "red")
        made = {
            "png": Image.from_pil(picture),
            "jpeg": await Image.from_pil_async(picture, "jpeg", file_name="red.jpg"),
            "encoded": Image.from_bytes(b"RIFF", "webp", ImageSize(width=3, height=2)),
            "audio": await Audio.from_path_async("song.wav", "audio/wav"),
            "untyped": Video.from_path("song.wav"),
            "bytes": await File.from_bytes_async(b"abc", "text/plain", "a b.txt"),
        }
        saved = made["bytes"].save("saved/a.txt")
        again = await made["bytes"].save_async("saved/a.txt", overwrite=True)
        try:
            made["bytes"].save("saved/a.txt")
        except FileExistsError as error:
            refused = str(error)
        try:
            File.from_path("nothing.txt")
        except FileNotFoundError as error:
            missing = str(error)
        files = {name: file.model_dump() for name, file in made.items()}
        return {**files, "saved": [saved.read_text(), str(again)], "refused": refused, "missing": missing}

    @fal.endpoint("/repositories")
    def repositories(self) -> dict:
        Path("kept.txt").write_text("kept")
        said = []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for name in ("fal_v3", "fal", "fal_v2", "cdn", "gcp_storage", "r2"):
                said.append(File.from_bytes(b"x", file_name="x", repository=name).url.rpartition("/")[2])
            old = [f"{item.category.__name__}: {item.message}" for item in caught]
        try:
            File.from_bytes(b"x", repository="nowhere")
        except ValueError as error:
            unknown = str(error)
        shelf, broken = Shelf(), Shelf("the bucket is gone")
        try:
            File.from_path("kept.txt", repository=broken, fallback_repository=[Shelf("no key"), "in_memory", shelf],
                           fallback_save_kwargs={"folder": Path("kept.txt")})
            failed = ""
        except FileUploadException as error:
            failed = str(error)
        return {
            "platform": said,
            "old": old,
            "unknown": unknown,
            "in_memory": File.from_bytes(b"x", "text/plain", repository="in_memory").url,
            "own": File.from_bytes(b"x", None, "x.bin", shelf, save_kwargs={"folder": "other"}).url,
            "own_file": File.from_path("kept.txt", repository=shelf).url,
            "mover": File.from_path("kept.txt", "text/plain", Mover(), multipart=True).url,
            "duck": [File.from_bytes(b"xyz", repository=Duck()).url, File.from_path("kept.txt", repository=Duck()).url],
            "fallback": File.from_bytes(b"x", "text/plain", "x", broken, ["in_memory", "fal"]).url,
            "default_fallback": File.from_bytes(b"x", None, "safe.txt", broken).url,
            "failed": failed,
        }

    @fal.endpoint("/all-fail")
    def all_fail(self) -> dict:
        tried = [Shelf("no key"), Shelf("no network")]
        for method, subject in ((File.from_bytes, b"x"), (File.from_path, __file__)):
            try:
                method(subject, repository=Shelf("the bucket is gone"), fallback_repository=tried)
            except FileUploadException as error:
                said = str(error)
        try:
            File.reserve("text/plain", "a", repository=Shelf(), fallback_repository=None)
        except FileUploadException as error:
            return {"said": said, "reserve": str(error)}

    @fal.endpoint("/reserve")
    async def reserve(self) -> dict:
        kept = File.reserve("text/plain", "later.txt")
        dropped = Image.reserve("image/png")
        from_file = await File.reserve_async("text/plain", "path.txt")
        assert isinstance(kept, PendingFile)
        Path("big.txt").write_text("from a path")
        same = kept.complete(b"now") == kept.url
        from_file.complete(Path("big.txt"))
        dropped.abort()
        dropped.abort()
        errors = []
        for pending in (kept, dropped):
            try:
                pending.complete(b"again")
            except ValueError as error:
                errors.append(str(error).rpartition(" was ")[2])
        return {"kept": kept.url, "dropped": dropped.url, "path": from_file.url, "same": same, "errors": errors}

    @fal.endpoint("/later")
    def later(self) -> dict:
        pending = File.reserve("text/plain", "secret.txt")
        thread = threading.Thread(target=pending.complete, args=(b"for one only",))
        thread.start()
        thread.join()
        return {"url": pending.url}

    @fal.endpoint("/sizes")
    def sizes(self, given: Sizes) -> list[int]:
        size = get_image_size(given.size)
        return [size.width, size.height]

    @fal.endpoint("/unknown-size")
    def unknown_size(self) -> str:
        try:
            get_image_size("huge")
        except TypeError as error:
            return str(error)
"""


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    with start(tmp_path_factory.mktemp("files"), SOURCE) as running:
        running.ready()
        yield running


def ask(runner: Runner, path: str, status: int = 200, **body: Any) -> Any:
    response = runner.call(json.dumps(body).encode(), path)
    assert response.status == status, (response.body, runner.logs("ERROR"))
    return json.loads(response.body)


def uri(data: bytes, content_type: str = "application/octet-stream") -> str:
    return f"data:{content_type};base64,{base64.b64encode(data).decode()}"


def picture(**save: Any) -> bytes:
    buffer = io.BytesIO()
    Pillow.new("RGB", (6, 4), "red").save(buffer, **save)
    return buffer.getvalue()


def stored(runner: Runner, url: str) -> bytes:
    """What the runner left for the store under ``url``."""
    file_id = url.removeprefix(f"{BASE_URL}/cdn/files/").partition("/")[0]
    return (runner.files_dir / file_id).read_bytes()


def test_media_come_as_urls_or_objects(runner: Runner) -> None:
    exif = Pillow.new("RGB", (6, 4)).getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    answer = ask(
        runner,
        "/read",
        image=uri(picture(format="JPEG", exif=exif), "image/jpeg"),
        video=uri(b"moving", "video/mp4"),
        audio={"url": "data:,la%20la", "content_type": "audio/wav"},
        any=uri(b"x", "text/plain"),
    )
    assert answer == {
        "image": ["RGB", 4, 6, "L"],
        "video": ["Video", "moving", None],
        "audio": ["Audio", "la la", "audio/wav"],
        "any": ["File", "x", None],
    }


@pytest.mark.parametrize("url", ["file:///etc/passwd", "a.png", "ftp://example.com/a", 3])
def test_other_urls_are_refused_at_the_door(runner: Runner, url: Any) -> None:
    assert ask(runner, "/read", 422, any=url)["detail"][0]["loc"][:2] == ["body", "any"]


def test_archives_are_extracted_and_removed(runner: Runner) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", "A")
        archive.writestr("deep/b.txt", "B")
        archive.writestr("../../escape.txt", "C")
    answer = ask(runner, "/read", archive=uri(buffer.getvalue(), "application/zip"))
    assert (answer["archive"], answer["glob"]) == (["a.txt", "b.txt", "escape.txt"], ["B"])
    assert not Path(answer["dir"]).exists()
    assert ask(runner, "/gone", archive=uri(buffer.getvalue())) == {"held": True, "after": False}


def test_what_an_app_makes_is_stored_with_its_type_name_and_size(runner: Runner) -> None:
    made = ask(runner, "/make")
    png, jpeg, untyped = made["png"], made["jpeg"], made["untyped"]
    assert (png["width"], png["height"], png["content_type"], png["file_size"]) == (
        *(6, 4, "image/png"),
        len(stored(runner, png["url"])),
    )
    with Pillow.open(io.BytesIO(stored(runner, jpeg["url"]))) as opened:
        assert (opened.format, opened.size) == ("JPEG", (6, 4))
    assert (jpeg["file_name"], jpeg["url"].rpartition("/")[2]) == ("red.jpg", "red.jpg")
    assert (made["encoded"]["width"], made["encoded"]["content_type"]) == (3, "image/webp")
    assert (made["audio"]["content_type"], stored(runner, made["audio"]["url"])) == ("audio/wav", b"la la")
    assert (untyped["content_type"], untyped["file_size"]) == ("application/octet-stream", 5), "types are not guessed"
    assert made["bytes"]["url"].endswith("/a%20b.txt")
    assert "file_data" not in made["bytes"]
    assert made["saved"] == ["abc", "saved/a.txt"]
    assert "already exists" in made["refused"]
    assert "nothing.txt does not exist" in made["missing"]
    types = {message.name: message.content_type for message in runner.all(FileSaved)}
    assert (types["red.jpg"], types["a b.txt"]) == ("image/jpeg", "text/plain")


def test_repositories_by_name_by_object_and_in_order(runner: Runner) -> None:
    said = ask(runner, "/repositories")
    assert said["platform"] == ["x"] * 6, "every remote store's name means the platform's own"
    assert said["old"] == [
        "DeprecationWarning: repository 'fal_v2' is an old name of 'fal_v3'",
        "DeprecationWarning: repository 'cdn' is an old name of 'fal_v3'",
    ]
    assert "unknown repository 'nowhere'; choose 'in_memory'" in said["unknown"]
    assert said["in_memory"] == said["fallback"] == "data:text/plain;base64,eA=="
    assert (said["own"], said["own_file"]) == ("shelf://other/x.bin", "shelf://shelf/kept.txt")
    assert said["mover"] == "moved://kept.txt?multipart=True"
    assert said["duck"] == ["duck://application/octet-stream/3", "duck://application/octet-stream/4"]
    assert stored(runner, said["default_fallback"]) == b"x"
    assert said["failed"] == "", "the second fallback took it"


def test_an_upload_that_fails_everywhere_lists_every_attempt(runner: Runner) -> None:
    said = ask(runner, "/all-fail")
    assert said["said"].endswith("tried Shelf: the bucket is gone; Shelf: no key; Shelf: no network")
    assert "Shelf cannot reserve a URL before the content is there" in said["reserve"]


def test_a_reserved_url_is_filled_later_or_given_up(runner: Runner) -> None:
    answer = ask(runner, "/reserve")
    assert stored(runner, answer["kept"]) == b"now"
    assert stored(runner, answer["path"]) == b"from a path"
    assert answer["kept"].endswith("/later.txt")
    assert (answer["same"], answer["errors"]) == (True, ["completed before", "aborted before"])
    with pytest.raises(FileNotFoundError):
        stored(runner, answer["dropped"])


def test_a_file_filled_by_a_thread_is_kept_as_its_request_wants(runner: Runner) -> None:
    """A thread of the app's own belongs to no request: the file lost its caller's wish to keep it from others."""
    wish = b'{"acl":{"default":"forbid"}}'
    headers = [(b"content-type", b"application/json"), (b"x-fal-object-lifecycle-preference", wish)]
    url = json.loads(runner.call(b"{}", "/later", id="wishing", headers=headers).body)["url"]
    (saved,) = (message for message in runner.all(FileSaved) if message.file_id in url)
    assert (saved.request_id, saved.lifecycle) == ("wishing", wish.decode())


def test_image_sizes(runner: Runner) -> None:
    presets = {
        "square_hd": [1024, 1024],
        "square": [512, 512],
        "portrait_4_3": [768, 1024],
        "portrait_16_9": [576, 1024],
        "landscape_4_3": [1024, 768],
        "landscape_16_9": [1024, 576],
    }
    assert {name: ask(runner, "/sizes", size=name) for name in presets} == presets
    assert ask(runner, "/sizes", size={"width": 14142, "height": 1}) == [14142, 1]
    for wrong in ({"width": 0, "height": 1}, {"width": 14143, "height": 1}, "huge"):
        ask(runner, "/sizes", 422, size=wrong)
    assert "square_hd" in ask(runner, "/unknown-size")
