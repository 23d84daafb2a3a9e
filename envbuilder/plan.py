"""Which sets of versions to try, in which order. Pure.

Exact pins beside floating names rot: the floating ones move on until the set no longer imports. Such a list is resolved
as of the pins first; a list of pins only, as written first. The other way is the fallback of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from envbuilder.errors import BuildError, Unsatisfiable
from envbuilder.key import RUNTIME_NAMES
from envbuilder.requirements import Asked, rfc3339

#: When an attempt is worth its time, given how the ones before it failed.
Worth = Literal["always", "after_runtime", "after_torch"]

#: Names that bring, or may bring, CUDA libraries of gigabytes.
_CUDA_SIZED = """
    torch torchvision torchaudio tensorflow jax jaxlib vllm xformers flash-attn bitsandbytes tensorrt onnxruntime-gpu
    accelerate deepspeed triton sentence-transformers lightning pytorch-lightning
"""
_WALL_S = 15 * 60.0
_WALL_CUDA_S = 60 * 60.0


@dataclass(frozen=True)
class Attempt:
    """One choice of versions.

    Args:
        how: shown to users and recorded with the environment.
        runtime_may_be_newer: the runner's own requirements are exempt from the date.
        cpu_constraints: lines that hold torch to a local CPU build.
    """

    how: str
    exclude_newer: str | None = None
    runtime_may_be_newer: bool = False
    cpu_constraints: tuple[str, ...] = ()
    worth: Worth = "always"

    def worth_trying(self, failures: Sequence[BuildError]) -> bool:
        """Whether this attempt may do better than those that failed before it."""
        if self.worth == "after_runtime":
            last = failures[-1] if failures else None
            return isinstance(last, Unsatisfiable) and any(name in last.message for name in RUNTIME_NAMES)
        if self.worth == "after_torch":
            return any("torch" in failure.message for failure in failures)
        return True


def mixes_pins_and_floating(asked: Asked) -> bool:
    """Whether exact pins and floating names stand side by side."""
    return any(w.exact_version for w in asked.wanted) and any(w.floats for w in asked.wanted)


def wants_the_moment_of_its_pins(asked: Asked) -> bool:
    """Whether the index should be asked when the pins came out. The app's own date or constraints settle it already."""
    overridden = asked.exclude_newer is not None or bool(asked.constraints)
    return not overridden and any(w.exact_version for w in asked.wanted)


def attempts(asked: Asked, moment: datetime | None, cpu_constraints: tuple[str, ...]) -> tuple[Attempt, ...]:
    """What to try, best first. ``moment``: when the pins came out, if known and past."""
    if asked.exclude_newer is not None:
        choices = [Attempt(f"as of {asked.exclude_newer} (exclude_newer)", asked.exclude_newer)]
    elif moment is None:
        choices = [Attempt("as written, with constraints" if asked.constraints else "as written")]
    else:
        day = f"as of the pins {moment:%Y-%m-%d}"
        dated = Attempt(day, rfc3339(moment))
        newer = replace(dated, how=f"{day}, runtime newer", runtime_may_be_newer=True, worth="after_runtime")
        written = Attempt("as written")
        choices = [dated, newer, written] if mixes_pins_and_floating(asked) else [written, dated, newer]
    if not cpu_constraints:
        return tuple(choices)
    held = [replace(choice, cpu_constraints=cpu_constraints) for choice in choices]
    return (*held, *(replace(choice, worth="after_torch") for choice in choices))


def wall_limit(asked: Asked) -> float:
    """Seconds that a build may take: an hour where CUDA libraries may be fetched, else 15 minutes."""
    names = {wanted.name or "" for wanted in asked.wanted}
    return _WALL_CUDA_S if names & set(_CUDA_SIZED.split()) or any(n.startswith("nvidia-") for n in names) else _WALL_S
