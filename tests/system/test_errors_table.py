"""What an app raises, as its caller sees it through the platform; `rows.py` says which test is whose."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.support.platform import PlatformUnderTest
from tests.support.waiting import wait_until

APPS = "tests/system/apps/errors.py"
UNITS = "x-fal-billable-units"


@pytest.fixture(scope="module")
def errors(platform: PlatformUnderTest) -> str:
    return platform.deploy(APPS, "Errors")


def post(url: str, **body: Any) -> httpx.Response:
    return httpx.post(url, json=body, trust_env=False, timeout=60)


def test_a_body_that_fails_validation(errors: str) -> None:
    answer = post(errors, number="many")
    (detail,) = answer.json()["detail"]
    assert (answer.status_code, answer.headers[UNITS]) == (422, "0")
    assert (detail["loc"], detail["type"], detail["input"]) == (["body", "number"], "int_parsing", "many")


@pytest.mark.parametrize(
    ("path", "status", "kind", "units"),
    [
        ("/field", 422, "value_error", None),
        ("/field/billed", 400, "odd", "1.50000000"),
        ("/field/whole", 422, "value_error", "42"),
    ],
)
def test_field_exception(errors: str, path: str, status: int, kind: str, units: str | None) -> None:
    answer = post(f"{errors}{path}")
    assert answer.status_code == status
    assert answer.json() == {"detail": [{"loc": ["body", "number"], "msg": "too odd", "type": kind}]}
    assert answer.headers.get(UNITS) == units


@pytest.mark.parametrize(
    ("path", "status", "detail", "units"),
    [
        ("/app", 418, "short and stout", None),
        ("/cancelled", 499, "stopped", None),
        ("/http", 404, "no such cat", "0"),
        ("/nowhere", 404, "Path /nowhere not found", "0"),
        ("/field/wrong", 500, "Internal Server Error", None),
        ("/output", 500, "Internal Server Error", None),
        ("/boom", 500, "Internal Server Error", None),
    ],
)
def test_answers_with_a_detail(errors: str, path: str, status: int, detail: str, units: str | None) -> None:
    answer = post(f"{errors}{path}")
    assert (answer.status_code, answer.json(), answer.headers.get(UNITS)) == (status, {"detail": detail}, units)


def test_an_unexpected_error_stands_in_the_log(platform: PlatformUnderTest, errors: str) -> None:
    post(f"{errors}/boom")
    wait_until(lambda: "a secret of the app" in platform.fal("logs", "errors").stdout, "the traceback in the log")


@pytest.mark.parametrize(
    ("path", "detail"),
    [
        ("/gpu", "GPU error"),
        ("/oom", "CUDA error: out of memory"),
        ("/oom/text", "CUDA error: out of memory"),
        ("/gpu/text", "GPU error"),
        ("/gpu/caught", "GPU error"),
    ],
)
def test_a_gpu_failure_is_a_503_that_replaces_the_runner(errors: str, path: str, detail: str) -> None:
    before = post(errors).json()["pid"]
    answer = post(f"{errors}{path}")
    assert (answer.status_code, answer.json()) == (503, {"detail": detail})
    assert post(errors).json()["pid"] != before
