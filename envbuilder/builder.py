"""From what an app asks for to a ready environment: one builder per key, the sets to try in order, one ready mark.

Leaves the choice of sets to ``plan``, uv to ``install``, imports to ``smoke`` and the folders' life to ``shelf``.
"""

from __future__ import annotations

import asyncio
import errno
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from envbuilder import plan
from envbuilder.cpu_wheels import cpu_constraints, installed_cpu_build
from envbuilder.errors import DISK_FULL, BadRequirement, BuildError, DiskFull, LimitReached, Unsatisfiable
from envbuilder.eviction import unfinished
from envbuilder.install import Site, create_venv, install_layers, installed_packages
from envbuilder.interpreters import find_interpreter
from envbuilder.key import key_of
from envbuilder.pin_dates import moment_of_the_pins
from envbuilder.process import BuildLog, Limits
from envbuilder.requirements import Asked, parse
from envbuilder.settings import BuildSettings
from envbuilder.shelf import Environment, find, flush_to_disk, size_of, touch, try_lock, write_mark
from envbuilder.smoke import SmokeRoom, smoke_import, to_import

if TYPE_CHECKING:
    from fal._spec import EnvironmentSpec

_POLL_S = 0.1
_WAITING_LINE_S = 10.0


async def build(
    spec: EnvironmentSpec,
    settings: BuildSettings,
    on_line: Callable[[str], None],
    secrets: Mapping[str, str] | None = None,
) -> Environment:
    """The environment of ``spec``, built if it is not there yet.

    Args:
        secrets: values for the placeholders of addresses; neither key, log nor error tells them.
        on_line: called on the event loop with every line of output, without terminal codes.

    Raises:
        BuildError: the first line of its message says the cause and the next step (see ``errors`` for the kinds).
    """
    asked = parse(spec.requirements, spec.constraints, spec.exclude_newer)
    key = key_of(spec.python_version, asked, spec.built_anew)
    found = find(key, settings)
    if found is not None and not to_import(spec.smoke_imports, found.smoked):
        touch(found)
        return found
    values = _filling(asked, secrets or {})
    hidden = (*values.values(), *((secrets or {})[name] for name in values))
    log = BuildLog(on_line, hidden)
    try:
        settings.environments.mkdir(parents=True, exist_ok=True)
        settings.uv_cache.mkdir(parents=True, exist_ok=True)
        return await _build_alone(spec, asked.filled(values), key, settings, log)
    except OSError as error:
        raise _disk_trouble(error, log) from error
    except BuildError as error:
        raise error.without(hidden) from None


def _filling(asked: Asked, secrets: Mapping[str, str]) -> dict[str, str]:
    """What addresses need of the secrets, fit for an address.

    Raises:
        BadRequirement: one is not set.
    """
    if missing := [name for name in asked.placeholders if name not in secrets]:
        raise BadRequirement(
            f"The requirements name the secret {missing[0]}, which is not set. Next: `fal secrets set {missing[0]}`, "
            "then deploy again."
        )
    return {name: quote(secrets[name], safe="") for name in asked.placeholders}


async def _build_alone(
    spec: EnvironmentSpec, asked: Asked, key: str, settings: BuildSettings, log: BuildLog
) -> Environment:
    wall = settings.wall_limit if settings.wall_limit is not None else plan.wall_limit(asked)
    async with _only_builder(key, settings, wall, log):
        folder = settings.environments / key
        folder.mkdir(exist_ok=True)
        limits = Limits(time.monotonic() + wall, wall, settings.silence_limit, folder, settings.disk_floor)
        one = _Build(spec, asked, key, folder, settings, limits, log)
        # Another builder may have finished it while this one waited.
        found = find(key, settings)
        return await one.check_new_imports(found) if found is not None else await one.run()


def _disk_trouble(error: OSError, log: BuildLog) -> BuildError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(DISK_FULL, log.tail)
    return BuildError(f"The builder could not use its folder: {error}. Next: check its owner and its disk.", log.tail)


@asynccontextmanager
async def _only_builder(key: str, settings: BuildSettings, wall: float, log: BuildLog) -> AsyncIterator[None]:
    """Hold the key's build lock, waiting for whoever has it."""
    started, said = time.monotonic(), -_WAITING_LINE_S
    while True:
        with try_lock(settings.environments, key, "build") as locked:
            if locked:
                yield
                return
        waited = time.monotonic() - started
        if waited - said >= _WAITING_LINE_S:
            said = waited
            log.say(f"waiting for another build of this environment ({waited:.0f} s)")
        if waited > wall + 60:
            raise LimitReached(
                f"Another build of this environment has not ended in {waited:.0f} s. "
                "Next: look for a stopped builder process on this machine.",
                log.tail,
            )
        await asyncio.sleep(_POLL_S)


@dataclass
class _Build:
    """One build under its lock."""

    spec: EnvironmentSpec
    asked: Asked
    key: str
    folder: Path
    settings: BuildSettings
    limits: Limits
    log: BuildLog
    seconds: dict[str, float] = field(default_factory=dict)

    async def run(self) -> Environment:
        """Try the planned sets until one installs and imports."""
        started = time.monotonic()
        await asyncio.to_thread(_remove_all, unfinished(self.folder))
        for note in self.asked.notes:
            self.log.say(note)
        self.limits.check_disk()
        interpreter = await find_interpreter(self.spec.python_version, self.settings)
        self.log.say(f"Building environment {self.key[:12]} with Python {self.spec.python_version} ({interpreter})")
        failures: list[BuildError] = []
        for attempt in await self._attempts():
            if not attempt.worth_trying(failures):
                continue
            if failures:
                self.log.say(f"That set does not work; trying {attempt.how} instead")
            try:
                built = await self._try(attempt, interpreter)
            except BuildError as error:
                if not error.other_versions_may_help:
                    raise error.with_tail(self.log.tail) from error
                failures.append(error)
                continue
            return await self._publish(built, started)
        raise _most_telling(failures, self.log)

    async def _attempts(self) -> tuple[plan.Attempt, ...]:
        major, minor = (int(part) for part in self.spec.python_version.strip().split(".")[:2])
        moment = None
        if plan.wants_the_moment_of_its_pins(self.asked):
            with self._stage("dates"):
                moment = await moment_of_the_pins(self.asked, self.settings, (major, minor), datetime.now(UTC))
            if moment is None and plan.mixes_pins_and_floating(self.asked):
                self.log.say("Resolving as written: the index does not date the exact pins, or they are recent.")
        held: tuple[str, ...] = ()
        if self.settings.torch_backend == "auto" and self.settings.cpu_only:
            held = cpu_constraints(self.asked, self.settings.find_links, (major, minor))
        return plan.attempts(self.asked, moment, held)

    async def _try(self, attempt: plan.Attempt, interpreter: Path) -> Environment:
        """One venv from one set of versions; its folders are removed again if it fails."""
        mark = uuid.uuid4().hex[:8]
        site = Site(self.folder / f"venv-{mark}", self.folder / f"work-{mark}", self.settings, self.limits, self.log)
        site.work.mkdir()
        keep = False
        try:
            with self._stage("venv"):
                await create_venv(site, interpreter)
            with self._stage("install"):
                await install_layers(site, self.asked, attempt)
            names = to_import(self.spec.smoke_imports, ())
            with self._stage("smoke"):
                await smoke_import(names, _room(site), self.limits, self.log)
            packages = await asyncio.to_thread(installed_packages, site.venv)
            keep = True
        finally:
            await asyncio.to_thread(_remove_all, [site.work] if keep else [site.work, site.venv])
        return Environment(
            key=self.key,
            path=site.venv,
            python=site.python,
            resolved=attempt.how,
            packages=packages,
            cpu_only=bool(attempt.cpu_constraints) and installed_cpu_build(packages),
            smoked=names,
        )

    async def _publish(self, built: Environment, started: float) -> Environment:
        with self._stage("flush"):
            size = await asyncio.to_thread(size_of, built.path)
            await asyncio.to_thread(flush_to_disk, built.path)
        self.seconds["total"] = time.monotonic() - started
        ready = replace(built, size=size, seconds={k: round(v, 3) for k, v in self.seconds.items()})
        await asyncio.to_thread(write_mark, ready)
        if ready.cpu_only:
            self.log.say("torch is held to its CPU build: this machine has no NVIDIA GPU and find-links offers one")
        stages = ", ".join(f"{name} {length:.1f}" for name, length in ready.seconds.items() if name != "total")
        self.log.say(
            f"Environment {self.key[:12]} is ready after {self.seconds['total']:.1f} s ({stages}): "
            f"{len(ready.packages)} packages {ready.resolved}, {size / 1e6:.0f} MB"
        )
        return ready

    async def check_new_imports(self, found: Environment) -> Environment:
        """A ready environment, and imports that nobody has tried in it yet. It stays whatever they do."""
        names = to_import(self.spec.smoke_imports, found.smoked)
        if names:
            mark = uuid.uuid4().hex[:8]
            site = Site(found.path, self.folder / f"work-{mark}", self.settings, self.limits, self.log)
            site.work.mkdir()
            try:
                await smoke_import(names, _room(site), self.limits, self.log)
            finally:
                await asyncio.to_thread(_remove_all, [site.work])
            found = replace(found, smoked=(*found.smoked, *names))
            await asyncio.to_thread(write_mark, found)
        touch(found)
        return found

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started


def _room(site: Site) -> SmokeRoom:
    return SmokeRoom(site.python, site.work, site.environment, site.settings.gpu_present)


def _remove_all(folders: list[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _most_telling(failures: list[BuildError], log: BuildLog) -> BuildError:
    """What to show when every set failed: a set that installed but did not import came furthest."""
    further = [failure for failure in failures if not isinstance(failure, Unsatisfiable)]
    best = (further or failures)[0]
    if len(failures) > 1:
        log.say(f"{len(failures)} sets of versions were tried; none works.")
    return best.with_tail(log.tail)
