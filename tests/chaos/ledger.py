"""What callers did and saw, in a local file: if Redis lost its memory, this one would still know."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Mode = Literal["queued", "direct"]
Answer = tuple[int, str]
"""HTTP status and body of a result."""


@dataclass
class Entry:
    """One logical request of a caller, however often it had to be sent.

    ``ids``: what submits answered; more than one id for one idempotency key is a duplicate. ``answers``: every distinct
    result that was seen by polling or on the connection. ``hooks``: the same as the webhook receiver got them.
    ``cancelled_at``: when a cancel answered success. ``unanswered``: sends that broke off without an answer.
    """

    number: int
    app: str
    mode: Mode
    fate: str
    webhook: bool
    ids: list[str] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    hooks: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    cancelled_at: float | None = None
    unanswered: int = 0

    @property
    def acknowledged(self) -> bool:
        """Whether the platform has promised anything: a queued request's id, a direct call's answer."""
        return bool(self.ids) if self.mode == "queued" else bool(self.answers)


class Ledger:
    """All entries by number, and a file with a line for each event in the order of happening.

    Args:
        path: of the file; one JSON object a line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[int, Entry] = {}
        self._by_id: dict[str, Entry] = {}

    def attempted(self, entry: Entry) -> None:
        """About to be sent for the first time: written before anything goes over the wire."""
        self.entries[entry.number] = entry
        self._write("attempted", entry, app=entry.app, mode=entry.mode, fate=entry.fate, webhook=entry.webhook)

    def acknowledged(self, entry: Entry, request_id: str) -> None:
        """A submit answered 200 with this id."""
        if request_id not in entry.ids:
            entry.ids.append(request_id)
        self._by_id[request_id] = entry
        self._write("acknowledged", entry, id=request_id)

    def saw(self, entry: Entry, status: int, body: str) -> None:
        """A result was read; seeing the same again changes nothing."""
        if (status, body) not in entry.answers:
            entry.answers.append((status, body))
            self._write("saw", entry, status=status, body=body)

    def cancelled(self, entry: Entry) -> None:
        """A cancel answered success."""
        entry.cancelled_at = time.time()
        self._write("cancelled", entry)

    def hooked(self, request_id: str, body: str) -> Entry | None:
        """The receiver was called for that id; None when nobody knows it (yet)."""
        entry = self._by_id.get(request_id)
        if entry is not None:
            entry.hooks.append(body)
            self._write("hooked", entry, body=body)
        return entry

    def complained(self, entry: Entry, what: str) -> None:
        """An answer that no caller should get."""
        entry.complaints.append(what)
        self._write("complained", entry, what=what)

    def noted(self, what: str) -> None:
        """Something that was done to the platform."""
        self._append({"event": what})

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries.values())

    def _write(self, event: str, entry: Entry, **more: Any) -> None:
        self._append({"event": event, "number": entry.number, **more})

    def _append(self, line: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"at": round(time.time(), 3), **line}) + "\n")


def read_journal(path: Path) -> dict[int, dict[str, float]]:
    """The apps' own record: number -> token -> when that execution began."""
    executions: dict[int, dict[str, float]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        number, token, at = line.split(" ")
        executions.setdefault(int(number), {})[token] = float(at)
    return executions
