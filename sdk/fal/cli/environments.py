"""``fal environments``: named environments, each with apps and secrets of its own.

Reads and prints.
"""

from __future__ import annotations

import sys

import click

from fal.cli.options import control_api, json_option


@click.group("environments")
def command() -> None:
    """Keep the apps and secrets of, say, staging apart from those of main.

    An app of another environment than main is called APP--ENVIRONMENT, also in its URL.
    """


@command.command("list")
@json_option
def list_environments(as_json: bool) -> None:
    """List environments."""
    from fal._nouns import Environments
    from fal.cli.console import Screen, print_json, when

    environments = Environments(control_api()).list()
    if as_json:
        print_json(environments)
        return
    rows = [(item.get("name"), when(item.get("created_at")), item.get("description")) for item in environments]
    Screen().table(["Environment", "Created", "Description"], rows)


@command.command("create")
@click.argument("name")
@click.option("--description", default="", help="A note on what it is for.")
@json_option
def create(name: str, description: str, as_json: bool) -> None:
    """Make an environment."""
    from fal._nouns import Environments
    from fal.cli.console import Screen, print_json

    answer = Environments(control_api()).create(name, description)
    if as_json:
        print_json(answer)
        return
    Screen().tick(f"Created {name}. Deploy to it with `fal deploy app.py::MyApp --env {name}`.")


@command.command("delete")
@click.argument("name")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@json_option
def delete(name: str, yes: bool, as_json: bool) -> None:
    """Delete an environment and its secrets. Its apps must be deleted before."""
    from fal._nouns import Environments
    from fal.cli.console import Screen, print_json

    if not yes and sys.stdin.isatty():
        click.confirm(f"Delete the environment {name} with its secrets?", abort=True)
    Environments(control_api()).delete(name)
    if as_json:
        print_json({"deleted": name})
        return
    Screen().tick(f"Deleted {name}")
