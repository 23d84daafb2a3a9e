"""Videos in requests and answers."""

from __future__ import annotations

from fal.toolkit.pydantic import VideoField
from fal.toolkit.video.video import Video

__all__ = ["Video", "VideoField"]
