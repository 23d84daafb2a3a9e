"""The smoke import: does what the app imports import? Writes the bytecode that cold starts need, on the way.

A start without bytecode takes 2.7 times as long; compiling everything takes longer than the one import that needs it.
Only modules that the environment itself provides can fail a build: a bundle's own modules are not here yet.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envbuilder.errors import SmokeImportFailed
from envbuilder.process import BuildLog, Limits, run_child
from envbuilder.requirements import INJECTED

#: What every runner imports before the app; their bytecode belongs to the environment too.
RUNTIME_IMPORTS = ("fastapi", "pydantic", "msgpack", "PIL.Image", "starlette.formparsers")
_SCRIPT = str(Path(__file__).with_name("smoke_script.py"))
#: One thread and no telemetry; the build machine has other work. Names as the libraries read them.
_QUIET = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TQDM_DISABLE": "1",
    "DO_NOT_TRACK": "1",
}
#: How an import fails for want of a GPU that the workers may well have.
_NO_GPU = ("libcuda.so", "libcudart", "libnvidia-ml", "no NVIDIA driver", "CUDA driver", "No CUDA GPUs", "nvcc")


@dataclass(frozen=True)
class SmokeRoom:
    """Where and how to run it: the environment's interpreter, a scratch folder, the child's variables."""

    python: Path
    work: Path
    environment: dict[str, str]
    gpu_present: bool


def to_import(wanted: Iterable[str], done: Iterable[str]) -> tuple[str, ...]:
    """Names still to be imported; the runner's own first, ``fal`` never (it is injected at run time)."""
    names = dict.fromkeys((*RUNTIME_IMPORTS, *(name.strip() for name in wanted)))
    already = set(done)
    return tuple(n for n in names if n and n not in already and n.partition(":")[0].partition(".")[0] != INJECTED)


async def smoke_import(names: Sequence[str], room: SmokeRoom, limits: Limits, log: BuildLog) -> None:
    """Import ``names`` once in the environment, in a process of their own.

    Raises:
        SmokeImportFailed: with the module's own traceback.
        LimitReached, DiskFull: see ``Limits``.
    """
    order, result = room.work / "smoke-order.json", room.work / "smoke-result.json"
    order.write_text(json.dumps(list(names)))
    result.write_text("{}")
    finished = await run_child(
        [str(room.python), "-I", _SCRIPT, str(order), str(result)],
        doing="The smoke import",
        environment={**room.environment, **_QUIET},
        cwd=room.work,
        limits=limits,
        log=log,
    )
    state = json.loads(result.read_text())
    if finished.status != 0:
        raise SmokeImportFailed(
            f'Importing "{state.get("importing")}" ended the Python process (exit status {finished.status}). '
            "Next: try another version of that package, which may fit this machine.\n" + finished.text,
            log.tail,
        )
    failures = [outcome for outcome in state["outcomes"] if outcome["error"] is not None]
    fatal = [outcome for outcome in failures if not _tolerated(outcome, room.gpu_present, log)]
    if fatal:
        log.say(fatal[0]["traceback"])
        raise SmokeImportFailed(_message(fatal), log.tail)


def _tolerated(outcome: dict[str, Any], gpu_present: bool, log: BuildLog) -> bool:
    """Failures that say nothing against the environment; each leaves a line."""
    name, error = outcome["name"], outcome["error"]
    if not outcome["installed"]:
        log.say(f'smoke import: "{name}" is not part of the environment; skipped (the app\'s own module, or optional)')
        return True
    if not gpu_present and any(sign in error for sign in _NO_GPU):
        log.say(f'smoke import: "{name}" needs a GPU to import and this machine has none; not checked ({error})')
        return True
    return False


def _message(fatal: Sequence[dict[str, Any]]) -> str:
    first = fatal[0]
    others = f" (and {len(fatal) - 1} more: {', '.join(o['name'] for o in fatal[1:])})" if len(fatal) > 1 else ""
    text: str = first["traceback"]
    return (
        f'Installed, but "{first["name"]}" does not import{others}: {first["error"].splitlines()[-1]}. '
        "Next: pin versions that fit together, or set exclude_newer to a date when they did.\n" + text
    )
