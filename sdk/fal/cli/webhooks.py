"""``fal queue webhooks``: deliveries that were given up; try them again or forget them.

Reads and prints.
"""

from __future__ import annotations

import sys

import click

from fal.cli.choosing import all_option, chosen, limit_option, queue_path
from fal.cli.options import control_api, json_option


@click.group("webhooks")
def command() -> None:
    """Webhooks that were given up: ten tries failed, or none could help. Kept for a week with their result."""


@command.command("list")
@click.argument("app")
@limit_option
@json_option
def list_webhooks(app: str, limit: int, as_json: bool) -> None:
    """List the webhooks of APP that were given up, the newest first."""
    from fal.cli.console import Screen, print_json, when

    api = control_api()
    webhooks = api.items(queue_path(api, app, "webhooks"), params={"limit": limit})
    if as_json:
        print_json(webhooks)
        return
    Screen().table(
        ["Request", "Given up", "Tries", "URL", "Last try"],
        [
            (item.get("request_id"), when(item.get("given_up_at")), item.get("tries"), item.get("url"), item.get("why"))
            for item in webhooks
        ],
        empty="No webhook was given up in the last week.",
    )


@command.command("replay")
@click.argument("app")
@click.argument("request_ids", nargs=-1, metavar="[REQUEST]...")
@all_option
@json_option
def replay(app: str, request_ids: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """Deliver webhooks afresh. A REQUEST that is named may also be one whose webhook was delivered."""
    from fal.cli.console import Screen, print_json

    api = control_api()
    names = chosen(api, app, "webhooks", request_ids, everything)
    for request_id in names:
        api.json("POST", f"{queue_path(api, app, 'webhooks', request_id)}/replay")
        if not as_json:
            Screen().tick(f"The webhook of {request_id} is being delivered")
    if as_json:
        print_json({"replayed": names})
    elif not names:
        Screen().line("Nothing to replay.", "dim")


@command.command("drop")
@click.argument("app")
@click.argument("request_ids", nargs=-1, metavar="[REQUEST]...")
@all_option
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@json_option
def drop(app: str, request_ids: tuple[str, ...], everything: bool, yes: bool, as_json: bool) -> None:
    """Forget webhooks that were given up, or are still being tried."""
    from fal.cli.console import Screen, print_json

    api = control_api()
    names = chosen(api, app, "webhooks", request_ids, everything)
    if everything and names and not yes and sys.stdin.isatty():
        click.confirm(f"Forget all {len(names)} webhooks of {api.app_id(app)} that were given up?", abort=True)
    for request_id in names:
        api.request("DELETE", queue_path(api, app, "webhooks", request_id))
    if as_json:
        print_json({"dropped": names})
    else:
        Screen().tick(f"Forgot {len(names)} webhook{'s' * (len(names) != 1)} of {api.app_id(app)}")
