"""Loads the Lua verbs and calls them by name.

A script opens with a header that this file reads: ``-- MOVES`` (states it moves a request from and to), ``-- KEYS``
(functions of ``keys``; ``_prefix`` leaves the last argument out), ``-- CHANNELS`` (likewise), ``-- ARGV``,
``-- RETURNS`` and ``-- INCLUDE``. Each name becomes a Lua local, so that nobody counts positions on either side.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import hiredis

from . import keys
from .connection import PATIENCE, Arg, Redis, pack, refusal

_FOLDER = Path(__file__).parent / "lua"
_HEADER = re.compile(r"^-- (MOVES|KEYS|CHANNELS|ARGV|RETURNS|INCLUDE):? *(.*)$")


class Script:
    """One verb: its text, and the names and order of what it takes."""

    def __init__(self, name: str) -> None:
        self.name = name
        shebang, header, body = _read(_FOLDER / f"{name}.lua")
        included: list[str] = []
        for include in header["INCLUDE"]:
            _include(include, header, included)
        self.moves = tuple(header["MOVES"])
        self.key_names = tuple(dict.fromkeys(header["KEYS"]))
        self.channel_names = tuple(dict.fromkeys(header["CHANNELS"]))
        self.arg_names = tuple(header["ARGV"])
        self.rest = (
            self.arg_names[-1].removesuffix("...") if self.arg_names[-1:] and "..." in self.arg_names[-1] else ""
        )
        if self.rest:
            self.arg_names = self.arg_names[:-1]
        self.text = f"{shebang}\n{self._locals()}{''.join(included)}{body}"
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        self._heads: dict[tuple[str, ...], tuple[Arg, ...]] = {}
        self._values = _in_order(self.arg_names)

    def _locals(self) -> str:
        lines = [f"local {name} = KEYS[{i}]\n" for i, name in enumerate(self.key_names, 1)]
        lines += [f"local {name} = ARGV[{i}]\n" for i, name in enumerate(self.arg_names, 1)]
        if self.rest:
            lines.append(f"local first_of_{self.rest} = {len(self.arg_names) + 1}\n")
        for name in self.channel_names:
            function = getattr(keys, name.removesuffix("_prefix"))
            value = function("") if function.__code__.co_argcount else function()
            lines.append(f"local {name} = '{value}'\n")
        return "".join(lines)

    def _head(self, scope: tuple[str, ...]) -> tuple[Arg, ...]:
        head = self._heads.get(scope)
        if head is None:
            if len(self._heads) > 2000:
                self._heads.clear()
            names = [_key(name, scope) for name in self.key_names]
            head = self._heads[scope] = ("EVALSHA", self.sha, len(names), *names)
        return head

    async def __call__(
        self, redis: Redis, *scope: str, patience: float = PATIENCE, rest: Sequence[Arg] = (), **named: Arg
    ) -> Any:
        """Runs the script on the keys of ``scope`` (for most, the app).

        Args:
            named: one value for each name of ``-- ARGV``. rest: the values of a last name that ends in ``...``.
            patience: seconds to wait for a lost connection.

        Raises:
            StoreUnavailable, StoreFull, StoreError: see ``Redis.command``.
        """
        packed = pack((*self._head(scope), *self._values(named), *rest))
        reply = await redis.exchange(packed, patience)
        while isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT"):
            await redis.command("SCRIPT", "LOAD", self.text, patience=patience)
            reply = await redis.exchange(packed, patience)
        if isinstance(reply, hiredis.ReplyError):
            raise refusal(f"{reply} (script {self.name})")
        return reply


def _in_order(names: tuple[str, ...]) -> Callable[[dict[str, Arg]], tuple[Arg, ...]]:
    """What picks the values of ``names`` out of keyword arguments."""
    if len(names) > 1:
        return itemgetter(*names)
    return lambda named: tuple(named[name] for name in names)


def _read(path: Path) -> tuple[str, dict[str, list[str]], str]:
    """Shebang line, header fields and the remaining text of one Lua file."""
    shebang, _, text = path.read_text().partition("\n")
    if not shebang.startswith("#!lua"):
        shebang, text = "", f"{shebang}\n{text}"
    header: dict[str, list[str]] = {"MOVES": [], "KEYS": [], "CHANNELS": [], "ARGV": [], "RETURNS": [], "INCLUDE": []}
    for line in text.splitlines():
        if not (match := _HEADER.match(line)):
            continue
        name, value = match.groups()
        header[name] += [v.strip() for v in value.split(";")] if name in ("MOVES", "RETURNS") else value.split()
    return shebang, header, text


def _include(name: str, header: dict[str, list[str]], texts: list[str]) -> None:
    """Adds an include, after what it includes itself, once; its keys and channels become the script's."""
    marker = f"-- include {name}\n"
    if any(text.startswith(marker) for text in texts):
        return
    _, inner, text = _read(_FOLDER / "include" / f"{name}.lua")
    for deeper in inner["INCLUDE"]:
        _include(deeper, header, texts)
    for field in ("KEYS", "CHANNELS"):
        header[field] += inner[field]
    texts.append(f"{marker}{text}\n")


def _key(name: str, scope: tuple[str, ...]) -> str:
    """The key of that name; a function that needs less of the scope takes its beginning."""
    function = getattr(keys, name.removesuffix("_prefix"))
    size = function.__code__.co_argcount
    key: str = function(*scope[: size - 1], "") if name.endswith("_prefix") else function(*scope[:size])
    return key


#: Every verb by name, loaded once.
SCRIPTS: dict[str, Script] = {path.stem: Script(path.stem) for path in sorted(_FOLDER.glob("*.lua"))}


def load_into(redis: Redis) -> None:
    """Sends every script ahead of what follows on the connection, so that no verb has to be sent twice.

    Loading what the server has already costs it nothing; the answers are of no interest.
    """
    connection = redis.link.connection
    if connection is not None:
        for script in SCRIPTS.values():
            connection.send(pack(("SCRIPT", "LOAD", script.text))).add_done_callback(_heard)


def _heard(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()
