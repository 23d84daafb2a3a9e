"""``fal logs``: an app's log, its workers' stages included.

Reads and prints; which lines exist is the server's business.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import click

from fal.cli.options import control_api, json_option

MOST_LINES = 5000


def moment(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """A time in the past as unix seconds: ISO 8601, or how long ago."""
    if value is None:
        return None
    if ago := re.fullmatch(r"(\d+)([smhd])", value):
        return time.time() - int(ago[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[ago[2]]
    try:
        return datetime.fromisoformat(value.replace("Z", "+00:00")).astimezone().timestamp()
    except ValueError:
        raise click.BadParameter(f"{value!r} is no time; write 15m, 2h or 2025-01-31T12:00.") from None


search_option = click.option("--search", default="", metavar="TEXT", help="Only lines that hold TEXT.")
since_option = click.option(
    "--since", callback=moment, metavar="TIME", help="Only lines from then on, as in 15m or 2h."
)
until_option = click.option("--until", callback=moment, metavar="TIME", help="Only lines before then.")
follow_option = click.option("--follow", "-f", is_flag=True, help="Go on until Ctrl-C.")


def _how_many(ctx: click.Context, param: click.Parameter, value: str) -> int:
    """``20``: the last 20; ``+20``: the first 20, which is -20 here."""
    count = int(value.removeprefix("+")) if re.fullmatch(r"\+?\d{1,9}", value) else 0
    if not 1 <= count <= MOST_LINES:
        raise click.BadParameter(f"{value!r} is no number of lines from 1 to {MOST_LINES}; +N shows the first N.")
    return -count if value.startswith("+") else count


limit_option = click.option(
    "--lines",
    "-n",
    "limit",
    callback=_how_many,
    default="1000",
    show_default=True,
    metavar="[+]N",
    help="The last N at most; +N: the first N.",
)


@dataclass(frozen=True)
class Wanted:
    """Which lines of an app's log."""

    request_id: str | None = None
    worker_id: str | None = None
    search: str = ""
    since: float | None = None
    until: float | None = None

    @property
    def of_whom(self) -> dict[str, str]:
        """What the server chooses by."""
        found = {"request_id": self.request_id, "worker_id": self.worker_id}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def sifts(self) -> bool:
        """Whether lines are left out here, so that more must be read than are shown."""
        return bool(self.search) or self.since is not None or self.until is not None

    def has(self, entry: dict[str, Any]) -> bool:
        at = float(entry.get("at") or 0)
        return (
            all(entry.get(name) == value for name, value in self.of_whom.items())
            and self.search in str(entry.get("message", ""))
            and (self.since is None or at >= self.since)
            and (self.until is None or at < self.until)
        )


@click.command("logs")
@click.argument("app")
@follow_option
@limit_option
@search_option
@since_option
@until_option
@click.option("--request", "request_id", default=None, metavar="ID", help="Only lines of one request.")
@click.option("--runner", "worker_id", default=None, metavar="ID", help="Only lines of one runner.")
@json_option
def command(
    app: str,
    follow: bool,
    limit: int,
    request_id: str | None,
    worker_id: str | None,
    as_json: bool,
    **window: Any,
) -> None:
    """Show the log of APP."""
    wanted = Wanted(request_id, worker_id, **window)
    show_logs(control_api(), app, wanted, follow=follow, limit=limit, as_json=as_json)


def show_logs(
    api: Any,
    app: str,
    wanted: Wanted,
    *,
    follow: bool,
    limit: int,
    as_json: bool,
) -> None:
    """Print an app's log, one JSON object a line with ``as_json``; with ``follow`` until interrupted.

    Args:
        limit: the last so many lines; negative: the first ones of those that are kept.
    """
    from fal.cli.console import Screen, print_json

    screen = Screen()
    show = print_json if as_json else screen.log
    path = api.app_path(app, "/logs")
    entries = api.items(path, params={"limit": MOST_LINES if wanted.sifts or limit < 0 else limit, **wanted.of_whom})
    last = str(entries[-1].get("id", "0")) if entries else "0"
    fitting = [entry for entry in entries if wanted.has(entry)]
    for entry in fitting[:-limit] if limit < 0 else fitting[-limit:]:
        show(entry)
    if follow:
        _follow(api, path, last, wanted, show)


def _follow(api: Any, path: str, last: str, wanted: Wanted, show: Any) -> None:
    from fal._server import StreamBroken

    try:
        while True:
            parameters = {"follow": "1", "after": last, **wanted.of_whom}
            try:
                for entry in api.events(path, params=parameters):
                    last = str(entry.get("id", last))
                    if "message" in entry and wanted.has(entry):
                        show(entry)
            except StreamBroken:
                pass
            time.sleep(0.5)
    except KeyboardInterrupt:
        return
