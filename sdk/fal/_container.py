"""``ContainerImage``: there so that files that use it can be read and be told what to do instead."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ContainerImage:
    """A Dockerfile's text and options; an app or function with ``image=`` is refused, see ``fal._settings``.

    Args:
        options: whatever else fal takes (build_args, registries, secrets ...); kept, not looked at.
    """

    dockerfile_str: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dockerfile_str(cls, text: str, **options: Any) -> ContainerImage:
        """From a Dockerfile's text."""
        return cls(text, options)

    @classmethod
    def from_dockerfile(cls, path: str | os.PathLike[str], **options: Any) -> ContainerImage:
        """From a Dockerfile.

        Raises:
            OSError: it cannot be read.
        """
        return cls(Path(path).read_text(encoding="utf-8"), options)
