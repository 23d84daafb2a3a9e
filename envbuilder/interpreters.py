"""Which Python an environment is made from: one that this machine has, never a download."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import uv

from envbuilder.errors import BadRequirement, NoInterpreter
from envbuilder.settings import BuildSettings

#: The oldest minor version that the process inside the environment supports.
OLDEST = (3, 10)
_TIMEOUT_S = 30.0


async def find_interpreter(python_version: str, settings: BuildSettings) -> Path:
    """Path of an interpreter of ``python_version`` (``"3.11"``; a patch release may follow).

    Raises:
        BadRequirement: not a version, or one that is too old for the runner.
        NoInterpreter: not on this machine; the message names those that are.
    """
    match = re.fullmatch(r"(\d+)\.(\d+)(\.\d+)?", python_version.strip())
    if match is None:
        raise BadRequirement(f'python_version = "{python_version}" is not a version. Next: write it like "3.11".')
    if (int(match[1]), int(match[2])) < OLDEST:
        raise BadRequirement(
            f"Python {python_version} is too old: runners need 3.10 or newer. Next: ask for a newer one."
        )
    own = ".".join(str(part) for part in sys.version_info[: 3 if match[3] else 2])
    if match[0] == own and (base := _own_interpreter()) is not None:
        return base
    search = _without_shims(settings.child_environment) | {"UV_CACHE_DIR": str(settings.uv_cache)}
    found = await _uv(search, "python", "find", "--system", python_version.strip())
    if found:
        return Path(found.strip())
    raise NoInterpreter(
        f"This machine has no Python {python_version}; it has {await _installed(search)}. "
        f"Next: install Python {python_version} on the builder, or deploy with one of those."
    )


def _own_interpreter() -> Path | None:
    """The interpreter behind ours: known to work, and found without starting a process."""
    base = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    return base if base.is_file() else None


def _without_shims(environment: Mapping[str, str]) -> dict[str, str]:
    """pyenv's shims answer for versions that they then refuse to run; look at the real installations instead."""
    path = [place for place in environment.get("PATH", "").split(os.pathsep) if not place.endswith("/shims")]
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    path += sorted(str(place) for place in root.glob("versions/*/bin"))
    return {**environment, "PATH": os.pathsep.join(path), "HOME": str(Path.home())}


async def _installed(environment: Mapping[str, str]) -> str:
    text = await _uv(environment, "python", "list", "--only-installed", "--output-format", "json")
    try:
        versions = {tuple(item["version_parts"].values()) for item in json.loads(text) if _usable(item)}
    except (ValueError, KeyError, AttributeError):
        return "others that uv could not list"
    return ", ".join(".".join(str(part) for part in version) for version in sorted(versions)) or "none that fits"


def _usable(item: dict[str, object]) -> bool:
    parts = item["version_parts"]
    return (
        item["implementation"] == "cpython"
        and item["variant"] == "default"
        and isinstance(parts, dict)
        and (parts["major"], parts["minor"]) >= OLDEST
    )


async def _uv(environment: Mapping[str, str], *arguments: str) -> str:
    """Standard output of a quick uv command, empty when it fails."""
    process = await asyncio.create_subprocess_exec(
        uv.find_uv_bin(),
        *arguments,
        "--no-config",
        "--no-python-downloads",
        "--no-project" if "find" in arguments else "--offline",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=dict(environment),
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), _TIMEOUT_S)
    except TimeoutError:  # some interpreter on PATH hangs when asked for its version
        return ""
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return output.decode("utf-8", "replace") if process.returncode == 0 else ""
