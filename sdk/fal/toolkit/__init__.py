"""What apps use to take and give files, pictures and weights; each name is loaded when it is first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fal.toolkit.audio import Audio
    from fal.toolkit.exceptions import DownloadError, FalTookitException, FileUploadException, KVStoreException
    from fal.toolkit.file.file import CompressedFile, File
    from fal.toolkit.image.image import Image
    from fal.toolkit.image.sizes import ImageSize, ImageSizeInput, get_image_size
    from fal.toolkit.kv import KVStore
    from fal.toolkit.paths import FAL_MODEL_WEIGHTS_DIR, FAL_PERSISTENT_DIR, FAL_REPOSITORY_DIR
    from fal.toolkit.pydantic import (
        AudioField,
        FalBaseModel,
        FileField,
        Hidden,
        ImageField,
        ImageSizeField,
        VideoField,
    )
    from fal.toolkit.utils.download_utils import clone_repository, download_file, download_model_weights
    from fal.toolkit.video import Video

_HOMES = {
    "Audio": "audio",
    "AudioField": "pydantic",
    "CompressedFile": "file.file",
    "DownloadError": "exceptions",
    "FAL_MODEL_WEIGHTS_DIR": "paths",
    "FAL_PERSISTENT_DIR": "paths",
    "FAL_REPOSITORY_DIR": "paths",
    "FalBaseModel": "pydantic",
    "FalTookitException": "exceptions",
    "File": "file.file",
    "FileField": "pydantic",
    "FileUploadException": "exceptions",
    "Hidden": "pydantic",
    "Image": "image.image",
    "ImageField": "pydantic",
    "ImageSize": "image.sizes",
    "ImageSizeField": "pydantic",
    "ImageSizeInput": "image.sizes",
    "KVStore": "kv",
    "KVStoreException": "exceptions",
    "Video": "video",
    "VideoField": "pydantic",
    "clone_repository": "utils.download_utils",
    "download_file": "utils.download_utils",
    "download_model_weights": "utils.download_utils",
    "get_image_size": "image.sizes",
}

__all__ = [
    "FAL_MODEL_WEIGHTS_DIR",
    "FAL_PERSISTENT_DIR",
    "FAL_REPOSITORY_DIR",
    "Audio",
    "AudioField",
    "CompressedFile",
    "DownloadError",
    "FalBaseModel",
    "FalTookitException",
    "File",
    "FileField",
    "FileUploadException",
    "Hidden",
    "Image",
    "ImageField",
    "ImageSize",
    "ImageSizeField",
    "ImageSizeInput",
    "KVStore",
    "KVStoreException",
    "Video",
    "VideoField",
    "clone_repository",
    "download_file",
    "download_model_weights",
    "get_image_size",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'fal.toolkit' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"fal.toolkit.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
