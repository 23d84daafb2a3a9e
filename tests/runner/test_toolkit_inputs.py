"""Inputs of an app: file types, picture helpers, hints in the document, and errors that name the field."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fal._runner.protocol import Ready
from PIL import Image as Pillow

from tests.runner.harness import Runner, start

SOURCE = """
import io

import fal
from fal.toolkit import (
    AudioField, FalBaseModel, FileField, Hidden, ImageField, ImageSizeConstraints, ImageSizeField, ImageSizeInput,
    VideoField,
)
from fal.toolkit.image import filter_by, preprocess_image, read_image_from_url
from fal.toolkit.pydantic import Field
from fal.toolkit.types import DataUri, FileInput, HttpsUrl, ImageInput
from PIL import Image as Pillow
from pydantic import BaseModel


class Layer(FalBaseModel):
    mask_url: ImageInput


class Deep(BaseModel):
    layers: list[Layer] = []
    named: dict[str, FileInput] = {}


class Input(FalBaseModel):
    FIELD_ORDERS = ["picture", "prompt"]
    SCHEMA_IGNORES = {"internal"}

    prompt: str = ""
    internal: int = 1
    picture: ImageInput | None = ImageField(default=None, description="A picture")
    document: FileInput | None = FileField(default=None)
    sound: str = AudioField(default="")
    clip: str = VideoField(default="", constraints={"max_seconds": 3}, normalization={"fps": 24})
    size: ImageSizeInput = ImageSizeField(
        default="square", constraints=ImageSizeConstraints(max_area=4194304, multiple_of=8)
    )
    seed: int = Hidden(Field(default=3))
    deep: Deep | None = None


class Links(BaseModel):
    link: HttpsUrl | None = None
    inline: DataUri | None = None
    either: FileInput | None = None


class Picture(BaseModel):
    url: str
    rgb: bool = True
    turn: bool = True
    longest: int | None = None


class Demo(fal.App):
    @fal.endpoint("/")
    def run(self, input: Input) -> dict:
        found = {"seed": input.seed, "kinds": [type(input.picture).__name__, isinstance(input.document, str)]}
        if input.picture:
            found["picture"] = [input.picture.to_pil().mode, *input.picture.to_pil().size]
        if input.document:
            with input.document.as_temp_file() as path:
                found["document"], found["name"] = path.read_text(), path.name
            found["left"] = path.exists()
        if input.deep:
            found["masks"] = [list(layer.mask_url.to_pil().size) for layer in input.deep.layers]
            for file in input.deep.named.values():
                with file.as_temp_file():
                    pass
        return found

    @fal.endpoint("/links")
    def links(self, links: Links) -> dict:
        return links.model_dump()

    @fal.endpoint("/picture")
    def picture(self, picture: Picture) -> list:
        read = read_image_from_url(picture.url, picture.rgb, picture.turn, picture.longest)
        return [read.mode, *read.size]

    @fal.endpoint("/helpers")
    def helpers(self) -> dict:
        red, blue = Pillow.new("RGBA", (2, 2), "red"), Pillow.new("RGB", (3, 1), "blue")
        black, kept = filter_by([True, False], [red, blue])
        prepared = preprocess_image(red)
        return {
            "black": [black.size, black.getpixel((0, 0))], "kept": kept is blue,
            "prepared": prepared.mode, "own": preprocess_image(red, convert_to_rgb=False).mode,
        }

    @fal.endpoint("/bare-hidden")
    def bare_hidden(self) -> str:
        try:
            Hidden(Field())
        except ValueError as error:
            return str(error)
"""


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    folder = tmp_path_factory.mktemp("inputs")
    with start(folder, SOURCE, storage_hosts=["127.0.0.1:8787"]) as running:
        running.ready()
        yield running


def ask(runner: Runner, path: str = "/", status: int = 200, **body: Any) -> Any:
    response = runner.call(json.dumps(body).encode(), path)
    assert response.status == status, (response.body, runner.logs("ERROR"))
    return json.loads(response.body)


def uri(mode: str = "RGB", size: tuple[int, int] = (6, 4), **save: Any) -> str:
    buffer = io.BytesIO()
    Pillow.new(mode, size).save(buffer, save.pop("format", "PNG"), **save)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


NO_PICTURE = "data:image/png;base64,AAAA"


def test_file_inputs_are_text_with_the_file_behind_it(runner: Runner) -> None:
    found = ask(runner, picture=f"  {uri('RGBA')} ", document="data:text/plain,some%20text")
    assert found["kinds"] == ["ImageInput", True]
    assert found["picture"] == ["RGB", 6, 4]
    assert (found["document"], found["name"], found["left"]) == ("some text", "file", False)


def test_only_https_and_data_uris_of_bounded_length(runner: Runner) -> None:
    good: dict[str, Any] = {
        "link": "https://example.com:8443/a?b=c",
        "inline": "data:text/plain;charset=utf-8,hello",
        "either": "data:,x",
    }
    assert ask(runner, "/links", **good) == good
    longest = "https://example.com/" + "a" * (2048 - 20)
    assert ask(runner, "/links", link=longest, either=longest)["link"] == longest
    most = "data:text/plain," + "a" * (10 * 1024 * 1024 - 16)
    assert len(ask(runner, "/links", either=most)["either"]) == len(most)
    for field, wrong in (
        ("link", "http://example.com/"),
        ("link", good["inline"]),
        ("link", longest + "a"),
        ("link", "https://"),
        ("link", "https://exa mple.com"),
        ("inline", good["link"]),
        ("inline", "data:no comma"),
        ("either", most + "a"),
        ("either", longest + "a"),
        ("either", "file:///etc/passwd"),
        ("either", ""),
    ):
        body: dict[str, Any] = {field: wrong}
        answer = ask(runner, "/links", 422, **body)
        assert answer["detail"][0]["loc"] == ["body", field], wrong[:40]


def test_the_platforms_own_files_may_come_without_tls(runner: Runner) -> None:
    own = "http://127.0.0.1:8787/cdn/files/0123/cat.png"
    assert ask(runner, "/links", link=own, either=own)["either"] == own
    ask(runner, "/links", 422, either="http://127.0.0.1:8788/cdn/files/0123/cat.png")


def test_a_file_that_cannot_be_used_names_its_place_in_the_body(runner: Runner) -> None:
    def error(**body: Any) -> tuple[list[Any], str]:
        (detail,) = ask(runner, "/", 422, **body)["detail"]
        return detail["loc"], detail["type"]

    assert error(picture=NO_PICTURE) == (["body", "picture"], "image_load_error")
    assert error(document="https://127.0.0.1/x") == (["body", "document"], "file_download_error")
    layers = [{"mask_url": uri()}, {"mask_url": NO_PICTURE}]
    assert error(deep={"layers": layers}) == (["body", "deep", "layers", 1, "mask_url"], "image_load_error")
    named = {"notes": "data:;base64,A"}
    assert error(deep={"named": named}) == (["body", "deep", "named", "notes"], "file_download_error")


def test_the_document_tells_the_playground_what_to_show(runner: Runner) -> None:
    (ready,) = runner.all(Ready)
    schemas = json.loads(ready.openapi)["components"]["schemas"]
    properties = schemas["Input"]["properties"]
    assert schemas["Input"]["x-fal-order-properties"][:2] == list(properties)[:2] == ["picture", "prompt"]
    assert "internal" not in properties
    assert properties["seed"]["ui"] == {"hidden": True}
    assert [properties[name]["ui"]["field"] for name in ("picture", "document", "sound", "clip")] == [
        *("image", "file", "audio", "video")
    ]
    assert properties["clip"]["x-fal"] == {"constraints": {"max_seconds": 3}, "normalization": {"fps": 24}}
    assert properties["size"]["x-fal"] == {"constraints": {"max_area": 4194304, "multiple_of": 8}}
    text = next(option for option in properties["picture"]["anyOf"] if option["type"] == "string")
    assert (text["format"], text["maxLength"]) == ("uri", 10 * 1024 * 1024)
    assert schemas["Links"]["properties"]["link"]["anyOf"][0]["maxLength"] == 2048
    assert ask(runner)["seed"] == 3
    assert "needs a default" in ask(runner, "/bare-hidden")


def test_reading_pictures(runner: Runner) -> None:
    exif = Pillow.new("RGB", (6, 4)).getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    turned = uri(format="JPEG", exif=exif)
    assert ask(runner, "/picture", url=turned) == ["RGB", 4, 6]
    assert ask(runner, "/picture", url=turned, turn=False) == ["RGB", 6, 4]
    assert ask(runner, "/picture", url=uri("RGBA"), rgb=False) == ["RGBA", 6, 4]
    assert ask(runner, "/picture", url=uri(size=(60, 40)), longest=30) == ["RGB", 30, 20]
    for wrong in (NO_PICTURE, "https://127.0.0.1/a.png", "http://10.0.0.1/a.png"):
        assert "Could not load the image" in ask(runner, "/picture", 422, url=wrong)["detail"]


def test_picture_helpers(runner: Runner) -> None:
    assert ask(runner, "/helpers") == {
        "black": [[2, 2], [0, 0, 0]],
        "kept": True,
        "prepared": "RGB",
        "own": "RGBA",
    }


def test_names_are_found_where_existing_code_looks_for_them(tmp_path: Path) -> None:
    source = """
import fal
from fal.toolkit.audio import Audio, AudioField
from fal.toolkit.audio.audio import Audio as audio
from fal.toolkit.exceptions import FalTookitException, FileUploadException, KVStoreException
from fal.toolkit.file import CompressedFile, File, FileField
from fal.toolkit.file.types import FileData, FileRepository, RepositoryId
from fal.toolkit.image.image import Image, ImageField, ImageSize, ImageSizeInput, ImageSizePreset, get_image_size
from fal.toolkit.kv import KVStore
from fal.toolkit.optimize import optimize
from fal.toolkit.pydantic import FalBaseModel, Field, Hidden
from fal.toolkit.utils.download_utils import DownloadError, download_file
from fal.toolkit.video import Video, VideoField
from fal.toolkit.video.video import Video as video
import fal.toolkit

class Demo(fal.App):
    @fal.endpoint("/")
    def run(self) -> list[str]:
        assert issubclass(FileUploadException, FalTookitException) and issubclass(KVStoreException, FalTookitException)
        return [name for name in fal.toolkit.__all__ if getattr(fal.toolkit, name, None) is None]
"""
    with start(tmp_path, source) as runner:
        runner.ready()
        assert ask(runner) == []
