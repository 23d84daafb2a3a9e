"""numpy arrays and PIL images as plain data and back, where those packages are there; neither is imported to look."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from fal._carried_classes import CannotTravel
from fal.exceptions import FalMissingDependencyError

#: Kinds of numpy's data types that are bytes and nothing else.
_KINDS = frozenset("biufcSUmM")


def array(value: Any) -> list[Any] | None:
    """An array or a scalar of numpy's: data type, shape (None for a scalar), bytes; None for anything else."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, (numpy.ndarray, numpy.generic)):
        return None
    kind = value.dtype
    if kind.kind not in _KINDS or kind.fields is not None:
        raise CannotTravel(f"holds a numpy array of {kind}, which cannot be sent (send value.tolist())")
    if isinstance(value, numpy.generic):
        return [kind.str, None, value.tobytes()]
    if type(value) is not numpy.ndarray:
        raise CannotTravel(f"holds a {type(value).__name__}, which cannot be sent (send numpy.asarray(value))")
    return [kind.str, list(value.shape), value.tobytes()]


def array_of(data: list[Any]) -> Any:
    """The array or scalar."""
    try:
        numpy: Any = importlib.import_module("numpy")
    except ImportError:
        raise FalMissingDependencyError("holds a numpy array, and numpy is not installed here.") from None
    kind = numpy.dtype(data[0])
    if kind.kind not in _KINDS:
        raise CannotTravel(f"holds an array of {kind}, which is not only data")
    flat = numpy.frombuffer(data[2], dtype=kind)
    return flat[0] if data[1] is None else flat.reshape(data[1]).copy()


def image(value: Any) -> list[Any] | None:
    """A PIL image: mode, size, bytes, palette, transparency; None for anything else."""
    pil: Any = sys.modules.get("PIL.Image")
    if pil is None or not isinstance(value, pil.Image):
        return None
    palette = None
    if value.mode in ("P", "PA") and value.palette is not None:
        value.load()
        palette = [value.palette.mode, bytes(value.palette.palette)]
    transparency = value.info.get("transparency")
    if isinstance(transparency, tuple):
        transparency = list(transparency)
    return [value.mode, list(value.size), value.tobytes(), palette, transparency]


def image_of(data: list[Any]) -> Any:
    """The image."""
    try:
        from PIL import Image
    except ImportError:
        raise FalMissingDependencyError("holds a PIL image, and Pillow is not installed here.") from None
    mode, size, pixels, palette, transparency = data
    made = Image.frombytes(mode, tuple(size), pixels)
    if palette is not None:
        made.putpalette(palette[1], palette[0])
    if transparency is not None:
        made.info["transparency"] = tuple(transparency) if isinstance(transparency, list) else transparency
    return made
