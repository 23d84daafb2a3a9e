"""The retry table: what follows from each way in which an attempt can end."""

from __future__ import annotations

import json

import pytest

from gpu_worker.outcomes import judge, retry_delay_ms, runner_disconnected
from scheduler.store.retry_rules import RetryRules

ANYTHING = RetryRules()


@pytest.mark.parametrize(
    ("status", "retry", "stop"),
    [
        (200, False, "no"),
        (404, False, "no"),
        (422, False, "no"),
        (500, False, "no"),
        (502, False, "no"),
        (503, True, "kill"),
        (504, True, "no"),
        (429, False, "no"),
    ],
)
def test_what_a_plain_status_means(status: int, retry: bool, stop: str) -> None:
    verdict = judge(status, [], b"", ANYTHING)

    assert (verdict.retry, verdict.stop) == (retry, stop)


@pytest.mark.parametrize(
    ("status", "header", "retry", "stop"),
    [
        (500, (b"x-fal-needs-retry", b"1"), True, "no"),
        (429, (b"X-Fal-Needs-Retry", b"true"), True, "no"),
        (503, (b"x-fal-needs-retry", b"0"), False, "kill"),
        (200, (b"x-fal-needs-retry", b"1"), False, "no"),
        (503, (b"x-fal-stop-runner", b"false"), True, "no"),
        (200, (b"x-fal-stop-runner", b"true"), False, "drain"),
        (503, (b"x-fal-stop-runner", b"true"), True, "kill"),
    ],
)
def test_the_app_decides_apart_about_retry_and_runner(
    status: int, header: tuple[bytes, bytes], retry: bool, stop: str
) -> None:
    verdict = judge(status, [header], b"", ANYTHING)

    assert (verdict.retry, verdict.stop) == (retry, stop)


def test_instructions_for_the_platform_do_not_reach_the_caller() -> None:
    headers = [(b"X-Fal-Stop-Runner", b"1"), (b"x-fal-needs-retry", b"1"), (b"Content-Type", b"text/plain")]

    assert judge(200, headers, b"", ANYTHING).outcome.headers == (("content-type", "text/plain"),)
    assert judge(500, headers, b"", ANYTHING).outcome.headers[0] == ("x-fal-needs-retry", "1")


def test_an_app_may_skip_or_count_retries() -> None:
    assert not judge(503, [], b"", RetryRules(frozenset({"server_error"}))).retry
    verdict = judge(503, [], b"", RetryRules(budgets={"server_error": 2}))
    assert (verdict.retry, verdict.budget) == (True, 2)


def test_a_time_out_is_retried_only_on_request() -> None:
    assert ANYTHING.budget("timeout") == 0
    assert ANYTHING.budget("connection_error") is None
    assert RetryRules(budgets={"timeout": 1}).budget("timeout") == 1
    assert RetryRules(frozenset({"timeout"}), {"timeout": 1}).budget("timeout") == 0


def test_the_callers_wish_is_stronger_than_the_apps_and_the_answers_own_word_than_both() -> None:
    never = RetryRules(frozenset({"server_error", "timeout"}))
    wish = {"server_error": 3}
    assert never.budget("server_error", wish) == 3
    assert never.budget("timeout", wish) == 0
    assert not judge(503, [], b"", ANYTHING, call={"server_error": 0}).retry
    asked = judge(500, [(b"x-fal-needs-retry", b"1")], b"", never, call={"server_error": 0})
    assert (asked.retry, asked.budget) == (True, None)


@pytest.mark.parametrize(
    ("fault", "status", "header", "retry", "stop", "budget"),
    [
        ("sticky", 500, None, True, "kill", None),
        ("sticky", 200, None, False, "kill", None),
        ("sticky", 404, None, False, "kill", None),
        ("sticky", 500, (b"x-fal-needs-retry", b"0"), False, "kill", None),
        ("sticky", 500, (b"x-fal-stop-runner", b"false"), True, "kill", None),
        ("broken_card", 503, None, True, "kill", None),
        ("out_of_memory", 503, None, True, "kill", 1),
        ("out_of_memory", 503, (b"x-fal-stop-runner", b"false"), True, "no", 1),
        ("out_of_memory", 503, (b"x-fal-needs-retry", b"1"), True, "kill", None),
    ],
)
def test_what_a_failed_gpu_means(
    fault: str, status: int, header: tuple[bytes, bytes] | None, retry: bool, stop: str, budget: int | None
) -> None:
    verdict = judge(status, [header] if header else [], b"", ANYTHING, fault=fault)

    assert (verdict.retry, verdict.stop, verdict.budget) == (retry, stop, budget)


def test_whoever_wants_no_retry_of_server_errors_gets_none_after_a_failed_gpu() -> None:
    for fault in ("sticky", "out_of_memory"):
        assert not judge(500, [], b"", ANYTHING, call={"server_error": 0}, fault=fault).retry


def test_back_off_doubles_and_is_bounded() -> None:
    assert 250 <= retry_delay_ms(1) <= 750
    assert 1000 <= retry_delay_ms(3) <= 3000
    assert retry_delay_ms(10) <= 45_000


def test_the_platforms_own_errors_say_what_they_are() -> None:
    outcome = runner_disconnected("signal SIGKILL")

    assert (outcome.status, outcome.error_type) == (503, "runner_disconnected")
    assert ("x-fal-error-type", "runner_disconnected") in outcome.headers
    assert json.loads(outcome.body) == {
        "detail": "The runner ended before it answered: signal SIGKILL.",
        "error_type": "runner_disconnected",
    }
