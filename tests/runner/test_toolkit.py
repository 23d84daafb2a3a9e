"""Files and pictures: in tests and local scripts as data URIs, inside a runner through the platform's store."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from fal._runner.files import safe_name
from fal._runner.protocol import FileSaved, Response
from fal.toolkit import (
    Audio,
    CompressedFile,
    FalBaseModel,
    File,
    FileUploadException,
    Hidden,
    Image,
    ImageField,
    ImageSize,
    KVStore,
    KVStoreException,
    Video,
    VideoField,
    get_image_size,
)
from fal.toolkit.exceptions import DownloadError
from fal.toolkit.file import FileData, FileRepository
from fal.toolkit.image import read_image_from_url
from PIL import Image as Pillow
from pydantic import BaseModel, Field, ValidationError

from tests.runner.harness import BASE_URL, start


def _picture(mode: str = "RGB", size: tuple[int, int] = (6, 4)) -> Pillow.Image:
    return Pillow.new(mode, size, "red" if mode != "L" else 128)


def test_a_file_outside_a_runner_is_a_data_uri() -> None:
    file = File.from_bytes(b"hello", "text/plain", "a.txt")
    assert file.url == "data:text/plain;base64,aGVsbG8="
    assert (file.content_type, file.file_name, file.file_size) == ("text/plain", "a.txt", 5)
    assert File(url=file.url).as_bytes() == b"hello"
    assert "file_data" not in file.model_dump()
    assert "file_data" not in File.model_json_schema()["properties"]


def test_names_and_types_are_filled_in() -> None:
    file = File.from_bytes(b"x")
    assert file.content_type == "application/octet-stream"
    assert file.file_name
    named = File.from_bytes(b"x", "text/csv").file_name
    assert named is not None
    assert named.endswith(".csv")


def test_from_path(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"abc")
    file = File.from_path(path)
    assert (file.file_name, file.file_size, file.content_type) == ("notes.txt", 3, "application/octet-stream")
    assert file.as_bytes() == b"abc"
    with pytest.raises(FileNotFoundError):
        File.from_path(tmp_path / "nothing")


def test_save(tmp_path: Path) -> None:
    file = File.from_bytes(b"abc")
    assert file.save(tmp_path / "deep" / "a").read_bytes() == b"abc"
    with pytest.raises(FileExistsError):
        file.save(tmp_path / "deep" / "a")
    file.save(tmp_path / "deep" / "a", overwrite=True)


def test_a_request_may_give_a_url_for_a_file() -> None:
    class Input(BaseModel):
        image: Image

    assert Input.model_validate({"image": "https://example.com/a.png"}).image.url == "https://example.com/a.png"
    assert Input.model_validate({"image": {"url": "https://example.com/a.png"}}).image.width is None
    for wrong in ("file:///etc/passwd", "a.png", 3):
        with pytest.raises(ValidationError):
            Input.model_validate({"image": wrong})


@pytest.mark.parametrize(
    ("format", "mode", "content_type"),
    [
        (None, "RGB", "image/png"),
        ("png", "RGBA", "image/png"),
        ("jpeg", "RGBA", "image/jpeg"),
        ("jpg", "P", "image/jpeg"),
        ("webp", "RGB", "image/webp"),
        ("gif", "L", "image/gif"),
    ],
)
def test_pictures_from_pillow_and_back(format: Any, mode: str, content_type: str) -> None:
    image = Image.from_pil(_picture(mode), format)
    assert (image.width, image.height, image.content_type) == (6, 4, content_type)
    assert image.to_pil().size == (6, 4)
    assert Image(url=image.url).to_pil("L").mode == "L"


def test_a_picture_keeps_its_own_format() -> None:
    buffer = io.BytesIO()
    _picture().save(buffer, "JPEG")
    opened = Pillow.open(buffer)
    assert Image.from_pil(opened).content_type == "image/jpeg"


def test_a_picture_comes_the_right_way_up() -> None:
    picture = _picture()
    exif = picture.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", exif=exif)
    assert Image.from_bytes(buffer.getvalue(), "jpeg").to_pil().size == (4, 6)


def test_what_is_no_picture() -> None:
    with pytest.raises(DownloadError, match="no picture"):
        Image.from_bytes(b"not a picture").to_pil()
    from fastapi import HTTPException

    with pytest.raises(HTTPException) as caught:
        read_image_from_url("data:image/png;base64,AAAA")
    assert caught.value.status_code == 422
    assert read_image_from_url(Image.from_pil(_picture()).url, max_size=3).size == (3, 2)


def test_broken_data_uris() -> None:
    assert File(url="data:,a%20b").as_bytes() == b"a b"
    with pytest.raises(DownloadError, match="comma"):
        File(url="data:text/plain").as_bytes()
    with pytest.raises(DownloadError, match="base64"):
        File(url="data:;base64,A").as_bytes()


def test_values_need_a_platform() -> None:
    with pytest.raises(KVStoreException, match=r"KVStore\('db'\) needs a platform: it works in an app under `fal run`"):
        KVStore("db").get("key")


def test_image_sizes() -> None:
    assert get_image_size("portrait_16_9") == ImageSize(width=576, height=1024)
    assert get_image_size(ImageSize(width=1, height=2)).height == 2
    with pytest.raises(TypeError, match="square_hd"):
        get_image_size("huge")  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        ImageSize(width=0, height=1)


def test_schemas_tell_the_playground_what_to_show() -> None:
    assert Image.model_json_schema()["ui"] == {"field": "image"}
    assert Video.model_json_schema()["ui"] == {"field": "video"}
    assert Audio.model_json_schema()["ui"] == {"field": "audio"}

    class Input(FalBaseModel):
        FIELD_ORDERS = ["b"]
        SCHEMA_IGNORES = {"c"}
        a: str = ImageField(description="A picture", max_length=9)
        b: str = VideoField(default="", constraints={"max_seconds": 3})
        c: int = 1
        d: int = Hidden(Field(default=3))

    properties = Input.model_json_schema()["properties"]
    assert list(properties) == ["b", "a", "d"]
    assert properties["a"]["ui"] == {"field": "image"}
    assert properties["b"]["x-fal"] == {"constraints": {"max_seconds": 3}}
    assert properties["d"]["ui"] == {"hidden": True}
    with pytest.raises(ValueError, match="default"):
        Hidden(Field())


def test_a_repository_of_the_apps_own_and_a_fallback() -> None:
    class Bucket(FileRepository):
        def save(self, data: FileData, **options: Any) -> str:
            if options.get("broken"):
                raise OSError("the bucket is gone")
            return f"s3://bucket/{data.file_name}"

    assert File.from_bytes(b"x", file_name="a", repository=Bucket()).url == "s3://bucket/a"
    fallen = File.from_bytes(b"x", repository=Bucket(), fallback_repository="fal", save_kwargs={"broken": True})
    assert fallen.url.startswith("data:")
    with pytest.raises(FileUploadException, match=r"Bucket: the bucket is gone"):
        File.from_bytes(b"x", repository=Bucket(), fallback_repository=None, save_kwargs={"broken": True})
    with pytest.raises(ValueError, match="unknown repository 'nowhere'"):
        File.from_bytes(b"x", repository="nowhere")


def test_archives() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", "A")
        archive.writestr("deep/b.txt", "B")
        archive.writestr("../../escape.txt", "C")
    opened = CompressedFile.from_bytes(buffer.getvalue())
    files = list(opened)
    assert sorted(path.name for path in files) == ["a.txt", "b.txt", "escape.txt"]
    folder = files[0].parent
    assert all(folder in path.parents for path in files)
    assert [path.name for path in opened.glob("deep/*")] == ["b.txt"]
    del opened
    assert not folder.exists()


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("a.png", "a.png"),
        ("../../etc/passwd", "_.._etc_passwd"),
        ("..", "file"),
        ("", "file"),
        ("a\nb.txt", "a_b.txt"),
        ("ü☃.png", "ü☃.png"),
    ],
)
def test_names_in_urls(name: str, safe: str) -> None:
    assert safe_name(name) == safe


def test_long_names_keep_their_extension() -> None:
    assert safe_name("x" * 500 + ".png") == "x" * 124 + ".png"


SOURCE = """
import threading
import fal
from pathlib import Path
from fal.toolkit import File, Image
from PIL import Image as Pillow
from pydantic import BaseModel

class Output(BaseModel):
    image: Image
    notes: File
    early: str
    threaded: str

class Demo(fal.App):
    def setup(self):
        self.early = File.from_bytes(b"x", "text/plain").url

    @fal.endpoint("/")
    def run(self) -> Output:
        Path("my notes.txt").write_text("abc")
        urls = []
        def work():
            urls.append(File.from_bytes(b"t").url)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return Output(
            image=Image.from_pil(Pillow.new("RGB", (6, 4), "red")),
            notes=File.from_path("my notes.txt", "text/plain"),
            early=self.early, threaded=urls[0],
        )
"""


def test_files_in_a_runner_reach_the_store_before_the_answer(tmp_path: Path) -> None:
    with start(tmp_path, SOURCE) as runner:
        runner.ready()
        runner.request()
        runner.expect(Response)
        answer = json.loads(runner.all(Response)[0].body)
        saved = runner.all(FileSaved)
    threaded, picture, notes = saved
    assert answer["image"]["url"] == f"{BASE_URL}/cdn/files/{picture.file_id}/{picture.name}"
    assert (answer["image"]["width"], answer["image"]["content_type"]) == (6, "image/png")
    assert answer["notes"]["url"] == f"{BASE_URL}/cdn/files/{notes.file_id}/my%20notes.txt"
    assert answer["early"].startswith("data:"), "before the first request nobody has said where the platform is"
    assert answer["threaded"].startswith(f"{BASE_URL}/cdn/files/{threaded.file_id}/")
    assert (picture.content_type, picture.request_id, threaded.request_id) == ("image/png", "r1", None)
    assert len(picture.file_id) == 32
    with Pillow.open(runner.files_dir / picture.file_id) as stored:
        assert stored.size == (6, 4)
    assert (runner.files_dir / notes.file_id).read_text() == "abc"
