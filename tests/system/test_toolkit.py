"""The toolkit on a whole platform: URLs that callers fetch, inputs that come back, what two apps share."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.support.platform import PlatformUnderTest
from tests.support.waiting import wait_until

APPS = "tests/system/apps/toolkit.py"


@pytest.fixture(scope="module")
def keeper(platform: PlatformUnderTest) -> str:
    return platform.deploy(APPS, "Keeper")


def post(url: str, **body: Any) -> Any:
    answer = httpx.post(url, json=body, trust_env=False, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.json()


def get(url: str) -> httpx.Response:
    return httpx.get(url, trust_env=False)


def test_files_of_an_answer_can_be_fetched_and_sent_back(keeper: str, platform: PlatformUnderTest) -> None:
    """Files of the platform lie on loopback, over http: the one private address and the one scheme that inputs take."""
    made = post(keeper, word="a note")
    picture = get(made["picture"]["url"])
    with Image.open(io.BytesIO(picture.content)) as opened:
        assert (opened.format, opened.size) == ("PNG", (6, 4))
    assert picture.headers["content-type"] == "image/png"
    assert get(made["notes"]["url"]).text == "a note"

    taken = post(f"{keeper}/take", picture=made["picture"]["url"], document=made["notes"]["url"])
    assert (taken["size"], taken["document"]) == ([6, 4], "a note")
    assert taken["weights"].startswith("/data/.fal/model_weights/")
    assert taken["copy"] == "/data/copies/notes.txt"
    assert (platform.data / "data" / "copies" / "notes.txt").read_text() == "a note"


@pytest.mark.parametrize(
    ("policy", "status", "said"),
    [
        ("{}", 422, 'Invalid x-app-fal-upload-policy: "url"'),
        ('{"url": "https://127.0.0.1:9/", "fields": {"key": "${filename}"}}', 424, "not a public address"),
    ],
)
def test_a_bucket_that_the_caller_names_is_checked(keeper: str, policy: str, status: int, said: str) -> None:
    headers = {"x-app-fal-upload-policy": policy}
    answer = httpx.post(keeper, json={}, headers=headers, trust_env=False, timeout=60)
    assert (answer.status_code, said in answer.json()["detail"]) == (status, True), answer.text


def test_a_reserved_url_leads_nowhere_until_it_is_filled(keeper: str) -> None:
    later = post(keeper)["later"]
    assert later.endswith("/later.txt")
    assert get(later).status_code == 404
    post(f"{keeper}/finish")
    wait_until(lambda: get(later).status_code == 200, "the reserved file to be there")
    assert get(later).text == "better late"


def test_two_apps_share_the_folder_and_the_values(keeper: str, platform: PlatformUnderTest) -> None:
    reader = platform.deploy(APPS, "Reader")
    post(f"{keeper}/remember", word="salt")
    assert post(reader) == {"file": "salt", "value": "salt", "setup": "was here", "missing": None}


def test_the_operator_chooses_where_the_folder_lies(
    start_platform: Callable[..., PlatformUnderTest], tmp_path: Path
) -> None:
    elsewhere = start_platform(environ={"KEEPWARM_APP_DATA": str(tmp_path / "big disk")})
    post(f"{elsewhere.deploy(APPS, 'Keeper')}/remember", word="there")
    assert (tmp_path / "big disk" / "shared" / "word.txt").read_text() == "there"
    with elsewhere.client() as client:
        listed = client.get("/rest/files/list//data/shared").json()
    assert [entry["path"] for entry in listed] == ["/data/shared/word.txt"]
    elsewhere.stop()


@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_onnxruntime_uses_the_threads_it_is_given(platform: PlatformUnderTest) -> None:
    told = post(platform.deploy("tests/system/apps/onnx.py", "Onnx"))
    assert told == {"answer": 7.0, "threads": [[1, 2], [1, 5]], "omp": "3"}


@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_pictures_are_judged(start_platform: Callable[..., PlatformUnderTest]) -> None:
    """Real torch, transformers and diffusers; the weights are random, but loaded by the real models' names."""
    offline = start_platform(environ={"KEEPWARM_RUNNER_ENV": "HF_HUB_OFFLINE", "HF_HUB_OFFLINE": "1"})
    judges = offline.deploy("tests/system/apps/safety.py", "Judges")
    buffer = io.BytesIO()
    Image.new("RGB", (32, 24), "red").save(buffer, "PNG")
    image = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"

    judged = post(judges, images=[image, image])
    assert judged["has_nsfw_concepts"] == [True, True]
    with Image.open(io.BytesIO(get(judged["images"][0]["url"]).content)) as blacked:
        assert (blacked.size, blacked.getextrema()) == ((32, 24), ((0, 0), (0, 0), (0, 0)))
    assert all(0 < probability < 1 for probability in judged["probabilities"])

    unchecked = post(judges, images=[image], check=False)
    assert unchecked["has_nsfw_concepts"] == [False]
    with Image.open(io.BytesIO(get(unchecked["images"][0]["url"]).content)) as kept:
        assert kept.getpixel((0, 0)) == (255, 0, 0)
