"""What a run comes to: the ledger compared with what the platform promises, in one line."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from tests.chaos.ledger import Entry, Ledger

#: An execution that ended in a crash of its own counts, so this many executions make a request poisonous.
CRASHES_OF_POISON = 3
#: What each fate may end with, beside a cancel: HTTP status of the result.
_ENDS = {"answer": 200, "busy": 200, "refuse": 422, "raise": 500}


@dataclass
class Verdict:
    """Counts, and a sentence for each that should be 0."""

    seed: int
    attempted: int = 0
    acknowledged: int = 0
    lost: int = 0
    duplicated: int = 0
    after_cancel: int = 0
    unexpected: int = 0
    recovered: int = 0
    why: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"attempted {self.attempted} acknowledged {self.acknowledged} lost {self.lost} "
            f"duplicated-results {self.duplicated} result-after-cancel {self.after_cancel} "
            f"unexpected {self.unexpected} recovered {self.recovered} seed {self.seed}"
        )

    @property
    def kept(self) -> bool:
        """Whether every promise was kept."""
        return not (self.lost or self.duplicated or self.after_cancel or self.unexpected)


def judge(ledger: Ledger, executions: dict[int, dict[str, float]], wrong: list[str], seed: int) -> Verdict:
    """The verdict on a run that has come to rest.

    Args:
        executions: what the apps signed: number -> token -> time.
        wrong: what looks into Redis found.
    """
    verdict = Verdict(seed)
    for sentence in wrong:
        verdict.unexpected += 1
        verdict.why.append(f"Redis: {sentence}")
    for entry in ledger:
        _judge_entry(verdict, entry, executions.get(entry.number, {}))
    return verdict


def _judge_entry(verdict: Verdict, entry: Entry, executed: dict[str, float]) -> None:
    verdict.attempted += 1
    verdict.acknowledged += entry.acknowledged

    def blame(what: str) -> int:
        verdict.why.append(f"number {entry.number} ({entry.mode}, {entry.fate}, ids {entry.ids}): {what}")
        return 1

    for complaint in entry.complaints:
        verdict.unexpected += blame(complaint)
    if not entry.acknowledged:
        verdict.recovered += bool(executed)
        return
    if not entry.answers:
        verdict.lost += blame("no result")
        return
    if len(entry.answers) > 1:
        verdict.duplicated += blame(f"{len(entry.answers)} different results: {entry.answers}")
    if len(entry.ids) > 1:
        verdict.duplicated += blame("one idempotency key led to several requests")
    status, body = entry.answers[0]
    if entry.cancelled_at is not None:
        if status != 499 or entry.hooks:
            verdict.after_cancel += blame(f"cancelled, then {status} {body[:100]} and {len(entry.hooks)} webhooks")
        return
    trouble = _trouble(entry, status, body, executed)
    if trouble:
        verdict.unexpected += blame(f"{trouble}: {status} {body[:200]}")
    verdict.recovered += status == 200 and (len(executed) > 1 or entry.unanswered > 0)
    if entry.webhook and status != 499:
        if not entry.hooks:
            verdict.unexpected += blame("its webhook never came")
        if any(not _says_the_same(hook, status, body) for hook in entry.hooks):
            verdict.duplicated += blame(f"its webhook tells another result: {entry.hooks}")


def _trouble(entry: Entry, status: int, body: str, executed: dict[str, float]) -> str:
    """Why this result is none that the request may end with, or ''."""
    answer = json.loads(body)
    kind = answer.get("error_type")
    if kind == "poison_request":
        return "" if len(executed) >= CRASHES_OF_POISON else f"poisonous after {len(executed)} executions"
    if entry.mode == "direct" and (kind is not None or status == 503):
        return ""  # never tried again: its runner died, or its own "not now" is the answer
    if status == 499 and kind == "client_cancelled":
        return ""  # a cancel whose answer was lost
    if status != _ENDS.get(entry.fate):
        return "should have ended otherwise"
    token = answer.get("token") if status == 200 else answer.get("detail")
    if status == 200 and (answer["number"] != entry.number or token not in executed):
        return "a result that no execution of it gave"
    if status == 422 and token not in executed:
        return "a refusal that no execution of it gave"
    return ""


def _says_the_same(hook: str, status: int, body: str) -> bool:
    told = json.loads(hook)
    return bool(told["payload"] == json.loads(body) and (told["status"] == "OK") == (status < 400))
