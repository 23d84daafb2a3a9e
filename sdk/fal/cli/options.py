"""Options that several commands share, and those that exist for scripts written for fal's own command."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Machine-readable output on stdout.")
env_option = click.option(
    "--env", default="main", show_default=True, metavar="NAME", help="The environment (`fal environments`)."
)

env_of_option = click.option("--env", default=None, metavar="NAME", help="Only those of that environment.")
strategy_option = click.option(
    "--strategy",
    type=click.Choice(["rolling", "recreate"]),
    default="rolling",
    show_default=True,
    help="rolling: old runners serve until new ones are ready; recreate: they leave first.",
)


def ignored_options(*names: str, flags: tuple[str, ...] = ()) -> Callable[[Any], Any]:
    """Accept options that steer machinery which this platform does not have; using one is said, not refused."""

    def say(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value not in (None, False) and not ctx.resilient_parsing:
            click.echo(f"Note: {parameter.opts[0]} has no meaning here and is ignored.", err=True)

    def decorate(function: Any) -> Any:
        for name in reversed(names):
            function = click.option(name, hidden=True, expose_value=False, callback=say)(function)
        for name in reversed(flags):
            function = click.option(name, is_flag=True, hidden=True, expose_value=False, callback=say)(function)
        return function

    return decorate


def control_api() -> Any:
    """A client for the configured server, else for the platform running on this machine.

    Raises:
        Problem: there is neither.
    """
    from fal._platform import find_server
    from fal._server import ControlApi

    return ControlApi(find_server())
