"""``Video``: a File that the playground shows as video."""

from __future__ import annotations

from pydantic import ConfigDict

from fal.toolkit.file.file import File


class Video(File):
    """A video by its URL."""

    model_config = ConfigDict(json_schema_extra={"ui": {"field": "video"}})
