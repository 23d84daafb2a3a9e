"""Secrets and named environments as users see them: ``fal secrets``, ``fal environments``, and the control API."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.commands import fal
from tests.gateway.platform import RunningGateway

VALUE = "hf_0123456789abcdef"


def listed(gateway: RunningGateway, *arguments: str) -> list[str]:
    return [item["name"] for item in json.loads(fal(gateway, "secrets", "list", "--json", *arguments).stdout)]


def test_set_list_and_unset(gateway: RunningGateway) -> None:
    done = fal(gateway, "secrets", "set", f"HF_TOKEN={VALUE}", "OTHER=a=b")
    assert b"fal apps rollout" in done.stdout
    fal(gateway, "secrets", "set", "RARE=x", "--not-exposed-by-default")
    shown = fal(gateway, "secrets", "list").stdout.decode()
    assert all(part in shown for part in ("HF_TOKEN", "all apps", "RARE", "apps that list it"))
    everything = shown + fal(gateway, "secrets", "list", "--json").stdout.decode() + done.stdout.decode()
    assert VALUE not in everything
    assert gateway.call(gateway.store.secrets.values("tester", "main", None)) == {"HF_TOKEN": VALUE, "OTHER": "a=b"}
    fal(gateway, "secrets", "unset", "HF_TOKEN", "OTHER", "RARE")
    assert listed(gateway) == []
    assert b"No secrets" in fal(gateway, "secrets", "list").stdout
    assert b'no secret "HF_TOKEN"' in fal(gateway, "secrets", "unset", "HF_TOKEN", code=1).stderr


def test_a_value_from_a_pipe_stays_out_of_the_history(gateway: RunningGateway) -> None:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("KEEPWARM_", "FAL_"))}
    subprocess.run(
        [Path(sys.executable).parent / "fal", "secrets", "set", "PIPED"],
        env=kept | {"KEEPWARM_URL": gateway.url, "FAL_KEY": gateway.key, "HOME": str(gateway.settings.data_dir)},
        input=f"{VALUE}\n".encode(),
        timeout=60,
        check=True,
    )
    assert gateway.call(gateway.store.secrets.values("tester", "main", ["PIPED"])) == {"PIPED": VALUE}
    fal(gateway, "secrets", "unset", "PIPED")


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        ("NO NAME=x", "letters, digits and _"),
        ("PATH=x", "a variable of the platform's own"),
        ("LD_PRELOAD=x", "a variable of the platform's own"),
        ("FAL_REVISION=x", "a variable of the platform's own"),
        ("EMPTY=", "fal secrets unset EMPTY"),
        (f"LONG={'x' * 70_000}", "at most 65536 fit"),
    ],
)
def test_what_cannot_be_a_secret(gateway: RunningGateway, pair: str, says: str) -> None:
    name, _, value = pair.partition("=")
    assert says in fal(gateway, "secrets", "set", pair, code=1).stderr.decode()
    with gateway.owner_client() as client:
        refused = client.post("/api/v1/secrets", json={"values": {name: value}})
    assert refused.status_code == 400
    assert says in refused.json()["detail"]
    assert listed(gateway) == []


def test_secrets_need_a_key_and_end_somewhere(gateway: RunningGateway) -> None:
    with gateway.client() as stranger, gateway.owner_client() as client:
        for method, path in (("GET", ""), ("POST", ""), ("DELETE", "/HF_TOKEN")):
            assert stranger.request(method, f"/api/v1/secrets{path}").status_code == 401
        many = {f"NAME_{n}": "x" for n in range(201)}
        assert "there may be 200" in client.post("/api/v1/secrets", json={"values": many}).json()["detail"]
        bodies: list[dict[str, Any]] = [{}, {"values": {}}, {"values": []}, {"values": {"A": "b"}, "exposed": "yes"}]
        for body in bodies:
            assert client.post("/api/v1/secrets", json=body).status_code == 400


def test_environments_keep_secrets_apart(gateway: RunningGateway) -> None:
    assert b"--env staging" in fal(gateway, "environments", "create", "staging", "--description", "try it").stdout
    assert b"try it" in fal(gateway, "environments", "list").stdout
    assert [e["name"] for e in json.loads(fal(gateway, "environments", "list", "--json").stdout)] == ["main", "staging"]
    fal(gateway, "secrets", "set", "ONE=1", "--env", "staging")
    assert (listed(gateway), listed(gateway, "--env", "staging")) == ([], ["ONE"])
    refused = fal(gateway, "secrets", "list", "--env", "stagin", code=1).stderr.decode()
    assert all(part in refused for part in ('no environment "stagin"', "main, staging", "fal environments create"))
    assert b"already" in fal(gateway, "environments", "create", "staging", code=1).stderr
    app = gateway.app("shop--staging")
    assert b"shop--staging" in fal(gateway, "environments", "delete", "staging", code=1).stderr
    gateway.call(gateway.store.apps.delete(app))
    fal(gateway, "environments", "delete", "staging")
    fal(gateway, "environments", "create", "staging")
    assert listed(gateway, "--env", "staging") == []
    fal(gateway, "environments", "delete", "staging")


@pytest.mark.parametrize("name", ["main", "Big", "a--b", "-a", "x" * 25, ""])
def test_names_that_no_environment_can_have(gateway: RunningGateway, name: str) -> None:
    with gateway.owner_client() as client:
        refused = client.post("/api/v1/environments", json={"name": name})
    assert refused.status_code == 400
    assert "environment" in refused.json()["detail"]


def test_an_environment_does_not_take_an_app_over(gateway: RunningGateway) -> None:
    app = gateway.app("two--parts")
    assert app.encode() in fal(gateway, "environments", "create", "parts", code=1).stderr
