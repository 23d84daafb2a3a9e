"""Commands beside a worker as their caller follows them, over an event stream or a websocket.

Leaves the connection to ``workers`` and ``terminals``, and what becomes of a command to the store.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from scheduler.store import Store, keys
from scheduler.store.records import Terminal, WorkerState

from .errors import Refusal, bad_request

_MOST_ARGUMENTS = 256
_MOST_CELLS = 10_000
_LOOK_SECONDS = 1.0
#: For a worker to say that it has begun.
_PATIENCE_SECONDS = 20.0

#: Given a kind and what was said.
Say = Callable[[str, bytes], Awaitable[None]]


async def follow(
    store: Store,
    app: str,
    worker_id: str,
    command_id: str,
    say: Say,
    note: Callable[[bytes], None],
    wait: Callable[[float], Awaitable[bool]],
) -> None:
    """Hand on what a command says until it ends; it is forgotten, and thereby ended, when this returns.

    Args:
        note: called when there may be news.
        wait: until news or for so many seconds; False when the caller has gone.
    """
    commands = store.commands
    subscription = await store.subscribe({keys.channel_command(command_id): note})
    heard, give_up_at = False, time.monotonic() + _PATIENCE_SECONDS
    try:
        while True:
            while pieces := await commands.read(app, command_id):
                heard = True
                for kind, data in pieces:
                    await say(kind, data)
                    if kind == "exit":
                        return
            if not heard and time.monotonic() > give_up_at:
                await say("stderr", b"The runner does not take commands now.\n")
                await say("exit", b"125")
                return
            if not await wait(_LOOK_SECONDS):
                return
            await commands.renew(app, worker_id, command_id)
    finally:
        await subscription.close()
        await commands.forget(app, command_id)


async def living(store: Store, app: str, worker_id: str) -> None:
    """404 when the app has no such worker, or it has ended."""
    worker = await store.workers.get(app, worker_id)
    if worker is None or worker.state is WorkerState.TERMINATED:
        raise Refusal(404, f'"{app}" has no runner "{worker_id[:80]}" now; see "fal runners list".')


def checked_arguments(given: Any) -> tuple[str, ...]:
    """A program and its arguments; 400 for anything else."""
    fits = (
        isinstance(given, list)
        and 0 < len(given) <= _MOST_ARGUMENTS
        and all(isinstance(text, str) and "\0" not in text for text in given)
        and bool(given[0])
        and sum(len(text.encode("utf-8", "replace")) for text in given) <= 64 * 1024
    )
    if not fits:
        raise bad_request(f'"command" must be a list of texts, {_MOST_ARGUMENTS} at most and 64 KiB together.')
    return tuple(given)


def checked_terminal(given: Any) -> Terminal | None:
    """A terminal of a size that there is; 400 for anything else."""
    if given is None:
        return None
    if not isinstance(given, dict) or given.keys() - {"rows", "columns", "kind"}:
        raise bad_request('"terminal" must be an object with "rows", "columns" and "kind".')
    rows, columns = checked_size(given)
    kind = given.get("kind", "xterm")
    if not isinstance(kind, str) or not kind.isascii() or not kind.isprintable() or not 0 < len(kind) <= 64:
        raise bad_request('"kind" must say what kind of terminal it is, as TERM does, such as "xterm".')
    return Terminal(rows, columns, kind)


def checked_size(given: dict[str, Any]) -> tuple[int, int]:
    """Rows and columns; 400 for what cannot be."""
    rows, columns = given.get("rows"), given.get("columns")
    for number in (rows, columns):
        if not isinstance(number, int) or isinstance(number, bool) or not 0 < number <= _MOST_CELLS:
            raise bad_request(f'"rows" and "columns" must be whole numbers from 1 to {_MOST_CELLS}.')
    return rows, columns  # type: ignore[return-value]
