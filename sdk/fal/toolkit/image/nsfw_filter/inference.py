"""One picture in, one probability out. Needs torch and transformers."""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, Field

from fal._needed import needed
from fal.toolkit.image.reading import read_image_from_url

#: On the hub, so fetched once into the worker's cache under /data.
MODEL = "Falconsai/nsfw_image_detection"
_REQUIREMENTS = ("torch", "transformers")
_loading = threading.Lock()


class NSFWImageDetectionInput(BaseModel):
    """The picture."""

    image_url: str = Field(description="URL of the image to look at.")


class NSFWImageDetectionOutput(BaseModel):
    """The estimate."""

    nsfw_probability: float = Field(description="0 is safe, 1 is unsafe for work.")


def run_nsfw_estimation(input: NSFWImageDetectionInput) -> NSFWImageDetectionOutput:
    """Look at one picture.

    Raises:
        ImportError: a package is missing; names what to add to requirements.
        fastapi.HTTPException: 422, the picture cannot be read.
    """
    torch, device, model, processor = _loaded()
    picture = read_image_from_url(input.image_url)
    with torch.no_grad():
        scores = model(**processor(images=picture, return_tensors="pt").to(device)).logits.softmax(dim=-1)[0]
    return NSFWImageDetectionOutput(nsfw_probability=float(scores[model.config.label2id["nsfw"]]))


def _loaded() -> tuple[Any, Any, Any, Any]:
    with _loading:  # two requests at once must not load it twice
        return _load()


@lru_cache(maxsize=1)
def _load() -> tuple[Any, Any, Any, Any]:
    torch = needed("torch", "the nsfw filter", *_REQUIREMENTS)
    transformers = needed("transformers", "the nsfw filter", *_REQUIREMENTS)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = transformers.AutoModelForImageClassification.from_pretrained(MODEL).to(device).eval()
    return torch, device, model, transformers.AutoImageProcessor.from_pretrained(MODEL)
