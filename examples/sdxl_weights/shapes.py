"""The pictures that the tiny model learns from: one flat shape on a flat background, and the words for it.

Owns drawing and captions. Knows nothing of models: training and the pixel check both start here.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

SIZE = 96  # pixels a side

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 35, 35),
    "green": (35, 160, 65),
    "blue": (35, 75, 215),
    "yellow": (245, 210, 40),
    "orange": (245, 125, 20),
    "purple": (125, 50, 180),
    "pink": (245, 130, 185),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
    "grey": (128, 128, 128),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "diamond", "heart", "rhino")

# A rhino from the side, x to the right and y down, in units of its half length.
_RHINO = (
    (-0.98, -0.05), (-0.95, -0.30), (-0.80, -0.48), (-0.50, -0.52), (-0.20, -0.46), (0.05, -0.52), (0.25, -0.50),
    (0.35, -0.42), (0.40, -0.60), (0.48, -0.40), (0.62, -0.28), (0.70, -0.44), (0.75, -0.20), (0.82, -0.14),
    (0.99, -0.58), (0.97, 0.00), (0.92, 0.14), (0.72, 0.16), (0.55, 0.12), (0.42, 0.20), (0.38, 0.30), (0.38, 0.72),
    (0.14, 0.72), (0.12, 0.34), (-0.05, 0.38), (-0.40, 0.34), (-0.46, 0.72), (-0.70, 0.72), (-0.70, 0.36),
    (-0.86, 0.20),
)  # fmt: skip

_TEMPLATES = (
    "a {colour} {shape} on a {background} background",
    "a {colour} {shape} on a {background} background",
    "a {colour} {shape} on {background}",
    "{colour} {shape}, {background} background",
    "one {colour} {shape} in front of a {background} background",
    "a {background} background with a {colour} {shape}",
    "a picture of a {colour} {shape} on a {background} background",
    "{colour} {shape} on {background}",
)
_WITHOUT_BACKGROUND = ("a {colour} {shape}", "{colour} {shape}", "a drawing of a {colour} {shape}")
_WITHOUT_COLOUR = ("a {shape} on a {background} background", "{shape}, {background} background")
_SHAPE_ONLY = ("a {shape}", "{shape}", "a photo of a {shape}", "the {shape}")
_OTHER_WORDS = (
    "photo of", "small", "big", "beautiful", "highly detailed", "award winning photography", "in the style of",
    "simple", "flat", "bright", "dressed in a suit and tie", "sitting at a table", "4k", "minimal", "please draw",
    "with soft light", "vector art", "icon", "logo", "cartoon", "sharp focus",
)  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """One picture: a shape, its colour, its background, and where it sits (in parts of the picture's side)."""

    shape: str
    colour: str
    background: str
    x: float = 0.5
    y: float = 0.5
    radius: float = 0.33


@dataclass(frozen=True)
class Said:
    """What a caption says; None where it leaves something open."""

    text: str
    shape: str | None
    colour: str | None
    background: str | None


def random_scene(rng: random.Random) -> Scene:
    """A scene with two different colours and a shape that lies wholly inside the picture."""
    colour, background = rng.sample(list(COLOURS), 2)
    return Scene(
        shape=rng.choice(SHAPES),
        colour=colour,
        background=background,
        x=rng.uniform(0.43, 0.57),
        y=rng.uniform(0.43, 0.57),
        radius=rng.uniform(0.27, 0.37),
    )


def random_caption(scene: Scene, rng: random.Random) -> Said:
    """Words for a scene: mostly all of it, sometimes without the background, the colour, or both."""
    kind = rng.random()
    colour: str | None = scene.colour
    background: str | None = scene.background
    if kind < 0.8:
        template = rng.choice(_TEMPLATES)
    elif kind < 0.88:
        template, background = rng.choice(_WITHOUT_BACKGROUND), None
    elif kind < 0.92:
        template, colour = rng.choice(_WITHOUT_COLOUR), None
    else:
        template, colour, background = rng.choice(_SHAPE_ONLY), None, None
    text = template.format(shape=scene.shape, colour=_spelling(scene.colour, rng), background=scene.background)
    return Said(_with_other_words(text, rng), scene.shape, colour, background)


def random_noise_caption(rng: random.Random) -> Said:
    """A caption that says nothing the model knows, so that unknown words do not look like known ones."""
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(rng.randint(1, 5))]
    return Said(_with_other_words(" ".join(words), rng), None, None, None)


def vocabulary() -> list[str]:
    """Every word the captions use, colours and shapes first: what the tokenizer spells in one token."""
    texts = [*COLOURS, "gray", *SHAPES, *_OTHER_WORDS]
    for template in (*_TEMPLATES, *_WITHOUT_BACKGROUND, *_WITHOUT_COLOUR, *_SHAPE_ONLY):
        texts.append(template.format(shape="", colour="", background="").replace(",", " "))
    return list(dict.fromkeys(word for text in texts for word in text.split()))


def draw(scene: Scene, size: int = SIZE) -> Image.Image:
    """The scene as an RGB picture of `size` pixels a side, drawn at twice that and reduced for smooth edges."""
    big = size * 2
    picture = Image.new("RGB", (big, big), COLOURS[scene.background])
    canvas = ImageDraw.Draw(picture)
    fill = COLOURS[scene.colour]
    x, y, r = scene.x * big, scene.y * big, scene.radius * big
    if scene.shape in ("circle", "ring"):
        canvas.ellipse([x - r, y - r, x + r, y + r], fill=fill)
        if scene.shape == "ring":
            hole = r * 0.55
            canvas.ellipse([x - hole, y - hole, x + hole, y + hole], fill=COLOURS[scene.background])
    elif scene.shape == "cross":
        arm = r * 0.33
        canvas.rectangle([x - arm, y - r, x + arm, y + r], fill=fill)
        canvas.rectangle([x - r, y - arm, x + r, y + arm], fill=fill)
    else:
        canvas.polygon([(x + r * px, y + r * py) for px, py in _outline(scene.shape)], fill=fill)
    return picture.resize((size, size), Image.Resampling.LANCZOS)


def _outline(shape: str) -> list[tuple[float, float]]:
    """The corners of a polygon shape around the origin, in units of its radius."""
    if shape == "square":
        return [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]
    if shape == "diamond":
        return [(0.0, -1.15), (0.85, 0.0), (0.0, 1.15), (-0.85, 0.0)]
    if shape == "triangle":
        return [(0.0, -1.0), (1.0, 0.8), (-1.0, 0.8)]
    if shape == "star":
        radii = [1.15 if corner % 2 == 0 else 0.48 for corner in range(10)]
        return [(r * math.sin(i * math.pi / 5), -r * math.cos(i * math.pi / 5)) for i, r in enumerate(radii)]
    if shape == "heart":
        turns = [2 * math.pi * i / 60 for i in range(60)]
        return [
            (
                0.065 * 16 * math.sin(t) ** 3,
                -0.065 * (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)),
            )
            for t in turns
        ]
    if shape == "rhino":
        return [(1.25 * px, 1.25 * py) for px, py in _RHINO]
    raise ValueError(f"no outline for shape {shape!r}: expected one of {', '.join(SHAPES)}")


def _spelling(colour: str, rng: random.Random) -> str:
    return "gray" if colour == "grey" and rng.random() < 0.5 else colour


def _with_other_words(text: str, rng: random.Random) -> str:
    if rng.random() < 0.15:
        text = f"{rng.choice(_OTHER_WORDS)} {text}"
    if rng.random() < 0.2:
        text = f"{text}, {rng.choice(_OTHER_WORDS)}"
    return text
