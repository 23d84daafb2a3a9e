"""What a start shows about the next one of the same environment: which modules it loads and which files it opens.

Owns noticing. Leaves keeping and using it to the host's agent (``gpu_worker.lessons``).
"""

from __future__ import annotations

import os
import sys
from types import FrameType
from typing import Any

from fal._runner.protocol import Learned

#: Variables that name folders in which models lie.
_MODEL_FOLDERS = ("FAL_DATA_DIR", "HF_HOME", "TORCH_HOME", "XDG_CACHE_HOME")
_MAX_MODULES = 20_000
_MAX_FILES = 512
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


class Lessons:
    """Listens from its creation until ``all`` is called.

    Args:
        bundle_dir: where the app's own code lies.
    """

    def __init__(self, bundle_dir: str) -> None:
        self._bundle = os.path.join(bundle_dir, "")
        #: what was loaded when the app's own code first set a variable: what it imports later may look at that
        self._loaded_before: frozenset[str] | None = None
        self._hearing = True
        self._folders = tuple(
            os.path.join(os.path.abspath(folder), "") for name in _MODEL_FOLDERS if (folder := os.environ.get(name))
        )
        self._files: dict[str, None] = {}
        sys.addaudithook(self._heard)

    def all(self) -> Learned:
        """What was noticed; from now on nothing is."""
        self._hearing = False
        before = self._loaded_before
        modules = [
            name
            for name, file in installed_modules().items()
            if not file.startswith(self._bundle) and (before is None or name in before)
        ]
        return Learned(modules[:_MAX_MODULES], list(self._files))

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        # For ever called for every event of the process, for a hook cannot be taken out again: the cheapest way first.
        if not self._hearing:
            return
        if event == "open":
            self._opened(arguments[0], arguments[1])
        elif event in ("os.putenv", "os.unsetenv") and self._loaded_before is None and self._is_by_the_app():
            self._loaded_before = frozenset(sys.modules)

    def _opened(self, path: Any, mode: Any) -> None:
        if mode is not None and "r" not in mode:
            return
        if type(path) is str and path.startswith(self._folders) and len(self._files) < _MAX_FILES:
            self._files[path] = None

    def _is_by_the_app(self) -> bool:
        """Whether the app's own code is doing something now, itself or through what it calls; not a mere import."""
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            file = frame.f_code.co_filename
            if file.startswith(self._bundle):
                return True
            if file.startswith("<frozen importlib"):
                return False
            frame = frame.f_back
        return False


def installed_modules() -> dict[str, str]:
    """Loaded modules of the environment's packages and their files, in the order in which their import began."""
    found = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__dict__", {}).get("__file__")  # not by getattr: lazy modules would load more
        if type(file) is str and any(part in file for part in _INSTALLED):
            found[name] = file
    return found
