"""The control API's document: complete, served, true of what a running gateway answers to whatever fits it or not."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi import checks

from gateway.openapi import PATH, PREFIX
from tests.gateway.conformance import Conformance
from tests.gateway.platform import OWNER, RunningGateway

#: The same calls in every run; another number makes others.
SEED = int(os.environ.get("KEEPWARM_FUZZ_SEED", "20260807"))
EXAMPLES = int(os.environ.get("KEEPWARM_FUZZ_EXAMPLES", "12"))
CONFORMANCE = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.ignored_auth,
    checks.unsupported_method,
]
METHODS = ("get", "put", "post", "delete", "patch")


@pytest.fixture(scope="module")
def served(gateway: RunningGateway) -> dict[str, Any]:
    """The document as anybody gets it."""
    with gateway.client() as client:
        found: dict[str, Any] = client.get(PATH).raise_for_status().json()
    return found


def operations(served: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in served["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def test_every_control_route_is_in_the_document_and_nothing_else(
    gateway: RunningGateway, served: dict[str, Any]
) -> None:
    routes = {
        (route.path, method.lower())
        for route in gateway.gateway.routes
        if route.path.startswith(PREFIX)
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert {(path, method) for path, method, _ in operations(served)} == routes
    assert len(routes) > 25


def test_the_document_is_complete(served: dict[str, Any]) -> None:
    """Each operation has words, a name of its own, all parts of its path, a success, refusals and who may call it."""
    ids = [operation["operationId"] for _, _, operation in operations(served)]
    assert len(ids) == len(set(ids))
    for path, method, operation in operations(served):
        where = f"{method} {path}"
        assert operation["summary"], where
        in_path = {p["name"] for p in operation["parameters"] if p["in"] == "path"}
        assert in_path == {part[1:-1] for part in path.split("/") if part.startswith("{")}, where
        assert all(p["description"] for p in operation["parameters"]), where
        assert any(status.startswith("2") for status in operation["responses"]), where
        assert {"400", "503"} <= operation["responses"].keys(), where
        assert ("401" in operation["responses"]) == ("security" not in operation), where
        assert ("requestBody" in operation) == (method in ("put", "post", "patch") and "replay" not in path), where
    open_to_all = [path for path, _, operation in operations(served) if operation.get("security") == []]
    assert open_to_all == [PATH]
    for schema in served["components"]["schemas"].values():
        jsonschema_rs.meta.validate(schema)
        assert schema.get("description") or "enum" in schema, schema


def test_settings_have_the_bounds_that_are_checked(gateway: RunningGateway, served: dict[str, Any]) -> None:
    """What the document calls the most passes and one more does not."""
    app = gateway.app()
    scaling = served["paths"]["/api/v1/apps/{owner}/{app}/scaling"]["patch"]["requestBody"]["content"]
    bounds = scaling["application/json"]["schema"]["properties"]
    with gateway.owner_client() as client:
        for name in ("keep_alive", "max_concurrency", "concurrency_buffer"):
            assert "default" not in bounds[name]
            for value, status in ((bounds[name]["maximum"], 200), (bounds[name]["maximum"] + 1, 400)):
                answer = client.patch(f"/api/v1/apps/{app}/scaling", json={name: value})
                assert answer.status_code == status, (name, value, answer.text)


def test_an_answer_with_a_field_too_many_is_noticed(served: dict[str, Any]) -> None:
    """What all tests of the control API rely on."""
    request = httpx.Request("GET", "http://here/api/v1/whoami")
    whole = {"owner": "a", "key_id": "b", "scope": "FULL"}
    for body, fits in ((whole, True), ({"owner": "a"}, False), ({"owner": 1, "x": 2}, False)):
        answer = httpx.Response(200, json=body, headers={"x-fal-request-id": "r"}, request=request)
        if fits:
            Conformance(served).check(answer)
        else:
            with pytest.raises(AssertionError, match="GET /api/v1/whoami answered 200"):
                Conformance(served).check(answer)


def aims(gateway: RunningGateway) -> dict[str, str]:
    """Parts of paths that lead to something: an app of its own with a revision, a key, a file."""
    owner, app = gateway.app().split("/")
    record = gateway.call(gateway.store.apps.get(f"{owner}/{app}"))
    assert record is not None
    assert record.revision is not None
    key, _ = gateway.call(gateway.store.keys.create(OWNER, "fuzzed"))
    sha256 = hashlib.sha256(b"").hexdigest()
    return {"owner": owner, "app": app, "revision": record.revision, "key_id": key.key_id, "sha256": sha256}


def fuzz(gateway: RunningGateway, operation: Any, mode: GenerationMode) -> int:
    """Calls one operation with generated parameters and bodies; returns how many of the calls worked."""
    worked = 0
    there = aims(gateway)
    auth = {"authorization": f"Key {gateway.key}"}

    @seed(SEED)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), aimed=st.sampled_from([True, True, False]))
    def call(case: Case[Any], aimed: bool) -> None:
        nonlocal worked
        if aimed:
            case.path_parameters = {**case.path_parameters, **{k: there[k] for k in case.path_parameters if k in there}}
        # a log that is followed does not end; tests/gateway/test_control.py follows some
        case.query = {name: value for name, value in case.query.items() if name != "follow"}
        answer = case.call(base_url=gateway.url, headers=auth, timeout=10)
        case.validate_response(answer, checks=CONFORMANCE, headers=auth)
        worked += answer.status_code < 300

    call()
    return worked


def negatable(operation: dict[str, Any]) -> bool:
    """Whether anything of it could be sent wrongly: any text is a part of a path."""
    return "requestBody" in operation or any(p["in"] == "query" for p in operation["parameters"])


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["fitting", "unfitting"])
def test_whatever_is_sent_the_answer_is_in_the_document(
    gateway: RunningGateway, served: dict[str, Any], mode: GenerationMode
) -> None:
    print(f"KEEPWARM_FUZZ_SEED={SEED} KEEPWARM_FUZZ_EXAMPLES={EXAMPLES}")
    schema = schemathesis.openapi.from_dict(served)
    worked = {}
    for found in schema.get_all_operations():
        assert isinstance(found, Ok), found
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and not negatable(operation.definition.raw):
            continue
        worked[operation.label] = fuzz(gateway, operation, mode)
    with gateway.client() as client:
        assert client.get("/health").status_code == 200
    if mode is GenerationMode.POSITIVE:
        print(worked)
        assert sum(count > 0 for count in worked.values()) > len(worked) / 2, worked
