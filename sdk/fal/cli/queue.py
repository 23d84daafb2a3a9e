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
@json_option
def size(app: str, as_json: bool) -> None:
    """Print how many requests of APP wait for a runner."""
    from fal.cli.console import Screen, print_json

    api = control_api()
    answer = api.json("GET", f"/api/v1/queue/{quote(api.app_id(app))}")
    if as_json:
        print_json(answer)
        return
    Screen().exact(str(answer.get("size", answer.get("queue_size", 0))))


@command.command("flush")
@click.argument("app")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@json_option
def flush(app: str, yes: bool, as_json: bool) -> None:
    """Drop every waiting request of APP; running ones are left alone."""
    from fal.cli.console import Screen, print_json

    api = control_api()
    name = api.app_id(app)
    if not yes and sys.stdin.isatty():
        click.confirm(f"Drop all waiting requests of {name}?", abort=True)
    answer = api.json("DELETE", f"/api/v1/queue/{quote(name)}") or {}
    if as_json:
        print_json(answer)
        return
    count = next((value for value in answer.values() if isinstance(value, int)), None)
    Screen().tick(f"Dropped {'all' if count is None else count} waiting request{'s' * (count != 1)} of {name}")
