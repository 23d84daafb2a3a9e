"""What apps use to take and give files, pictures and weights; each name is loaded when it is first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fal.toolkit.audio.audio import Audio
    from fal.toolkit.compilation import (
        get_gpu_type,
        load_inductor_cache,
        sync_inductor_cache,
        synchronized_inductor_cache,
    )
    from fal.toolkit.constraints import (
        ImageSizeConstraints,
        ImageValidationConfig,
        ImageValidationOptions,
        to_xfal,
    )
    from fal.toolkit.exceptions import DownloadError, FalTookitException, FileUploadException, KVStoreException
    from fal.toolkit.file.file import CompressedFile, File
    from fal.toolkit.file.types import FileData, FileRepository, PendingFile
    from fal.toolkit.image.image import Image
    from fal.toolkit.image.sizes import ImageSize, ImageSizeInput, get_image_size
    from fal.toolkit.kv import KVStore
    from fal.toolkit.paths import FAL_MODEL_WEIGHTS_DIR, FAL_PERSISTENT_DIR, FAL_REPOSITORY_DIR
    from fal.toolkit.pydantic import (
        AudioField,
        FalBaseModel,
        Field,
        FileField,
        Hidden,
        ImageField,
        ImageSizeField,
        VideoField,
    )
    from fal.toolkit.utils.download_utils import clone_repository, download_file, download_model_weights
    from fal.toolkit.video.video import Video

_HOMES = {
    "Audio": "audio.audio",
    "AudioField": "pydantic",
    "CompressedFile": "file.file",
    "DownloadError": "exceptions",
    "FAL_MODEL_WEIGHTS_DIR": "paths",
    "FAL_PERSISTENT_DIR": "paths",
    "FAL_REPOSITORY_DIR": "paths",
    "FalBaseModel": "pydantic",
    "FalTookitException": "exceptions",
    "Field": "pydantic",
    "File": "file.file",
    "FileData": "file.types",
    "FileField": "pydantic",
    "FileRepository": "file.types",
    "FileUploadException": "exceptions",
    "Hidden": "pydantic",
    "Image": "image.image",
    "ImageField": "pydantic",
    "ImageSize": "image.sizes",
    "ImageSizeConstraints": "constraints",
    "ImageSizeField": "pydantic",
    "ImageSizeInput": "image.sizes",
    "ImageValidationConfig": "constraints",
    "ImageValidationOptions": "constraints",
    "KVStore": "kv",
    "KVStoreException": "exceptions",
    "PendingFile": "file.types",
    "Video": "video.video",
    "VideoField": "pydantic",
    "clone_repository": "utils.download_utils",
    "download_file": "utils.download_utils",
    "download_model_weights": "utils.download_utils",
    "get_gpu_type": "compilation",
    "get_image_size": "image.sizes",
    "load_inductor_cache": "compilation",
    "sync_inductor_cache": "compilation",
    "synchronized_inductor_cache": "compilation",
    "to_xfal": "constraints",
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
    "Field",
    "File",
    "FileData",
    "FileField",
    "FileRepository",
    "FileUploadException",
    "Hidden",
    "Image",
    "ImageField",
    "ImageSize",
    "ImageSizeConstraints",
    "ImageSizeField",
    "ImageSizeInput",
    "ImageValidationConfig",
    "ImageValidationOptions",
    "KVStore",
    "KVStoreException",
    "PendingFile",
    "Video",
    "VideoField",
    "clone_repository",
    "download_file",
    "download_model_weights",
    "get_gpu_type",
    "get_image_size",
    "load_inductor_cache",
    "sync_inductor_cache",
    "synchronized_inductor_cache",
    "to_xfal",
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
