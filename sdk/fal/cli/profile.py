"""``fal profile``: servers and keys remembered in ``~/.fal/config.toml``.

Leaves the file to ``fal._config``.
"""

from __future__ import annotations

import sys

import click

from fal._config import Config, server_url
from fal._problem import Problem, closest
from fal.cli.options import json_option


@click.group("profile")
def command() -> None:
    """Remember servers and their keys; FAL_PROFILE chooses one for a single command."""


@command.command("list")
@json_option
def list_profiles(as_json: bool) -> None:
    """List profiles; keys are not shown."""
    from fal.cli.console import Screen, print_json

    config = Config.load()
    rows = [
        {
            "name": name,
            "chosen": name == config.profile,
            "host": config.sections[name].get("host"),
            "has_key": bool(config.sections[name].get("key")),
        }
        for name in config.profiles
    ]
    if as_json:
        print_json(rows)
        return
    Screen().table(
        ["", "Profile", "Host", "Key"],
        [
            ("→" if row["chosen"] else "", row["name"], row["host"] or "not set", "yes" if row["has_key"] else "no")
            for row in rows
        ],
        empty="No profiles. Make one with `fal profile set NAME`.",
    )


@command.command("set")
@click.argument("name")
def choose(name: str) -> None:
    """Use profile NAME from now on; a new one is made."""
    from fal.cli.console import Screen

    config = Config.load()
    new = name not in config.profiles
    config.choose(name)
    config.save()
    Screen().tick(f"Profile {name} is {'new and ' if new else ''}in use.")
    if not config.sections[name].get("host"):
        Screen().note("it has no server yet: `fal profile host http://HOST:PORT`, then `fal profile key`.")


@command.command("create")
@click.argument("name")
def create(name: str) -> None:
    """Make profile NAME, which is not used before `fal profile set NAME`."""
    from fal.cli.console import Screen

    config = Config.load()
    if name in config.profiles:
        raise Problem(f"There is a profile {name!r} already.", next_step=f"use it: `fal profile set {name}`.")
    config.sections[name] = {}
    config.save()
    Screen().tick(f"Profile {name} is there; `fal profile set {name}` uses it.")


@command.command("unset")
def unset() -> None:
    """Use no profile."""
    from fal.cli.console import Screen

    config = Config.load()
    config.choose(None)
    config.save()
    Screen().tick("No profile is in use.")


@command.command("delete")
@click.argument("name")
def delete(name: str) -> None:
    """Forget profile NAME and its key."""
    from fal.cli.console import Screen

    config = Config.load()
    if name not in config.profiles:
        near = closest(name, config.profiles)
        raise Problem(f"There is no profile {name!r}.", next_step=f"did you mean {near!r}?" if near else "")
    if config.profile == name:
        config.choose(None)
    del config.sections[name]
    config.save()
    Screen().tick(f"Profile {name} is forgotten.")


@command.command("host")
@click.argument("host")
def host(host: str) -> None:
    """Set the server of the profile in use, as in http://gpu-box:8787."""
    from fal.cli.console import Screen

    url = server_url(host)
    config = Config.load()
    name = config.set("host", url)
    config.save()
    Screen().tick(f"Profile {name} talks to {url}.")


@command.command("key")
@click.argument("key", required=False)
def key(key: str | None) -> None:
    """Set the key (id:secret) of the profile in use; asked for, or read from stdin, when not given."""
    from fal.cli.console import Screen

    if key is None:
        # As an argument it would stay in the shell's history.
        key = click.prompt("Key (id:secret)", hide_input=True) if sys.stdin.isatty() else sys.stdin.readline()
    key = key.strip().removeprefix("FAL_KEY=").strip("'\"")
    if ":" not in key:
        raise Problem(
            "That is not a key.",
            why="a key has the form id:secret.",
            next_step="paste what `keepwarm keys create` printed.",
        )
    config = Config.load()
    name = config.set("key", key)
    config.save()
    Screen().tick(f"Profile {name} has a key.")
