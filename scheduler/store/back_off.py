"""How long a revision that does not start, or whose workers crash, is left alone before its next worker. Pure."""

from __future__ import annotations

from .records import RevisionRecord

#: Longest wait between two tries.
MAX_BACK_OFF_MS = 60_000


def back_off_ms(failures: int) -> int:
    """Wait after ``failures`` in a row: 1, 2, 4 ... 60 seconds."""
    return min(MAX_BACK_OFF_MS, 1000 * 2 ** min(failures - 1, 10)) if failures > 0 else 0


def next_start_ms(revision: RevisionRecord) -> int:
    """When the next worker may start at the earliest; 0 for a healthy revision."""
    failures = max(revision.startup_failures, revision.crash_streak)
    last = max(revision.last_startup_failure_at_ms or 0, revision.last_crash_at_ms or 0)
    return last + back_off_ms(failures) if failures else 0
