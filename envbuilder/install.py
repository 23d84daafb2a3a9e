"""Drives uv: one venv, then the layers in order. Explicit arguments, explicit environment, and uv's words kept.

Requirements travel in files, not arguments: an address may hold a token, and every user of the machine sees arguments.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import uv
from packaging.utils import canonicalize_name

from envbuilder.errors import DISK_FULL, BuildError, DiskFull, InstallFailed, SourceBuildFailed, Unsatisfiable
from envbuilder.key import RUNTIME_NAMES, RUNTIME_REQUIREMENTS
from envbuilder.plan import Attempt
from envbuilder.process import BuildLog, Finished, Limits, run_child
from envbuilder.requirements import Asked, Layer, Wanted
from envbuilder.settings import BuildSettings

_UV = ("--no-config", "--color", "never", "--no-python-downloads")
#: Later than any upload: exempts one name from ``--exclude-newer``.
_NO_CUTOFF = "9000-01-01T00:00:00Z"
#: Dependencies of the runner's requirements, so that current ones can be had beside an old set.
_RUNTIME_DEPENDENCIES = """
    starlette pydantic-core annotated-types annotated-doc typing-extensions typing-inspection anyio idna
"""
_FICLONE = 0x40049409
_LONGEST_CAUSE = 400  # characters; a longer one is no line to read


@dataclass(frozen=True)
class Site:
    """Where one attempt is built: the venv to be, a scratch folder, and what its children may use."""

    venv: Path
    work: Path
    settings: BuildSettings
    limits: Limits
    log: BuildLog

    @property
    def python(self) -> Path:
        return self.venv / "bin" / "python"

    @property
    def environment(self) -> dict[str, str]:
        """A home and a temp folder of its own: build scripts leave things behind."""
        home, temporary = self.work / "home", self.work / "tmp"
        home.mkdir(exist_ok=True)
        temporary.mkdir(exist_ok=True)
        return {
            **self.settings.child_environment,
            "HOME": str(home),
            "TMPDIR": str(temporary),
            "UV_CACHE_DIR": str(self.settings.uv_cache),
        }

    async def uv(self, doing: str, *arguments: str, environment: dict[str, str] | None = None) -> Finished:
        return await run_child(
            [uv.find_uv_bin(), *arguments, *_UV],
            doing=doing,
            environment=environment or self.environment,
            cwd=self.work,
            limits=self.limits,
            log=self.log,
        )


async def create_venv(site: Site, interpreter: Path) -> None:
    """An empty venv at its final path.

    Raises:
        BuildError: uv could not make it.
    """
    finished = await site.uv(
        "The venv", "venv", "--quiet", "--no-project", "--python", str(interpreter), str(site.venv)
    )
    if finished.status != 0:
        raise BuildError(
            f"No venv could be made with {interpreter}; uv says why. Next: try another python_version in the class.\n"
            f"{finished.text}"
        )


async def install_layers(site: Site, asked: Asked, attempt: Attempt) -> None:
    """Install every layer; the runner's own requirements go beside the first, unless the user names them.

    Raises:
        BuildError: in uv's words, after a first line with the cause and the next step.
    """
    layers = asked.layers or (Layer(),)
    runtime = runtime_requirements(asked)
    bounds = [*(wanted.text for wanted in asked.constraints), *attempt.cpu_constraints]
    constraints = site.work / "constraints.txt" if bounds else None
    if constraints is not None:
        constraints.write_text("\n".join(bounds) + "\n")
    for number, layer in enumerate(layers, start=1):
        shown = ", ".join(wanted.shown for wanted in layer.wanted) or "the runner's requirements only"
        step = f"layer {number} of {len(layers)}" if len(layers) > 1 else "packages"
        site.log.say(f"Installing {step} {attempt.how}: {shown}")
        lines = [_line(wanted, site) for wanted in layer.wanted] + (list(runtime) if number == 1 else [])
        listing = site.work / f"layer-{number}.txt"
        listing.write_text("\n".join(lines) + "\n")
        arguments = _install_arguments(site, asked, layer, attempt, listing, constraints)
        environment = site.environment | _index_variables(layer, site.settings)
        finished = await site.uv("The install", *arguments, environment=environment)
        if finished.status != 0:
            raise failure(finished, site.log.tail)


def _line(wanted: Wanted, site: Site) -> str:
    """A requirement as uv gets it: what was sent along lies in the scratch folder, under the name that it had.

    Raises:
        InstallFailed: it is not on this machine.
    """
    if wanted.uploaded is None:
        return wanted.text
    sha256, name = wanted.uploaded
    place = site.work / sha256[:16] / name
    source = site.settings.uploaded / sha256
    if not source.is_file():
        raise InstallFailed(
            f"What was sent along for {wanted.name} is not in {site.settings.uploaded}. Next: deploy again; the "
            "builder and the gateway must share the data folder."
        )
    place.parent.mkdir(exist_ok=True)
    shutil.copyfile(source, place)
    return wanted.text.replace(f"upload:{sha256}/{name}", place.as_uri())


def runtime_requirements(asked: Asked) -> tuple[str, ...]:
    """What the runner needs and the user does not name: the user's own pin of such a package wins."""
    named = {wanted.name for wanted in asked.wanted}
    return tuple(line for name, line in zip(RUNTIME_NAMES, RUNTIME_REQUIREMENTS, strict=True) if name not in named)


def exempt_from_date(asked: Asked) -> tuple[str, ...]:
    """The runner's packages and theirs, less what the user names: that keeps its date."""
    named = {wanted.name for wanted in asked.wanted}
    return tuple(name for name in (*RUNTIME_NAMES, *_RUNTIME_DEPENDENCIES.split()) if name not in named)


def _install_arguments(
    site: Site, asked: Asked, layer: Layer, attempt: Attempt, listing: Path, constraints: Path | None
) -> list[str]:
    settings = site.settings
    arguments = ["pip", "install", "--python", str(site.python), "--link-mode", link_mode(settings)]
    arguments += ["--requirements", str(listing)]
    if constraints is not None:
        arguments += ["--constraints", str(constraints)]
    if layer.pre:
        arguments += ["--prerelease", "allow"]
    if not settings.source_builds:
        arguments += ["--no-build"]
    if settings.torch_backend not in ("auto", "index"):
        arguments += ["--torch-backend", settings.torch_backend]
    if attempt.exclude_newer is not None:
        arguments += ["--exclude-newer", attempt.exclude_newer]
    for name in exempt_from_date(asked) if attempt.runtime_may_be_newer else ():
        arguments += ["--exclude-newer-package", f"{name}={_NO_CUTOFF}"]
    return arguments


def _index_variables(layer: Layer, settings: BuildSettings) -> dict[str, str]:
    """Indexes travel as variables: their addresses may hold passwords."""
    variables = {}
    if default := layer.index_url or settings.default_index:
        variables["UV_DEFAULT_INDEX"] = default
    if extra := (*layer.extra_index_urls, *settings.extra_indexes):
        variables["UV_EXTRA_INDEX_URL"] = " ".join(extra)
    if places := (*layer.find_links, *settings.find_links):
        variables["UV_FIND_LINKS"] = ",".join(places)
    return variables


def link_mode(settings: BuildSettings) -> str:
    """uv's word for ``settings.link_mode``. Where a filesystem cannot clone, uv's ``clone`` hard-links: ask first."""
    if settings.link_mode not in ("auto", "clone"):
        return settings.link_mode
    return "clone" if can_clone(settings.uv_cache, settings.environments) else "copy"


def can_clone(source_folder: Path, target_folder: Path) -> bool:
    """Whether a file of one folder can be cloned (copy-on-write) into the other; tried with one small file."""
    try:
        with (
            tempfile.NamedTemporaryFile(dir=source_folder) as source,
            tempfile.NamedTemporaryFile(dir=target_folder) as target,
        ):
            source.write(b"\0" * 4096)
            source.flush()
            fcntl.ioctl(target.fileno(), _FICLONE, source.fileno())
            return True
    except OSError:
        return False


def failure(finished: Finished, tail: Sequence[str]) -> BuildError:
    """uv's failure as one of ours: a first line with cause and next step, then uv's own words."""
    text = finished.text
    if "No space left on device" in text or "os error 28" in text:
        return DiskFull(DISK_FULL, tail)
    if "No solution found" in text:
        explanation = "error: No solution found" + text.partition("No solution found")[2]
        return Unsatisfiable(
            f"The requirements cannot be met: {_cause(explanation)} "
            f"Next: correct or loosen the lines named here.\n{explanation}",
            tail,
        )
    if "build backend returned an error" in text or "Failed to build" in text:
        return SourceBuildFailed(
            "A package has no wheel that fits and did not build from its source. "
            f"Next: pick a version with a wheel for this Python; what the build said names what it misses.\n{text}",
            tail,
        )
    if any(sign in text for sign in ("error sending request", "Failed to fetch", "dns error", "retries in")):
        return InstallFailed(
            "An index or a download could not be reached. Next: check the builder's network, proxy and index "
            f"settings (UV_DEFAULT_INDEX, UV_EXTRA_INDEX_URL).\n{text}",
            tail,
        )
    return InstallFailed(
        "uv could not install the packages, and says why. Next: correct `requirements` in the class and run the same "
        f"command again.\n{text}",
        tail,
    )


def _cause(explanation: str) -> str:
    """uv's reasoning as one paragraph; of a long one its end, which names the requirement that does not fit."""
    reasoning = explanation.partition("cause:")[2].partition("\n\n")[0]
    steps = [" ".join(step.split()) for step in re.split(r"\n\s*(?=And because )", reasoning)]
    for kept in (steps, [steps[0], "…", steps[-1]], ["…", steps[-1]]):
        if steps[-1] and len(text := " ".join(kept)) <= _LONGEST_CAUSE:
            return text
    return "uv's own words say why."


def installed_packages(venv: Path) -> tuple[str, ...]:
    """``name==version`` of all distributions in ``venv``, sorted."""
    folders = [str(folder) for folder in venv.glob("lib/python*/site-packages")]
    found = importlib.metadata.distributions(path=folders)
    return tuple(sorted(f"{canonicalize_name(d.metadata['Name'])}=={d.version}" for d in found if d.metadata["Name"]))
