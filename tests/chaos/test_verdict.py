"""The verdict bites: each broken promise is counted where it belongs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.chaos.ledger import Answer, Entry, Ledger, Mode, read_journal
from tests.chaos.verdict import Verdict, judge

TOKEN = "a" * 32
GOOD: Answer = (200, json.dumps({"number": 0, "token": TOKEN}))
CANCELLED: Answer = (499, json.dumps({"detail": "", "error_type": "client_cancelled"}))
POISON: Answer = (500, json.dumps({"detail": "", "error_type": "poison_request"}))


def hook(answer: Answer) -> str:
    status, body = answer
    return json.dumps({"status": "OK" if status < 400 else "ERROR", "payload": json.loads(body)})


def verdict(
    folder: Path,
    *answers: Answer,
    mode: Mode = "queued",
    ids: tuple[str, ...] = ("q1",),
    hooks: tuple[str, ...] = (),
    executions: int = 1,
    cancelled: bool = False,
    webhook: bool = False,
    wrong: tuple[str, ...] = (),
) -> Verdict:
    ledger = Ledger(folder / "ledger")
    entry = Entry(0, "/tester/alone", mode, "answer", webhook)
    ledger.attempted(entry)
    for request_id in ids:
        ledger.acknowledged(entry, request_id)
    for status, body in answers:
        ledger.saw(entry, status, body)
    if cancelled:
        ledger.cancelled(entry)
    for body in hooks:
        ledger.hooked("q1", body)
    executed = {TOKEN if n == 0 else f"{n:032}": 0.0 for n in range(executions)}
    return judge(ledger, {0: executed}, list(wrong), 7)


def test_a_kept_promise(tmp_path: Path) -> None:
    found = verdict(tmp_path, GOOD, GOOD, hooks=(hook(GOOD), hook(GOOD)), webhook=True)
    assert found.kept, found.why
    assert str(found) == (
        "attempted 1 acknowledged 1 lost 0 duplicated-results 0 result-after-cancel 0 unexpected 0 recovered 0 seed 7"
    )
    assert verdict(tmp_path, CANCELLED, cancelled=True, webhook=True).kept
    assert verdict(tmp_path, POISON, executions=3).kept
    assert verdict(tmp_path, GOOD, executions=2).recovered == 1
    assert verdict(tmp_path, ids=()).acknowledged == 0


@pytest.mark.parametrize(
    ("counted", "found"),
    [
        ("lost", {"answers": ()}),
        ("duplicated", {"answers": (GOOD, (200, '{"number": 0, "token": "other"}'))}),
        ("duplicated", {"answers": (GOOD,), "ids": ("q1", "q2")}),
        ("duplicated", {"answers": (GOOD,), "webhook": True, "hooks": (hook(GOOD), hook((200, "{}")))}),
        ("after_cancel", {"answers": (GOOD,), "cancelled": True}),
        ("after_cancel", {"answers": (CANCELLED,), "cancelled": True, "hooks": (hook(GOOD),)}),
        ("unexpected", {"answers": (GOOD,), "executions": 0}),
        ("unexpected", {"answers": ((200, json.dumps({"number": 5, "token": TOKEN})),)}),
        ("unexpected", {"answers": (POISON,), "executions": 2}),
        ("unexpected", {"answers": ((503, '{"error_type": "runner_disconnected"}'),)}),
        ("unexpected", {"answers": (GOOD,), "webhook": True}),
        ("unexpected", {"answers": (GOOD,), "wrong": ("q1 runs without a lease",)}),
    ],
)
def test_a_broken_promise(tmp_path: Path, counted: str, found: dict[str, object]) -> None:
    answers: tuple[Answer, ...] = found.pop("answers")  # type: ignore[assignment]
    judged = verdict(tmp_path, *answers, **found)  # type: ignore[arg-type]
    assert getattr(judged, counted) == 1, judged.why
    assert not judged.kept


def test_the_journal_is_read_as_the_apps_write_it(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    assert read_journal(journal) == {}
    journal.write_text("3 abc 1.5\n3 def 2.5\n4 ghi 3.0\n")
    assert read_journal(journal) == {3: {"abc": 1.5, "def": 2.5}, 4: {"ghi": 3.0}}
