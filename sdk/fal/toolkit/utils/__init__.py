"""Downloads and repositories."""

from __future__ import annotations

from fal.toolkit.utils.download_utils import clone_repository, download_file, download_model_weights

__all__ = ["clone_repository", "download_file", "download_model_weights"]
