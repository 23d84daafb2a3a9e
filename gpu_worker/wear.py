"""When a runner is worn out: it has served as much, or as long, or grown as large as its app allows."""

from __future__ import annotations

import time

from gpu_worker import process_tree
from gpu_worker.assignment import Assignment
from gpu_worker.gpu_usage import ram_usage


def wear(a: Assignment, served: int, ready_at: float, pid: int) -> str | None:
    """Why the runner should be replaced, None while it is good.

    Args:
        served: requests that it has answered. ready_at: on ``time.monotonic()``. pid: its process.
    """
    if 0 < a.recycle_after_requests <= served:
        return f"it has served {served} requests (recycle_after_requests)"
    age = time.monotonic() - ready_at
    if 0 < a.recycle_after_seconds <= age:
        return f"it has served for {age:.0f} s (recycle_after_seconds)"
    if a.recycle_above_mb:
        taken = sum(ram_usage({pid, *process_tree.descendants(pid)}).values())
        if taken >= a.recycle_above_mb:
            return f"it takes {taken} MiB of RAM (recycle_above_memory)"
    return None
