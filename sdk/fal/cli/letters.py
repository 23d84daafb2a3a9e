"""``fal queue letters``: requests that were given up, with their input; run them again or throw them away.

Reads and prints; whether a letter may be replayed is the server's to say.
"""

from __future__ import annotations

import sys
from typing import Any

import click

from fal.cli.choosing import all_option, chosen, limit_option, queue_path
from fal.cli.options import control_api, json_option


@click.group("letters")
def command() -> None:
    """Requests that were given up: three crashes in a row, or no attempts left. Kept for a week with their input."""


@command.command("list")
@click.argument("app")
@limit_option
@json_option
def list_letters(app: str, limit: int, as_json: bool) -> None:
    """List the dead letters of APP, the newest first."""
    from fal.cli.console import Screen, print_json, when

    api = control_api()
    letters = api.items(queue_path(api, app, "letters"), params={"limit": limit})
    if as_json:
        print_json(letters)
        return
    Screen().table(
        ["Request", "Given up", "Why", "Last attempt", "Attempts", "Path", "Input", "Replayed as"],
        [
            (
                item.get("request_id"),
                when(item.get("died_at")),
                item.get("error_type"),
                item.get("error"),
                item.get("attempts"),
                item.get("path"),
                _size(item),
                item.get("replayed_as"),
            )
            for item in letters
        ],
        empty="No dead letters: every request of the last week has had its answer.",
    )


@command.command("show")
@click.argument("app")
@click.argument("request_id", metavar="REQUEST")
@click.option("--body", "only_body", is_flag=True, help="Print only the input's body, byte for byte.")
@json_option
def show(app: str, request_id: str, only_body: bool, as_json: bool) -> None:
    """Show one dead letter: how its last attempt ended, what was last heard of it, and its input."""
    from fal.cli.console import print_json

    api = control_api()
    path = queue_path(api, app, "letters", request_id)
    if only_body:
        sys.stdout.buffer.write(api.request("GET", f"{path}/body").content)
        return
    letter = api.json("GET", path)
    if as_json:
        print_json(letter)
    else:
        _show(letter)


def _show(letter: dict[str, Any]) -> None:
    from fal.cli.console import Screen, when

    screen = Screen()
    exit_code, name = letter.get("exit_code"), letter.get("signal")
    ended = "" if exit_code is None else f" ({name or f'exit code {exit_code}'})"
    for label, value in (
        ("Request", letter.get("request_id")),
        ("Why", letter.get("error_type") or "attempts used up"),
        ("Last attempt", f"{letter.get('error')}{ended}"),
        ("Attempts", f"{letter.get('attempts')}, {letter.get('crashes')} of them crashes while alone"),
        ("Runner", f"{letter.get('worker_id')} on {letter.get('host') or 'an unknown host'}"),
        ("Submitted", when(letter.get("submitted_at"))),
        ("Given up", when(letter.get("died_at"))),
        ("Webhook", letter.get("webhook")),
        ("Replayed as", letter.get("replayed_as")),
        ("Input", f"{letter.get('method')} {letter.get('path')}, {_size(letter)}"),
    ):
        if value:
            screen.parts((f"{label:<14}", "bold"), (str(value), ""))
    for title, text in (
        ("last words of the runner", letter.get("last_words")),
        ("log of the request", "\n".join(str(line.get("message")) for line in letter.get("log") or [])),
        ("body", letter.get("body")),
    ):
        if text:
            screen.rule(title, "dim")
            screen.exact(str(text).rstrip("\n"))


@command.command("replay")
@click.argument("app")
@click.argument("request_ids", nargs=-1, metavar="[REQUEST]...")
@all_option
@click.option("--again", is_flag=True, help="Also what was replayed before.")
@json_option
def replay(app: str, request_ids: tuple[str, ...], everything: bool, again: bool, as_json: bool) -> None:
    """Submit the input of dead letters again, each as a new request; prints the new ids.

    The new request goes to the app as it is now, with the webhook and priority of the old one.
    """
    from fal.cli.console import Screen, print_json

    api = control_api()
    # --all means those that nobody has replayed yet, so that it can be asked for again after an error
    names = chosen(api, app, "letters", request_ids, everything, lambda item: again or not item.get("replayed_as"))
    params = {"again": "1"} if again else {}
    made = []
    for request_id in names:
        answer = api.json("POST", f"{queue_path(api, app, 'letters', request_id)}/replay", params=params)
        made.append(answer)
        if not as_json:
            Screen().tick(f"{request_id} runs again as {answer['request_id']}")
    if as_json:
        print_json(made)
    elif not made:
        Screen().line("Nothing to replay.", "dim")


@command.command("drop")
@click.argument("app")
@click.argument("request_ids", nargs=-1, metavar="[REQUEST]...")
@all_option
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@json_option
def drop(app: str, request_ids: tuple[str, ...], everything: bool, yes: bool, as_json: bool) -> None:
    """Throw dead letters away, with their input."""
    from fal.cli.console import Screen, print_json

    api = control_api()
    names = chosen(api, app, "letters", request_ids, everything)
    if everything and names and not yes and sys.stdin.isatty():
        click.confirm(f"Drop all {len(names)} dead letters of {api.app_id(app)}?", abort=True)
    for request_id in names:
        api.request("DELETE", queue_path(api, app, "letters", request_id))
    if as_json:
        print_json({"dropped": names})
    else:
        Screen().tick(f"Dropped {len(names)} dead letter{'s' * (len(names) != 1)} of {api.app_id(app)}")


def _size(letter: dict[str, Any]) -> str:
    size = int(letter.get("body_bytes") or 0)
    if size < 10_000:
        return f"{size} bytes"
    return f"{size // 1000} kB" if size < 10_000_000 else f"{size // 1_000_000} MB"
