"""Building in tests: one call, its lines kept; and source packages whose build does what a test says."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from fal._spec import EnvironmentSpec

from envbuilder import BuildSettings, Environment, build

PYTHON = "3.11"


def spec_of(*requirements: str, **more: object) -> EnvironmentSpec:
    """One layer of requirements for the Python that runs the tests."""
    return EnvironmentSpec(PYTHON, (requirements,), **more)  # type: ignore[arg-type]


@dataclass
class Built:
    """A finished build and what it said."""

    spec: EnvironmentSpec
    settings: BuildSettings
    environment: Environment
    lines: list[str] = field(default_factory=list)

    @classmethod
    async def make(cls, settings: BuildSettings, *requirements: str, **more: object) -> Built:
        spec = spec_of(*requirements, **more)
        lines: list[str] = []
        return cls(spec, settings, await build(spec, settings, lines.append), lines)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def version(self, name: str) -> str | None:
        """Installed version of ``name``."""
        return dict(package.split("==") for package in self.environment.packages).get(name)


def gone(pid: int) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def command_of(process: psutil.Process) -> str:
    """Its command line; empty once it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


_BACKEND = """
import pathlib, sys, time, zipfile

def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
{body}
    name = "{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(pathlib.Path(wheel_directory) / name, "w") as wheel:
        wheel.writestr("{name}.py", {module!r})
        info = "{name}-1.0.dist-info"
        wheel.writestr(info + "/METADATA", "Metadata-Version: 2.1\\nName: {name}\\nVersion: 1.0\\n")
        wheel.writestr(info + "/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(info + "/RECORD", "")
    return name
"""
_PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "{name}"
version = "1.0"
"""


def write_source_package(folder: Path, name: str, *body: str, module: str = "") -> None:
    """``<name>-1.0.tar.gz`` in ``folder``; building it runs ``body`` (statements) and needs no index.

    ``module`` is the source of the one module that it installs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    statements = "\n".join(f"    {line}" for line in body) or "    pass"
    files = {
        "pyproject.toml": _PYPROJECT.format(name=name),
        "backend.py": _BACKEND.format(body=statements, name=name, module=module),
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
    }
    with tarfile.open(folder / f"{name}-1.0.tar.gz", "w:gz") as archive:
        for path, text in files.items():
            entry = tarfile.TarInfo(f"{name}-1.0/{path}")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
