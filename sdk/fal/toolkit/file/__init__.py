"""Files in requests and answers."""

from __future__ import annotations

from fal.toolkit.file.file import CompressedFile, File
from fal.toolkit.file.types import FileData, FileRepository, PendingFile
from fal.toolkit.pydantic import FileField

__all__ = ["CompressedFile", "File", "FileData", "FileField", "FileRepository", "PendingFile"]
