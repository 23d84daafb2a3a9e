"""``fal runners``: the workers of an app, under the name that users know, and what they logged.

Reads and prints.
"""

from __future__ import annotations

from typing import Any

import click

from fal.cli.logs import follow_option, limit_option, show_logs
from fal.cli.options import control_api, items_of, json_option


@click.group("runners")
def command() -> None:
    """See the runners of an app and their logs."""


@command.command("list")
@click.argument("app", required=False)
@json_option
def list_runners(app: str | None, as_json: bool) -> None:
    """List runners: those of APP, or of all apps."""
    show_runners(app, as_json)


def show_runners(app: str | None, as_json: bool) -> None:
    """Print the runners of one app, or of every app when ``app`` is None."""
    from fal.cli.console import Screen, print_json, when

    api = control_api()
    names = [app] if app else [str(item["app"]) for item in items_of(api.json("GET", "/api/v1/apps"))]
    workers = [item for name in names for item in items_of(api.json("GET", api.app_path(name, "/workers")))]
    if as_json:
        print_json(workers)
        return
    Screen().table(
        ["Runner", "App", "State", "Revision", "Machine", "Host", "Running", "Served", "Since", "Start"],
        [
            (
                item.get("worker_id"),
                item.get("app"),
                item.get("state"),
                item.get("revision"),
                _machine(item),
                item.get("host"),
                item.get("in_flight"),
                item.get("served"),
                when(item.get("created_at")),
                _start(item),
            )
            for item in workers
        ],
        empty="No runners: the app sleeps until the next request." if app else "No runners: every app sleeps.",
    )


def _machine(worker: dict[str, Any]) -> str:
    name = str(worker.get("machine_type", ""))
    return f"{name} (CPU stands in)" if worker.get("cpu_fallback_for") else name


def _start(worker: dict[str, Any]) -> str:
    from fal.cli.watching import start_times

    return start_times(worker).strip().removeprefix("after ")


@command.command("logs")
@click.argument("runner")
@click.option("--app", default=None, help="Its app; looked up when not given.")
@follow_option
@limit_option
@json_option
def logs(runner: str, app: str | None, follow: bool, limit: int, as_json: bool) -> None:
    """Show what one RUNNER (an id from `fal runners list`) logged."""
    api = control_api()
    show_logs(api, app or _app_of(api, runner), follow=follow, limit=limit, as_json=as_json, worker_id=runner)


def _app_of(api: Any, runner: str) -> str:
    from fal._problem import Problem

    for item in items_of(api.json("GET", "/api/v1/apps")):
        name = str(item["app"])
        if any(w.get("worker_id") == runner for w in items_of(api.json("GET", api.app_path(name, "/workers")))):
            return name
    raise Problem(
        f"No app has a runner {runner!r} now.",
        next_step="for one that is gone, name its app: `fal runners logs RUNNER --app APP`.",
    )
