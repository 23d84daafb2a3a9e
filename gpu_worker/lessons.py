"""What an app's start has shown about the next one: modules to import ahead, files to read ahead.

Owns the files that keep it, one per app, bundle, environment and kind of device: ``starts/`` in the data folder.
Supervisors and the agent write them, each time as a whole; of two writers the later one wins. Leaves noticing to the
runner (``fal._runner.lessons``). Standard library only: supervisors read it before anything else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scheduler.store.records import WorkerRecord

MAX_MODULES = 20_000
MAX_FILES = 512
MAX_NAME = 200
#: A zygote that had to leave out more than so many packages would save little.
MAX_LEFT_OUT = 16
#: Files that no start has written or used for so long are deleted.
KEPT_SECONDS = 90 * 86400.0


@dataclass(frozen=True)
class Lessons:
    """What is known. ``modules`` in the order of their import.

    Args:
        left_out: packages that a zygote must not import, because they start threads.
        no_zygote: why this environment's runners are never forked; None: they may be.
        doubted: a forked runner did not start. The next start is plain; should it succeed, ``no_zygote`` says so.
    """

    modules: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    cpu_fallback_for: str | None = None
    left_out: tuple[str, ...] = ()
    no_zygote: str | None = None
    doubted: bool = False


def file_of(data_dir: Path, worker: WorkerRecord, environment_key: str, bundle_hash: str) -> Path:
    """Where it is kept.

    Nothing is shared where imports may differ: by what the app's code does before them, by the packages, or by the
    variables of workers with and without GPUs.
    """
    device = worker.cpu_fallback_for or ("gpu" if worker.gpu_ids else "cpu")
    code = hashlib.sha256("\n".join((worker.app, environment_key, bundle_hash, device)).encode()).hexdigest()
    return data_dir / "starts" / f"{worker.app.replace(os.sep, '+')}+{code[:16]}.json"


def read(file: str | Path | None) -> Lessons:
    """What is known; nothing when there is no such file or it cannot be read."""
    try:
        raw: dict[str, Any] = json.loads(Path(file or "").read_bytes())
        known = {f.name: raw[f.name] for f in fields(Lessons) if f.name in raw}
        return Lessons(**known | {name: tuple(known.get(name, ())) for name in ("modules", "files", "left_out")})
    except (OSError, ValueError, TypeError, AttributeError):
        return Lessons()


def write(file: str | Path, known: Lessons) -> None:
    """Replace what is kept.

    Raises:
        OSError: the disk has no room for it, say.
    """
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(json.dumps(asdict(known)), encoding="utf-8")
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def after_start(
    known: Lessons, modules: Iterable[str], files: Iterable[str], *, cpu_fallback_for: str | None, forked: bool
) -> Lessons:
    """What is known after a start that succeeded. A forked one says nothing about modules: it has the zygote's."""
    named = known.modules if forked else tuple(name for name in modules if len(name) <= MAX_NAME)[:MAX_MODULES]
    reason = known.no_zygote
    if known.doubted and not forked:
        reason = reason or "a forked runner did not start where a plainly started one did"
    return replace(
        known,
        modules=named,
        files=tuple(dict.fromkeys(files))[:MAX_FILES],
        cpu_fallback_for=cpu_fallback_for,
        no_zygote=reason,
        doubted=False,
    )


def after_refusal(known: Lessons, why: str, package: str | None) -> Lessons:
    """What is known after a zygote said that it must not be forked: without the package, the next one may be."""
    if package is None or package in known.left_out or len(known.left_out) >= MAX_LEFT_OUT:
        return replace(known, no_zygote=why)
    return replace(known, left_out=(*known.left_out, package))


def forget_old(data_dir: Path) -> None:
    """Delete what no start has needed for long."""
    limit = time.time() - KEPT_SECONDS
    for path in (data_dir / "starts").glob("*.json"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < limit:
                path.unlink()
