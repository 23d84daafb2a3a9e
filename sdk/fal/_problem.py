"""The one error that the fal command shows: what is wrong, why, and what to do next.

Leaves how it looks (colour, cross) to ``fal.cli.console``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class Problem(Exception):
    """Something that the user, or the operator, can put right.

    Args:
        what: one sentence naming the value that is wrong.
        why: the cause, when the sentence does not already say it.
        next_step: what to do now.
        detail: lines shown as they are (a traceback's own frames, the end of a log).
        exit_code: status that the command ends with.
        status: HTTP status when a server refused.
    """

    def __init__(
        self,
        what: str,
        *,
        why: str = "",
        next_step: str = "",
        detail: Sequence[str] = (),
        exit_code: int = 1,
        status: int | None = None,
    ) -> None:
        self.what = what
        self.why = why
        self.next_step = next_step
        self.detail = tuple(detail)
        self.exit_code = exit_code
        self.status = status
        super().__init__(what)

    @classmethod
    def of_text(cls, text: str, *, status: int | None = None) -> Problem:
        """From one paragraph in which the platform says what is wrong, and after ``Next:`` what to do."""
        what, _, step = text.partition(" Next: ")
        return cls(what, next_step=step, status=status)

    def __str__(self) -> str:
        lines = [self.what, *(f"    {line}" for line in self.detail)]
        if self.why:
            lines.append(f"  Cause: {self.why}")
        if self.next_step:
            lines.append(f"  Next:  {self.next_step}")
        return "\n".join(lines)


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like ``name``, or None when nothing is near."""
    names = list(known)
    folded = {item.lower(): item for item in reversed(names)}
    if name.lower() in folded:
        return folded[name.lower()]
    matches = get_close_matches(name, names, n=1) or get_close_matches(name.lower(), list(folded), n=1)
    return folded.get(matches[0].lower(), matches[0]) if matches else None
