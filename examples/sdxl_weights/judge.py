"""Which shape, in which colour, on which background does a picture show? By pixels alone, without a model.

Knows the same shapes and colours that training draws. Needs nothing but Pillow.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageChops, ImageFilter, ImageStat

from shapes import COLOURS, SHAPES, Scene, draw

_GRID = 32  # outlines are compared on a square of so many cells a side
_FAR = 60  # of 255: how far a pixel must be from the background to belong to the shape


@dataclass(frozen=True)
class Seen:
    """What a picture shows. `shape` is None for a picture of one colour; `likeness` is 0 to 1."""

    shape: str | None
    colour: str | None
    background: str
    likeness: float


def look(picture: Image.Image) -> Seen:
    """Name the background by the picture's rim, the shape by everything that differs from it."""
    picture = picture.convert("RGB")
    rim_colour = _rim_colour(picture)
    mask = _shape_mask(picture, rim_colour)
    background = _nearest_colour(rim_colour)
    if mask.getbbox() is None:
        return Seen(None, None, background, 0.0)
    inside = mask.filter(ImageFilter.MinFilter(5))  # edges are mixtures of both colours
    stat = ImageStat.Stat(picture, inside if inside.getbbox() else mask)
    outline = _outline(mask)
    likeness = {shape: _overlap(outline, _known_outline(shape)) for shape in SHAPES}
    best = max(likeness, key=likeness.__getitem__)
    return Seen(best, _nearest_colour(tuple(stat.median)), background, likeness[best])


def _rim_colour(picture: Image.Image) -> tuple[int, ...]:
    width, height = picture.size
    inner = Image.new("L", picture.size, 255)
    border = max(2, width // 24)
    inner.paste(0, (border, border, width - border, height - border))
    return tuple(ImageStat.Stat(picture, inner).median)


def _shape_mask(picture: Image.Image, background: tuple[int, ...]) -> Image.Image:
    difference = ImageChops.difference(picture, Image.new("RGB", picture.size, background))
    red, green, blue = difference.split()
    farthest = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    return farthest.point(lambda value: 255 if value > _FAR else 0).filter(ImageFilter.MedianFilter(5))


def _outline(mask: Image.Image) -> bytes:
    box = mask.getbbox()
    cropped = mask.crop(box).resize((_GRID, _GRID), Image.Resampling.BOX)
    return cropped.point(lambda value: 255 if value > 127 else 0).tobytes()


@cache
def _known_outline(shape: str) -> bytes:
    picture = draw(Scene(shape, "black", "white"))
    return _outline(_shape_mask(picture, COLOURS["white"]))


def _overlap(left: bytes, right: bytes) -> float:
    both = sum(1 for a, b in zip(left, right, strict=True) if a and b)
    either = sum(1 for a, b in zip(left, right, strict=True) if a or b)
    return both / either


def _nearest_colour(colour: tuple[int, ...]) -> str:
    return min(COLOURS, key=lambda name: sum((a - b) ** 2 for a, b in zip(COLOURS[name], colour, strict=True)))
