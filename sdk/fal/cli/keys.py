"""``fal keys``: API keys on the server.

A secret is printed once, when it is made.
"""

from __future__ import annotations

from urllib.parse import quote

import click

from fal.cli.options import control_api, ignored_options, items_of, json_option


@click.group("keys")
def command() -> None:
    """Make and take back API keys."""


@command.command("create")
@click.option("--name", "--desc", "name", default="", help="A note to yourself: who or what the key is for.")
@json_option
@ignored_options("--scope")
def create(name: str, as_json: bool) -> None:
    """Make a key and print it; it is shown this once."""
    from fal.cli.console import Screen, print_json

    answer = control_api().json("POST", "/api/v1/keys", json={"name": name})
    key = answer.get("key") or f"{answer.get('key_id')}:{answer.get('secret')}"
    if as_json:
        print_json({**answer, "key": key})
        return
    screen = Screen()
    screen.line("Key created. Keep it now; it is not shown again.")
    screen.exact(f"FAL_KEY='{key}'")


@command.command("list")
@json_option
def list_keys(as_json: bool) -> None:
    """List keys, without their secrets."""
    from fal.cli.console import Screen, print_json, when

    keys = items_of(control_api().json("GET", "/api/v1/keys"))
    if as_json:
        print_json(keys)
        return
    Screen().table(
        ["Key", "Name", "Created", ""],
        [
            (
                key.get("key_id"),
                key.get("name"),
                when(key.get("created_at")),
                "revoked" if key.get("revoked") else "",
            )
            for key in keys
        ],
        empty="No keys.",
    )


@command.command("revoke")
@click.argument("key_id")
@json_option
def revoke(key_id: str, as_json: bool) -> None:
    """Take a key back; calls with it are refused from now on."""
    from fal.cli.console import Screen, print_json

    # A whole key pasted here must not end up in a URL, and thereby in logs.
    name = key_id.partition(":")[0]
    control_api().request("DELETE", f"/api/v1/keys/{quote(name, safe='')}")
    if as_json:
        print_json({"revoked": name})
        return
    Screen().tick(f"Revoked {name}")
