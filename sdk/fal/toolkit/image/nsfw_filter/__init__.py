"""How likely a picture is unsafe for work."""

from __future__ import annotations

from fal.toolkit.image.nsfw_filter.inference import (
    NSFWImageDetectionInput,
    NSFWImageDetectionOutput,
    run_nsfw_estimation,
)

__all__ = ["NSFWImageDetectionInput", "NSFWImageDetectionOutput", "run_nsfw_estimation"]
