"""Sound in requests and answers."""

from __future__ import annotations

from fal.toolkit.audio.audio import Audio
from fal.toolkit.pydantic import AudioField

__all__ = ["Audio", "AudioField"]
