"""``fal logs``: an app's log, its workers' stages included.

Reads and prints; which lines exist is the server's business.
"""

from __future__ import annotations

import time
from typing import Any

import click

from fal.cli.options import control_api, items_of, json_option

follow_option = click.option("--follow", "-f", is_flag=True, help="Go on until Ctrl-C.")
limit_option = click.option(
    "--lines", "-n", "limit", type=click.IntRange(1, 5000), default=1000, show_default=True, help="How many at most."
)


@click.command("logs")
@click.argument("app")
@follow_option
@limit_option
@click.option("--request", "request_id", default=None, metavar="ID", help="Only lines of one request.")
@click.option("--runner", "worker_id", default=None, metavar="ID", help="Only lines of one runner.")
@json_option
def command(app: str, follow: bool, limit: int, request_id: str | None, worker_id: str | None, as_json: bool) -> None:
    """Show the log of APP."""
    show_logs(
        control_api(),
        app,
        follow=follow,
        limit=limit,
        as_json=as_json,
        request_id=request_id,
        worker_id=worker_id,
    )


def show_logs(
    api: Any,
    app: str,
    *,
    follow: bool,
    limit: int,
    as_json: bool,
    request_id: str | None = None,
    worker_id: str | None = None,
) -> None:
    """Print an app's log, one JSON object a line with ``as_json``; with ``follow`` until interrupted."""
    from fal.cli.console import Screen, print_json

    screen = Screen()
    show = print_json if as_json else screen.log
    path = api.app_path(app, "/logs")
    wanted = {"request_id": request_id, "worker_id": worker_id}
    parameters: dict[str, Any] = {"limit": limit, **{k: v for k, v in wanted.items() if v is not None}}
    entries = items_of(api.json("GET", path, params=parameters))
    last = "0"
    for entry in entries:
        last = str(entry.get("id", last))
        if _matches(entry, wanted):
            show(entry)
    if follow:
        _follow(api, path, last, wanted, show)


def _follow(api: Any, path: str, last: str, wanted: dict[str, str | None], show: Any) -> None:
    from fal._server import StreamBroken

    try:
        while True:
            parameters = {"follow": "1", "after": last, **{k: v for k, v in wanted.items() if v is not None}}
            try:
                for entry in api.events(path, params=parameters):
                    last = str(entry.get("id", last))
                    if "message" in entry and _matches(entry, wanted):
                        show(entry)
            except StreamBroken:
                pass
            time.sleep(0.5)
    except KeyboardInterrupt:
        return


def _matches(entry: dict[str, Any], wanted: dict[str, str | None]) -> bool:
    return all(value is None or entry.get(key) == value for key, value in wanted.items())
