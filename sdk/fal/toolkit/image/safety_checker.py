"""Blacks out pictures that Stable Diffusion's safety checker objects to. Needs torch, transformers and diffusers."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from fal._needed import needed
from fal.toolkit.image.reading import filter_by

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

#: On the hub, so fetched once into the worker's cache under /data.
CHECKER = "CompVis/stable-diffusion-safety-checker"
FEATURES = "openai/clip-vit-base-patch32"
_REQUIREMENTS = ("torch", "transformers", "diffusers", "accelerate")
_loading = threading.Lock()


def run_safety_checker(pil_images: Sequence[PILImage]) -> list[bool]:
    """For each picture whether the checker objects.

    Raises:
        ImportError: a package is missing; names what to add to requirements.
    """
    if not pil_images:
        return []
    torch, device, checker, extractor = _loaded()
    pictures = [picture.convert("RGB") for picture in pil_images]
    features = extractor(pictures, return_tensors="pt").pixel_values.to(device)
    # It would blacken arrays in place; filter_by does that to the pictures themselves.
    empty = torch.zeros((len(pictures), 1, 1, 3)).numpy()
    with torch.no_grad():
        _, found = checker(images=empty, clip_input=features)
    return [bool(concept) for concept in found]


def postprocess_images(pil_images: Sequence[PILImage], enable_safety_checker: bool = True) -> dict[str, list[Any]]:
    """``images``, those with unwanted content black, and ``has_nsfw_concepts``, which ones those are.

    Raises:
        ImportError: as ``run_safety_checker``.
    """
    images = list(pil_images)
    found = run_safety_checker(images) if enable_safety_checker else [False] * len(images)
    return {"images": filter_by(found, images), "has_nsfw_concepts": found}


def _loaded() -> tuple[Any, Any, Any, Any]:
    with _loading:  # two requests at once must not load it twice
        return _load()


@lru_cache(maxsize=1)
def _load() -> tuple[Any, Any, Any, Any]:
    by = "the safety checker"
    torch = needed("torch", by, *_REQUIREMENTS)
    transformers = needed("transformers", by, *_REQUIREMENTS)
    diffusers = needed("diffusers.pipelines.stable_diffusion.safety_checker", by, *_REQUIREMENTS)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    checker = diffusers.StableDiffusionSafetyChecker.from_pretrained(CHECKER).to(device).eval()
    return torch, device, checker, transformers.CLIPImageProcessor.from_pretrained(FEATURES)
