"""What the toolkit raises.

FalTookitException  (spelled so: it is fal's public name)
├── DownloadError
├── FileUploadException
└── KVStoreException
"""

from __future__ import annotations


class FalTookitException(Exception):
    """Base of the toolkit's exceptions."""


class DownloadError(FalTookitException):
    """A file could not be fetched."""


class FileUploadException(FalTookitException):
    """A file could not be stored."""


class KVStoreException(FalTookitException):
    """The key-value store did not answer."""
