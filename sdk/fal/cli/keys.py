"""``fal keys``: API keys on the server.

A secret is printed once, when it is made.
"""

from __future__ import annotations

import click

from fal.cli.options import control_api, json_option


@click.group("keys")
def command() -> None:
    """Make and take back API keys."""


@command.command("create")
@click.option("--name", "--desc", "name", default="", help="A note to yourself: who or what the key is for.")
@click.option(
    "--scope",
    "--preset",
    "scope",
    default="FULL",
    show_default=True,
    metavar="SCOPE",
    help="FULL; API: call apps; DEPLOY: deploy and look after them; READONLY: look.",
)
@json_option
def create(name: str, scope: str, as_json: bool) -> None:
    """Make a key and print it; it is shown this once."""
    from fal._nouns import Keys, key_scope
    from fal.cli.console import Screen, print_json

    answer = Keys(control_api()).create(name, key_scope(scope))
    if as_json:
        print_json(answer)
        return
    screen = Screen()
    screen.line("Key created. Keep it now; it is not shown again.")
    screen.exact(f"FAL_KEY='{answer['key']}'")


@command.command("list")
@json_option
def list_keys(as_json: bool) -> None:
    """List keys, without their secrets."""
    from fal._nouns import Keys
    from fal.cli.console import Screen, print_json, when

    keys = Keys(control_api()).list()
    if as_json:
        print_json(keys)
        return
    Screen().table(
        ["Key", "Scope", "Name", "Created", ""],
        [
            (
                key.get("key_id"),
                key.get("scope"),
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
    from fal._nouns import Keys
    from fal.cli.console import Screen, print_json

    name = Keys(control_api()).revoke(key_id)
    if as_json:
        print_json({"revoked": name})
        return
    Screen().tick(f"Revoked {name}")
