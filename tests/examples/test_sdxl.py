"""The SDXL example over current releases, with the tiny weights of the project: a prompt in, its picture out."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from PIL import Image, ImageFilter

from tests.support.platform import ROOT, PlatformUnderTest

WEIGHTS = ROOT / "examples" / "weights"


def test_the_judge_knows_what_was_drawn() -> None:
    """The pixel judge must be right about good pictures, soft ones too, before it may judge a model's."""
    from judge import look
    from shapes import draw, random_scene

    rng = random.Random(7)
    for _ in range(100):
        scene = random_scene(rng)
        seen = look(draw(scene).filter(ImageFilter.GaussianBlur(1)))
        assert (seen.shape, seen.colour, seen.background) == (scene.shape, scene.colour, scene.background)


def test_the_tokenizer_spells_each_known_word_in_one_token() -> None:
    """Once "rhino" came out as r-hi-n-o, because a pair inside it had been learnt from another word before."""
    from shapes import COLOURS, SHAPES
    from tokens import merges, spell

    ranks = {pair: rank for rank, pair in enumerate(merges())}
    for word in (*COLOURS, *SHAPES):
        assert spell([*word[:-1], word[-1] + "</w>"], ranks) == [word + "</w>"]


def test_the_weights_are_small_and_a_hugging_face_cache() -> None:
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 12_000_000
    root = WEIGHTS / "hub" / "models--sd-community--sdxl-flash"
    revision = (root / "refs" / "main").read_text()
    assert (root / "snapshots" / revision / "model_index.json").is_file()
    assert not [path for path in files if path.is_symlink()]


@pytest.fixture(scope="module")
def sdxl(start_platform: Callable[..., PlatformUnderTest]) -> str:
    """URL of the app, on a platform that lets the CPU stand in and whose workers find the weights."""
    platform = start_platform(
        "--cpu-fallback",
        environ={
            "KEEPWARM_RUNNER_ENV": "HF_HOME,HF_HUB_OFFLINE",
            "HF_HOME": str(WEIGHTS),
            "HF_HUB_OFFLINE": "1",
        },
    )
    return platform.deploy("examples/sdxl_cpu.py", "SdxlCpu")


@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_a_red_circle_on_a_blue_background(sdxl: str, tmp_path: Path) -> None:
    """Pictures follow the prompt. Noise is fresh in each call and the model is tiny, so some misses are forgiven."""
    from judge import look

    seen = []
    for _ in range(8):
        answer = httpx.post(sdxl, json={"prompt": "a red circle on a blue background"}, trust_env=False, timeout=300)
        assert answer.status_code == 200, answer.text
        assert "cpu" in answer.headers["x-keepwarm-device"]
        picture = Image.open(io.BytesIO(httpx.get(answer.json()["image"]["url"], trust_env=False).content))
        found = look(picture)
        seen.append((found.shape, found.colour, found.background))
    assert seen.count(("circle", "red", "blue")) >= 4, seen
