"""The rest of the toolkit on a whole platform; `rows.py` says which test is whose."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import httpx
import pytest

from tests.support.platform import PlatformUnderTest

APPS = "tests/system/apps/toolbox.py"


@pytest.fixture(scope="module")
def toolbox(platform: PlatformUnderTest) -> str:
    return platform.deploy(APPS, "Toolbox")


def post(url: str, status: int = 200, **body: Any) -> Any:
    answer = httpx.post(url, json=body, trust_env=False, timeout=60)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_video_audio_and_archives_are_files(toolbox: str) -> None:
    made = post(f"{toolbox}/media")
    kinds = {name: (made[name]["content_type"], made[name]["file_size"]) for name in ("video", "audio", "archive")}
    assert kinds == {"video": ("video/mp4", 1), "audio": ("audio/wav", 1), "archive": ("application/zip", 22)}
    assert httpx.get(made["video"]["url"], trust_env=False).content == b"v"
    assert (made["saved"], made["size"]) == ("abc", 3)


def test_an_archive_is_extracted(toolbox: str, platform: PlatformUnderTest) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("a.txt", "A")
        archive.writestr("b.bin", "B")
    with platform.client() as client:
        named = {"file_name": "a.zip", "content_type": "application/zip"}
        begun = client.post("/rest/storage/upload/initiate", json=named).json()
        client.put(begun["upload_url"], content=content.getvalue()).raise_for_status()
    assert post(f"{toolbox}/archive", archive=begun["file_url"]) == {"all": ["a.txt", "b.bin"], "texts": ["a.txt"]}


@pytest.mark.parametrize(
    ("size", "pixels"),
    [
        ("square_hd", [1024, 1024]),
        ("square", [512, 512]),
        ("portrait_4_3", [768, 1024]),
        ("portrait_16_9", [576, 1024]),
        ("landscape_4_3", [1024, 768]),
        ("landscape_16_9", [1024, 576]),
        ({"width": 3, "height": 14142}, [3, 14142]),
    ],
)
def test_image_sizes(toolbox: str, size: Any, pixels: list[int]) -> None:
    assert post(f"{toolbox}/size", size=size) == pixels


@pytest.mark.parametrize("size", ["huge", {"width": 0, "height": 1}, {"width": 14143, "height": 1}])
def test_image_sizes_that_there_are_not(toolbox: str, size: Any) -> None:
    post(f"{toolbox}/size", 422, size=size)


def test_fields_tell_the_playground_what_to_show(toolbox: str, platform: PlatformUnderTest) -> None:
    assert post(f"{toolbox}/fields", prompt="a") == {"seed": 3, "prompt": "a"}
    with platform.client() as client:
        document = client.get("/api/v1/apps/tester/toolbox/openapi.json").json()
    schema = document["components"]["schemas"]["Fields"]
    assert schema["x-fal-order-properties"][:2] == ["picture", "prompt"]
    assert "internal" not in schema["properties"]
    ui = {name: field["ui"] for name, field in schema["properties"].items() if "ui" in field}
    assert {name: ui[name]["field"] for name in ("picture", "document", "sound", "clip")} == {
        "picture": "image",
        "document": "file",
        "sound": "audio",
        "clip": "video",
    }
    assert ui["seed"] == {"hidden": True}
    assert schema["properties"]["clip"]["x-fal"] == {"constraints": {"max_seconds": 3}}


@pytest.mark.parametrize("field", [{"picture": "http://x/a.png"}, {"link": "http://x"}, {"inline": "https://x/a.png"}])
def test_inputs_that_are_refused_at_the_door(toolbox: str, field: dict[str, str]) -> None:
    post(f"{toolbox}/fields", 422, **field)


def test_repositories(toolbox: str, platform: PlatformUnderTest) -> None:
    said = post(f"{toolbox}/repositories")
    assert said["urls"].pop("in_memory").startswith("data:text/plain;base64,")
    assert all(url.startswith(f"{platform.url}/cdn/") for url in said["urls"].values())
    assert said["own"] == "shelf:x.txt"
    assert said["fallen"].startswith("data:")
    assert "Shelf: the shelf is full" in said["failed"]


def test_places(toolbox: str) -> None:
    assert post(f"{toolbox}/places") == ["/data", "/data/.fal/model_weights", "/data/.fal/repos"]


def test_a_repository_is_cloned_and_imported(toolbox: str) -> None:
    said = post(f"{toolbox}/clone")
    assert said["path"].startswith("/data/.fal/repos/")
    assert said["word"] == "cloned"
    assert "at least 8" in said["refused"]


def test_gpu_type_and_inductor_cache(toolbox: str) -> None:
    said = post(f"{toolbox}/gpu")
    assert said["gpu"]
    assert said["kept"], "what was compiled is kept for other runners"


def test_retry(toolbox: str) -> None:
    assert post(f"{toolbox}/retry") == 3


def test_picture_helpers(toolbox: str) -> None:
    made = post(f"{toolbox}/make-picture")
    assert (made["width"], made["height"], made["content_type"]) == (8, 4, "image/png")
    said = post(f"{toolbox}/picture", address=made["url"])
    assert said == {"read": ["RGB", 4, 2], "prepared": "RGB", "kept": True, "black": [0, 0, 0]}


def test_what_is_only_a_name_and_what_needs_a_package(toolbox: str) -> None:
    said = post(f"{toolbox}/old")
    assert said["same"]
    assert said["errors"]
    assert "torch.compile" in said["said"]
    assert "add 'onnxruntime" in said["onnx"]
