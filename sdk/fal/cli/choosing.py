"""Which of an app's listed things a command means: those named, or with ``--all`` every one.

Owns the words of that choice. Knows nothing of what is listed but its ``request_id``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import click

from fal._problem import Problem

#: Most that a list shows, and --all means.
MOST_LISTED = 1000

all_option = click.option("--all", "everything", is_flag=True, help="Every one that `list` shows.")
limit_option = click.option(
    "--limit", default=100, show_default=True, type=click.IntRange(1, MOST_LISTED), help="At most so many."
)


def queue_path(api: Any, app: str, what: str, request_id: str | None = None) -> str:
    """Path of a list of the app's queue, or of one entry, in the control API."""
    path = f"/api/v1/queue/{quote(api.app_id(app))}/{what}"
    return path if request_id is None else f"{path}/{quote(request_id, safe='')}"


def chosen(
    api: Any,
    app: str,
    what: str,
    request_ids: tuple[str, ...],
    everything: bool,
    fits: Callable[[dict[str, Any]], bool] = lambda item: True,
) -> list[str]:
    """The ids that were named, or those of everything listed that ``fits``.

    Raises:
        Problem: neither was said, or both.
    """
    if everything == bool(request_ids):
        raise Problem(
            "Name the requests or say --all, not both." if everything else "Which requests?",
            next_step=f"`fal queue {what} list {app}` shows their ids; --all means every one.",
        )
    if not everything:
        return list(request_ids)
    found = api.items(queue_path(api, app, what), params={"limit": MOST_LISTED})
    return [str(item["request_id"]) for item in found if fits(item)]
