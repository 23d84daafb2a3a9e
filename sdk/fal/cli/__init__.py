"""The ``fal`` command: the app developer's. Names every command and imports one only when it is called.

Leaves what a command does to the module of its name, and how things look to ``fal.cli.console``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from typing import Any

import click

from fal._problem import Problem

#: command -> (module, one line of help), by section of the help page. Kept here so that help imports nothing.
SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Build": {
        "create": ("create", "Begin an app: a file that runs, to change."),
        "run": ("run", "Try an app: a public URL for as long as the command runs."),
        "deploy": ("deploy", "Give an app a stable URL."),
    },
    "Look after": {
        "apps": ("apps", "List, show, scale, roll back and delete apps."),
        "runners": ("runners", "See the workers of an app and their logs."),
        "logs": ("logs", "Show an app's log, and follow it."),
        "queue": ("queue", "Count waiting requests, drop them, see which were given up."),
        "files": ("files", "List, fetch and put what apps see in /data."),
        "api": ("api", "Call an app through its queue."),
    },
    "Settings": {
        "secrets": ("secrets", "Set values that apps find in their environment variables."),
        "environments": ("environments", "Keep apps and secrets of, say, staging apart."),
        "keys": ("keys", "Make and take back API keys."),
        "profile": ("profile", "Remember servers and their keys."),
        "doctor": ("doctor", "Check this machine and the way to the server."),
        "completion": ("completion", "Print tab completion for your shell."),
    },
}
#: Other names of commands, which help does not list.
_ALIASES = {"envs": "environments", "env": "environments", "key": "keys", "profiles": "profile"}
#: Commands of fal's own that there is nothing here for, and what to do instead.
_NOT_HERE = {
    "auth": "keys are enough: set FAL_KEY, or `fal profile key`; `fal doctor` says whose it is.",
    "account": "an owner's key is the account: `fal profile` keeps several.",
    "team": "there are no teams; give each owner keys with `keepwarm keys create --owner NAME`.",
    "teams": "there are no teams; give each owner keys with `keepwarm keys create --owner NAME`.",
}
_COMMANDS = {name: entry for section in SECTIONS.values() for name, entry in section.items()}


class LazyGroup(click.Group):
    """The commands of SECTIONS, each module imported on use; a Problem ends the command with its message."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        cmd_name = _ALIASES.get(cmd_name, cmd_name)
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = import_module(f"fal.cli.{_COMMANDS[cmd_name][0]}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in {*_COMMANDS, *_ALIASES} and not args[0].startswith("-"):
            from fal._problem import closest

            if args[0] in _NOT_HERE:
                ctx.fail(f"there is no `fal {args[0]}` here: {_NOT_HERE[args[0]]}")
            near = "run" if args[0].partition("::")[0].endswith(".py") else closest(args[0], _COMMANDS)
            ctx.fail(f"there is no command {args[0]!r}" + (f"; did you mean `fal {near}`?" if near else "."))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section, commands in SECTIONS.items():
            with formatter.section(section):
                formatter.write_dl([(name, text) for name, (_, text) in commands.items()])

    def invoke(self, ctx: click.Context) -> Any:
        with _profile() if ctx.params.get("cprofile") else nullcontext():
            try:
                return super().invoke(ctx)
            except Problem as problem:
                _look_into(problem, ctx)
                if ctx.params.get("debug"):
                    raise
                from fal.cli.console import show_problem

                show_problem(problem)
                ctx.exit(problem.exit_code)
            except KeyboardInterrupt:
                ctx.exit(130)
            except (click.ClickException, click.Abort, click.exceptions.Exit):
                raise
            except Exception as error:
                _look_into(error, ctx)
                raise


def _look_into(error: Exception, ctx: click.Context) -> None:
    if ctx.params.get("pdb"):
        import pdb

        pdb.post_mortem(error.__traceback__)


@contextmanager
def _profile() -> Iterator[None]:
    """Shows on stderr in what the command's time went."""
    import cProfile
    import pstats

    profile = cProfile.Profile()
    profile.enable()
    try:
        yield
    finally:
        profile.disable()
        pstats.Stats(profile, stream=sys.stderr).sort_stats("cumulative").print_stats(30)


def _version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from fal import __version__

        click.echo(f"fal {__version__} (Keepwarm)")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with:  fal run app.py::MyApp    then:  fal deploy app.py::MyApp",
)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show the version and exit."
)
@click.option("--debug", is_flag=True, help="Show the whole traceback of an error.")
@click.option("--pdb", is_flag=True, help="Look into an error with Python's debugger.")
@click.option("--cprofile", is_flag=True, help="Show in what the command's time goes.")
def cli(debug: bool, pdb: bool, cprofile: bool) -> None:
    """Run private AI models on your own GPUs: write one Python class, get a URL.

    \b
    The server is KEEPWARM_URL (with FAL_KEY), else the chosen profile of ~/.fal/config.toml, else the
    platform running on this machine. `fal run` starts one for itself when there is none.
    """


def main() -> None:
    """Entry point of the ``fal`` command."""
    for stream in (sys.stdout, sys.stderr):
        # Line by line, also into a pipe: whoever waits for the URL must see it when it is printed.
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(line_buffering=True, errors="replace")
    cli(prog_name="fal")
