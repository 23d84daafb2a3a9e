"""What a start shows about the next one of the same environment: which modules it loads and which files it opens.

Owns noticing. Leaves keeping and using it to the host's agent (``gpu_worker.lessons``).
"""

from __future__ import annotations

import os
import sys
from typing import Any

from fal._runner.protocol import Learned

#: Variables that name folders in which models lie.
_MODEL_FOLDERS = ("FAL_DATA_DIR", "HF_HOME", "TORCH_HOME", "XDG_CACHE_HOME")
_MAX_MODULES = 20_000
_MAX_FILES = 512
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


class Lessons:
    """Listens from its creation until ``all`` is called."""

    def __init__(self) -> None:
        self._folders = tuple(
            os.path.join(os.path.abspath(folder), "") for name in _MODEL_FOLDERS if (folder := os.environ.get(name))
        )
        self._files: dict[str, None] = {}
        self._listening = bool(self._folders)
        sys.addaudithook(self._heard)

    def all(self, bundle_dir: str) -> Learned:
        """What was noticed; from now on nothing is."""
        self._listening = False
        return Learned(_installed_modules(os.path.join(bundle_dir, "")), list(self._files))

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        # For ever called for every event of the process, for a hook cannot be taken out again: the cheapest way first.
        if not self._listening or event != "open":
            return
        path, mode = arguments[0], arguments[1]
        if mode is not None and "r" not in mode:
            return
        if type(path) is str and path.startswith(self._folders) and len(self._files) < _MAX_FILES:
            self._files[path] = None


def _installed_modules(bundle: str) -> list[str]:
    """Of the environment's packages, and in the order in which their import began."""
    found = []
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__dict__", {}).get("__file__")  # not by getattr: lazy modules would load more
        if type(file) is str and any(part in file for part in _INSTALLED) and not file.startswith(bundle):
            found.append(name)
    return found[:_MAX_MODULES]
