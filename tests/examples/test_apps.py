"""Each example app through a real platform, called as its docstring says."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.support.platform import PlatformUnderTest


def post(url: str, body: dict[str, Any]) -> Any:
    answer = httpx.post(url, json=body, trust_env=False, timeout=300)
    assert answer.status_code == 200, answer.text
    return answer.json()


def picture_of(answer: dict[str, Any]) -> Image.Image:
    """The picture behind the URL in an answer, fetched as a browser would."""
    shown = answer["image"]
    fetched = httpx.get(shown["url"], trust_env=False, timeout=60)
    assert fetched.headers["content-type"] == shown["content_type"]
    picture = Image.open(io.BytesIO(fetched.content))
    assert picture.size == (shown["width"], shown["height"])
    return picture


def colours(picture: Image.Image) -> int:
    counted = picture.convert("RGB").resize((64, 64)).getcolors(64 * 64)
    assert counted is not None
    return len(counted)


def test_hello(platform: PlatformUnderTest) -> None:
    url = platform.deploy("examples/hello.py", "Hello")
    first, second = post(url, {"name": "Ada"}), post(url, {})
    assert first["greeting"] == "Hello, Ada!"
    assert second == {"greeting": "Hello, world!", "calls": first["calls"] + 1}


def test_streaming(platform: PlatformUnderTest) -> None:
    url = platform.deploy("examples/streaming.py", "Storyteller")
    request = {"words": 8, "seed": 3, "pause": 0.01}
    with httpx.stream("POST", f"{url}/stream", json=request, trust_env=False, timeout=60) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line]
    words = [event["word"] for event in events[:-1]]
    assert len(words) == 8
    assert events[-1] == {"text": " ".join(words)}
    assert post(url, request)["text"] == " ".join(words)


@pytest.fixture(scope="module")
def painting(platform: PlatformUnderTest) -> str:
    return platform.deploy("examples/painting.py", "Painting")


def test_painting_of_the_sample(painting: str) -> None:
    """The newcomer's first picture: one curl with an empty object."""
    picture = picture_of(post(painting, {}))
    assert picture.size == (451, 300)
    assert colours(picture) > 500


def test_painting_of_given_pictures(painting: str) -> None:
    """A data URI, and an address: the platform's own, where the last painting lies."""
    buffer = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").resize((160, 120)).save(buffer, "PNG")
    data_uri = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    first = post(painting, {"image": data_uri, "style": 3})
    assert picture_of(first).size == (160, 120)
    second = post(painting, {"image": first["image"]["url"], "style_image": data_uri, "keep_colours": True})
    assert picture_of(second).size == (160, 120)


def test_painting_in_all_styles(painting: str) -> None:
    assert picture_of(post(f"{painting}/styles", {})).size == (6 * 240, 5 * 160)


def test_painting_in_no_such_style(painting: str) -> None:
    answer = httpx.post(painting, json={"style": 26}, trust_env=False, timeout=60)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "style"]


@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_embeddings(platform: PlatformUnderTest) -> None:
    url = platform.deploy("examples/embeddings.py", "Embeddings")
    sentences = ["A cat sits on the mat.", "A kitten lies on a rug.", "Shares fell in Tokyo."]
    answer = post(url, {"sentences": sentences})
    assert answer["dimensions"] == 384
    assert [len(vector) for vector in answer["embeddings"]] == [384] * 3
    [cat, _, _] = post(f"{url}/similarity", {"sentences": sentences})["similarity"]
    assert cat[0] == pytest.approx(1, abs=1e-4)
    assert cat[1] > 0.4 > cat[2] + 0.2
