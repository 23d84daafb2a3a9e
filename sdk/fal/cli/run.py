"""``fal run``: an app with a public URL for as long as the command runs.

Owns the order of things and the clean end. Leaves reading the app to ``fal._loading``, the server and
the session to ``fal._ephemeral``.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, get_args

import click

from fal._spec import Auth
from fal.cli.options import env_option, ignored_options

if TYPE_CHECKING:
    from fal._ephemeral import Platform

#: Given the app, its delivery and the screen: what goes on beside the run.
Reloading = Callable[[Any, Any, Any], contextlib.AbstractContextManager[Any]]


@click.command("run")
@click.argument("ref", metavar="REF")
@click.option("--auth", type=click.Choice(get_args(Auth)), default=None, help="Who may call it.  [default: public]")
@click.option("--app-name", default=None, help="Name shown in logs; the URL holds a random one.")
@click.option("--no-cache", is_flag=True, help="Build the environment anew.")
@click.option("--machine-type", default=None, metavar="TYPE", help="Instead of the class's machine_type.")
@click.option(
    "--cpu-fallback",
    is_flag=True,
    help="Let this machine's CPU stand in for a GPU (slow, and says so), on the platform that this command starts.",
)
@click.option("--reload", is_flag=True, help="Take over what is saved: the old version serves until the new one does.")
@click.option("--local", is_flag=True, help="In this process, with this Python's packages and without the platform.")
@click.option(
    "--exposed-port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="With --local; 0: any."
)
@click.option(
    "--limit-max-requests",
    type=click.IntRange(1),
    default=None,
    metavar="N",
    help="A runner is replaced after N requests; with --local the command ends.",
)
@env_option
@ignored_options("--team", "--exposed-metrics-port", flags=("--force-env-build", "--forward-compat"))
def command(
    ref: str,
    auth: Auth | None,
    app_name: str | None,
    no_cache: bool,
    machine_type: str | None,
    cpu_fallback: bool,
    reload: bool,
    local: bool,
    exposed_port: int,
    limit_max_requests: int | None,
    env: str,
) -> None:
    """Try an app: builds its environment, prints a URL, shows its log, and removes it on Ctrl-C.

    \b
    REF is a file (app.py), a class or served function in it (app.py::MyApp), or a name of [tool.fal.apps] in
    pyproject.toml.
    Without a configured server a platform is started for the time of the run.
    """
    from fal._ephemeral import platform_for
    from fal._loading import load
    from fal._platform import guess_check
    from fal.cli.console import Screen
    from fal.cli.summary import note_lost_digits

    _end_on_signals()
    if local:
        _run_here(ref, app_name, exposed_port, limit_max_requests, reload)
        return
    begun = time.time()
    check = None if cpu_fallback or machine_type else guess_check(Path(ref.partition("::")[0]))
    given = partial(load, ref, app_name=app_name, auth=auth, machine_type=machine_type, env=env, run=True)
    read = partial(_limited, given, limit_max_requests)
    try:
        loaded = read()
    except BaseException:
        if check is not None:
            check.stop()
        raise
    screen = Screen()
    note_lost_digits(screen, loaded)
    spec = loaded.spec
    with platform_for(
        spec.machine_types,
        lambda: spec.termination_grace_period_seconds,
        screen,
        cpu_fallback=cpu_fallback,
        check=check,
    ) as platform:
        if auth is None:
            screen.warning(
                "this app is public unless --auth says otherwise; the class's own auth counts for `fal deploy`."
            )
        _run(platform, loaded, screen, no_cache, partial(_reloader, read, begun) if reload else _no_reloader)


def _limited(read: Callable[[], Any], requests: int | None) -> Any:
    """An app whose runners serve no more than ``requests`` each."""
    loaded = read()
    if requests is None:
        return loaded
    return replace(loaded, spec=replace(loaded.spec, recycle_after_requests=requests))


def _run_here(ref: str, app_name: str | None, port: int, limit: int | None, reload: bool) -> None:
    """Without a platform: in this process, or in one of its own that is started again."""
    from fal.cli.console import Screen

    if reload:
        from fal.cli.reloading import local_again_and_again

        named = () if app_name is None else ("--app-name", app_name)
        limited = () if limit is None else ("--limit-max-requests", str(limit))
        local_again_and_again(ref, (*named, *limited, "--exposed-port", str(port)), Screen())
    else:
        from fal.cli.local import serve

        serve(ref, app_name, port, Screen(), limit)


def _no_reloader(loaded: Any, delivery: Any, screen: Any) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext()


def _reloader(
    read: Callable[[], Any], begun: float, loaded: Any, delivery: Any, screen: Any
) -> contextlib.AbstractContextManager[Any]:
    from fal.cli.reloading import Reloader

    return Reloader(loaded, read, delivery, screen, lambda built, again: _show(built, again, screen), begun)


def _end_on_signals() -> None:
    """SIGTERM and a closed terminal end the run as Ctrl-C does; SIGINT also where a script's ``&`` had it ignored."""
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGHUP, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _run(platform: Platform, loaded: Any, screen: Any, no_cache: bool, reloading: Reloading) -> None:
    from fal.cli.building import Delivery
    from fal.cli.watching import RunnerWatch

    delivery = Delivery(platform.api, screen)
    serving = False
    try:
        built = delivery.finish(loaded, delivery.begin(loaded, ephemeral=True, no_cache=no_cache))
        serving = True
        _show(built, loaded, screen)
        with RunnerWatch(platform.api, built.app, screen), reloading(loaded, delivery, screen):
            _follow(platform, built.app, screen)
    except KeyboardInterrupt:
        if not serving:
            screen.line("Interrupted.")
            raise
    finally:
        if delivery.app is not None:
            if left := platform.remove(delivery.app):
                screen.note(left)
            else:
                screen.line(f"Removed {delivery.app}", "dim")


def _show(built: Any, loaded: Any, screen: Any) -> None:
    from fal.cli.summary import show_addresses, show_curl

    screen.line()
    screen.rule(f"Ephemeral App ({built.auth})")
    show_addresses(screen, built, loaded)
    screen.rule("Deleted when this command ends")
    screen.line()
    screen.exact(f"Access your exposed service at {built.urls['sync']}")
    show_curl(screen, built, loaded)
    screen.line()
    screen.line("Running; Ctrl-C removes the app. Its log:", "dim")


def _follow(platform: Platform, app: str, screen: Any) -> None:
    """Show the app's log until the user interrupts.

    Raises:
        Problem: the app or its platform went away.
    """
    for event in platform.log_while_it_lasts(app):
        screen.log(event)
