"""``fal queue``: how many requests wait for an app, dropping them, and what became of those that were given up.

Reads and prints.
"""

from __future__ import annotations

import sys
from urllib.parse import quote

import click

from fal.cli import letters, webhooks
from fal.cli.options import control_api, json_option


@click.group("queue")
def command() -> None:
    """Count waiting requests, drop them, or see which were given up."""


command.add_command(letters.command)
command.add_command(webhooks.command)


@command.command("size")
@click.argument("app")
@click.option("--by-user", is_flag=True, help="Count them by the owner of their caller's key.")
@json_option
def size(app: str, by_user: bool, as_json: bool) -> None:
    """Print how many requests of APP wait for a runner."""
    from fal.cli.console import Screen, print_json

    api = control_api()
    answer = api.json("GET", f"/api/v1/queue/{quote(api.app_id(app))}", params={"by_user": "true"} if by_user else None)
    if as_json:
        print_json(answer)
        return
    if by_user:
        Screen().table(("USER", "WAITING"), answer["by_user"].items(), empty="No request waits.")
        return
    Screen().exact(str(answer["size"]))


@command.command("flush")
@click.argument("app")
@click.option("--caller-user-id", metavar="OWNER", help="Only those whose caller's key is this owner's.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@json_option
def flush(app: str, caller_user_id: str | None, yes: bool, as_json: bool) -> None:
    """Drop every waiting request of APP; running ones are left alone."""
    from fal.cli.console import Screen, print_json

    api = control_api()
    name = api.app_id(app)
    if not yes and sys.stdin.isatty():
        whose = "" if caller_user_id is None else f" by {caller_user_id}"
        click.confirm(f"Drop all waiting requests of {name}{whose}?", abort=True)
    params = None if caller_user_id is None else {"caller_user_id": caller_user_id}
    answer = api.json("DELETE", f"/api/v1/queue/{quote(name)}", params=params)
    if as_json:
        print_json(answer)
        return
    count = answer["flushed"]
    Screen().tick(f"Dropped {count} waiting request{'s' * (count != 1)} of {name}")
