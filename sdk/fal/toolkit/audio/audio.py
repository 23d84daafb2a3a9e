"""``Audio``: a File that the playground shows as audio."""

from __future__ import annotations

from pydantic import ConfigDict

from fal.toolkit.file.file import File


class Audio(File):
    """A sound file by its URL."""

    model_config = ConfigDict(json_schema_extra={"ui": {"field": "audio"}})
