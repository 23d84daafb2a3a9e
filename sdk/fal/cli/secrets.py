"""``fal secrets``: values that apps find in their environment variables.

What is set is never shown again, by no command.
"""

from __future__ import annotations

import sys

import click

from fal.cli.options import control_api, env_option, json_option


@click.group("secrets")
def command() -> None:
    """Set values that apps find in os.environ: tokens, passwords. Nobody is shown them again.

    An app gets the secrets that its class lists (secrets = ["HF_TOKEN"]), or all when it lists none.
    """


@command.command("set")
@click.argument("pairs", nargs=-1, required=True, metavar="NAME[=VALUE]...")
@click.option("--not-exposed-by-default", is_flag=True, help="Only apps that list it get it.")
@env_option
@json_option
def set_secrets(pairs: tuple[str, ...], not_exposed_by_default: bool, env: str, as_json: bool) -> None:
    """Set secrets, in place of earlier ones. NAME alone asks for the value, or reads it from a pipe.

    \b
      fal secrets set HF_TOKEN=hf_abc
      fal secrets set HF_TOKEN < token.txt     keeps it out of the shell's history
    """
    from fal._nouns import Secrets
    from fal.cli.console import Screen, print_json

    values = _read(pairs)
    Secrets(control_api()).set(values, exposed=not not_exposed_by_default, env=env)
    if as_json:
        print_json({"set": sorted(values), "env": env})
        return
    screen = Screen()
    screen.tick(f"Set {', '.join(values)}")
    screen.line("Runners that are up keep what they started with: `fal apps rollout APP` replaces them.", "dim")


def _read(pairs: tuple[str, ...]) -> dict[str, str]:
    from fal._limits import secret_fault
    from fal._problem import Problem

    values: dict[str, str] = {}
    asked = [pair for pair in pairs if "=" not in pair]
    if len(asked) > 1 and not sys.stdin.isatty():
        raise Problem("A pipe can give one value.", next_step="set the secrets one after the other.")
    for pair in pairs:
        name, given, value = pair.partition("=")
        if not given:
            value = click.prompt(name, hide_input=True) if sys.stdin.isatty() else sys.stdin.read().rstrip("\r\n")
        if (fault := secret_fault(name, value)) is not None:
            raise Problem(f"{fault[0].upper()}{fault[1:]}." if fault.startswith("the ") else f"{fault}.")
        values[name] = value
    return values


@command.command("list")
@env_option
@json_option
def list_secrets(env: str, as_json: bool) -> None:
    """List secrets by name; their values are not shown."""
    from fal._nouns import Secrets
    from fal.cli.console import Screen, print_json, when

    secrets = Secrets(control_api()).list(env)
    if as_json:
        print_json(secrets)
        return
    Screen().table(
        ["Secret", "Set", "For"],
        [
            (item.get("name"), when(item.get("updated_at")), "all apps" if item.get("exposed") else "apps that list it")
            for item in secrets
        ],
        empty="No secrets. Set one with `fal secrets set NAME=VALUE`.",
    )


@command.command("unset")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@env_option
@json_option
def unset(names: tuple[str, ...], env: str, as_json: bool) -> None:
    """Forget secrets. Runners that are up keep them until they are replaced."""
    from fal._nouns import Secrets
    from fal.cli.console import Screen, print_json

    secrets = Secrets(control_api())
    for name in names:
        secrets.unset(name, env)
        if not as_json:
            Screen().tick(f"Unset {name}")
    if as_json:
        print_json({"unset": list(names), "env": env})
