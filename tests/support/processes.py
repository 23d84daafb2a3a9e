"""Looking at processes that may end meanwhile."""

from __future__ import annotations

import psutil


def command_of(process: psutil.Process) -> list[str]:
    """The words of its command line; none once it has ended, which it may between being found and being asked."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []
