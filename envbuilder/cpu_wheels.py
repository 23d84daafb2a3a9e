"""CPU builds of torch that the operator keeps in a folder, so that a machine without a GPU need not fetch CUDA.

The index's newest torch is a CUDA build of gigabytes. uv takes the highest version that fits, so a floating name never
reaches a local CPU wheel of a lower version unless it is held there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from packaging.tags import cpython_tags, platform_tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from packaging.version import Version

from envbuilder.requirements import Asked

FAMILY = ("torch", "torchvision", "torchaudio")


def cpu_constraints(asked: Asked, find_links: Sequence[str], python: tuple[int, int]) -> tuple[str, ...]:
    """Constraint lines such as ``torch==2.13.0+cpu``, for each name of the family that the user leaves open enough.

    Empty when the user names indexes of their own: then they have chosen where torch comes from.
    """
    if any(layer.names_its_own_index for layer in asked.layers):
        return ()
    offered = _offered(find_links, python)
    lines = []
    for name in FAMILY:
        fitting = [version for version in offered.get(name, ()) if _admitted(asked, name, version)]
        if fitting:
            lines.append(f"{name}=={max(fitting)}")
    return tuple(lines)


def installed_cpu_build(packages: Iterable[str]) -> bool:
    """Whether a list of ``name==version`` holds a CPU build of torch."""
    return any(package.startswith("torch==") and "+cpu" in package for package in packages)


def _admitted(asked: Asked, name: str, version: Version) -> bool:
    for wanted in (*asked.wanted, *asked.constraints):
        if wanted.name != name:
            continue
        if wanted.specifier is None or not wanted.specifier.contains(version, prereleases=True):
            return False
    return True


def _offered(find_links: Sequence[str], python: tuple[int, int]) -> dict[str, list[Version]]:
    """CPU wheels in local folders that this platform can install; addresses are not listed."""
    tags = set(cpython_tags(python_version=python, platforms=list(platform_tags())))
    offered: dict[str, list[Version]] = {}
    for place in find_links:
        if "://" in place:
            continue
        for wheel in Path(place).expanduser().glob("torch*.whl"):
            try:
                name, version, _, wheel_tags = parse_wheel_filename(wheel.name)
            except InvalidWheelFilename:
                continue
            if (version.local or "").startswith("cpu") and tags & wheel_tags:
                offered.setdefault(name, []).append(version)
    return offered
