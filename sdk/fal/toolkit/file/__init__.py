"""Files in requests and answers."""

from __future__ import annotations

from fal.toolkit.file.file import CompressedFile, File
from fal.toolkit.file.repositories import FileData, FileRepository

__all__ = ["CompressedFile", "File", "FileData", "FileRepository"]
