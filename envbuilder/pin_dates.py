"""When the pinned requirements came out, asked of the configured index (PEP 691 JSON, PEP 700 upload times).

A set of old pins beside floating names only fits together as it did when the pins were new; this finds that moment.
Lower bounds count too: before ``diffusers>=0.42`` could be met, no date helps.
"""

from __future__ import annotations

import asyncio
import functools
import os
import ssl
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import uv
from packaging.tags import Tag, compatible_tags, cpython_tags, platform_tags
from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    parse_sdist_filename,
    parse_wheel_filename,
)
from packaging.version import InvalidVersion, Version

from envbuilder.requirements import Asked, Wanted
from envbuilder.settings import BuildSettings

if TYPE_CHECKING:
    import httpx

#: After the newest pin came out: long enough for its companions' fitting releases, short of the next generation.
GRACE = timedelta(days=14)
_TIMEOUT_S = 10.0
_AT_ONCE = 8


async def moment_of_the_pins(
    asked: Asked, settings: BuildSettings, python: tuple[int, int], now: datetime
) -> datetime | None:
    """The first moment at which every number in the list could be met, plus 14 days; None when unknown or not past.

    A private index may give no upload times, and a pin may only exist as a local file: such lines are left out, but at
    least one exact pin must be dated.
    """
    bound = [wanted for wanted in asked.wanted if wanted.specifier]
    if not any(wanted.exact_version for wanted in bound) or settings.child_environment.get("UV_OFFLINE"):
        return None
    import httpx  # here, because a cached environment must not pay for its import

    limits = asyncio.Semaphore(_AT_ONCE)
    certificates = settings.child_environment.get("SSL_CERT_FILE")
    verify: ssl.SSLContext | bool = ssl.create_default_context(cafile=certificates) if certificates else True
    async with httpx.AsyncClient(timeout=_TIMEOUT_S, follow_redirects=True, verify=verify) as client:
        urls = await asyncio.to_thread(index_urls, asked, settings)
        times = await asyncio.gather(*(_when(client, limits, urls, wanted, python) for wanted in bound))
    dated = [(wanted, moment) for wanted, moment in zip(bound, times, strict=True) if moment is not None]
    if not any(wanted.exact_version for wanted, _ in dated):
        return None
    moment = max(moment for _, moment in dated) + GRACE
    return moment if moment < now else None


async def _when(
    client: httpx.AsyncClient, limits: asyncio.Semaphore, urls: Sequence[str], wanted: Wanted, python: tuple[int, int]
) -> datetime | None:
    """When one line could first be met, by the first index that knows its name; None when none tells."""
    import httpx

    async with limits:
        for index in urls:
            try:
                files = await _files(client, index, wanted.name or "")
            except (httpx.HTTPError, httpx.InvalidURL, ValueError):
                continue
            if files:
                return first_met(files, wanted, python)
    return None


def index_urls(asked: Asked, settings: BuildSettings) -> tuple[str, ...]:
    """In uv's order: extra indexes before the default one. ``file:`` indexes know no upload times."""
    named = [entry.rpartition("=")[2] for entry in settings.child_environment.get("UV_INDEX", "").split()]
    own = [url for layer in asked.layers for url in layer.extra_index_urls]
    given = next((layer.index_url for layer in asked.layers if layer.index_url), settings.default_index)
    urls = [*own, *named, *settings.extra_indexes, given or index_of_uv()]
    return tuple(dict.fromkeys(url.rstrip("/") for url in urls if url.startswith(("https://", "http://"))))


@functools.cache
def index_of_uv() -> str:
    """The index that uv asks when it is told none: the head line of an empty resolution says it."""
    command = [uv.find_uv_bin(), "pip", "compile", "--no-config", "--quiet", "--emit-index-url", "-"]
    done = subprocess.run(
        command, input="", capture_output=True, text=True, env={"PATH": os.defpath}, timeout=_TIMEOUT_S, check=False
    )
    return next((line.split()[1] for line in done.stdout.splitlines() if line.startswith("--index-url ")), "")


def first_met(files: Sequence[dict[str, Any]], wanted: Wanted, python: tuple[int, int]) -> datetime | None:
    """When a release that ``wanted`` admits could first be installed: its earliest fitting wheel, else earliest file.

    Not simply the earliest file: a wheel for a newer Python may have come months later, and a date before it would
    leave only the source.
    """
    if wanted.specifier is None:
        return None
    platforms = list(platform_tags())
    tags = {*cpython_tags(python, platforms=platforms), *compatible_tags(python, platforms=platforms)}
    wheels: list[datetime] = []
    others: list[datetime] = []
    pinned = wanted.exact_version is not None  # a pin may be a pre-release or yanked; a range means neither
    unfinished = pinned or bool(wanted.specifier.prereleases)
    for file in files:
        version, wheel_tags = _release(str(file.get("filename", "")))
        moment = _moment(file.get("upload-time"))
        if moment is None or version is None or (file.get("yanked") and not pinned):
            continue
        if wanted.specifier.contains(version, prereleases=unfinished):
            (wheels if wheel_tags & tags else others).append(moment)
    return min(wheels or others, default=None)


def _release(filename: str) -> tuple[Version | None, frozenset[Tag]]:
    try:
        if filename.endswith(".whl"):
            _, version, _, tags = parse_wheel_filename(filename)
            return version, tags
        return parse_sdist_filename(filename)[1], frozenset()
    except (InvalidWheelFilename, InvalidSdistFilename, InvalidVersion):
        return None, frozenset()


def _moment(text: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return moment.astimezone(UTC) if moment is not None else None


async def _files(client: httpx.AsyncClient, index: str, name: str) -> list[dict[str, Any]]:
    answer = await client.get(f"{index}/{name}/", headers={"Accept": "application/vnd.pypi.simple.v1+json"})
    answer.raise_for_status()
    files = answer.json().get("files", [])
    return [file for file in files if isinstance(file, dict)] if isinstance(files, list) else []
