"""``keepwarm doctor``: what this machine has, what is missing, how to get it, and whether an app could run here.

Looks only; starts nothing that stays and changes nothing. Must stay quick (well under half a second): ``fal run`` asks
it first.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from keepwarm import redis_server

#: Less free space than this and a torch environment will not fit, in bytes.
SPACE_WANTED = 10 * 1024**3

Verdict = Literal["ok", "warn", "missing"]


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked at, how it stands, and the next step when it is not fine."""

    subject: str
    verdict: Verdict
    detail: str
    fix: str | None = None


@dataclass(frozen=True)
class Report:
    """Everything found; ``refusal`` is set when the asked machine types cannot be had here."""

    findings: tuple[Finding, ...]
    machine_types: tuple[str, ...]
    refusal: str | None

    @property
    def healthy(self) -> bool:
        return self.refusal is None and all(finding.verdict != "missing" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "healthy": self.healthy}


def machine_refusal(machine_types: Sequence[str], *, cpu_fallback: bool, offer: str | None) -> str | None:
    """Why none of ``machine_types`` can be had on this machine, or None when one can."""
    from fal._offers import refusal

    host = _this_host(cpu_fallback, offer)
    return refusal(tuple(machine_types), [host])


def _this_host(cpu_fallback: bool, offer: str | None) -> Any:
    from gpu_worker.inventory import local_host

    return local_host(cpu_fallback=cpu_fallback, offer=offer)


def examine(data: Path, machine_types: Sequence[str], *, cpu_fallback: bool, offer: str | None) -> Report:
    """Look at the machine.

    Args:
        data: the data folder that a platform would use.
        machine_types: types that an app asks for, tried in order; empty when no app is meant.
        cpu_fallback: whether the operator would let the CPU stand in for GPU types.
        offer: as ``keepwarm up --offer``.
    """
    host = _this_host(cpu_fallback, offer)
    findings = [_python(), _redis(), _uv(), _gpu(host), _space(data), _app_data(data), _limits(), _sandbox()]
    if host.gpus or os.environ.get("KEEPWARM_SUSPEND", "0") != "0":
        findings.insert(4, _suspending())
    refused = machine_refusal(machine_types, cpu_fallback=cpu_fallback, offer=offer) if machine_types else None
    return Report(tuple(findings), tuple(host.machine_types), refused)


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("Python", "ok", f"{version} ({sys.executable})")


def _redis() -> Finding:
    if url := os.environ.get("KEEPWARM_REDIS_URL"):
        return _given_redis(url)
    try:
        binary = redis_server.find_binary()
    except redis_server.RedisMissing as error:
        return Finding("Redis", "missing", "no server to embed", str(error))
    return Finding("Redis", "ok", f"embedded, version {binary.version} from {binary.origin} ({binary.path})")


def _given_redis(url: str) -> Finding:
    from scheduler.store.errors import StoreError

    given = f"given by KEEPWARM_REDIS_URL ({url.split('@')[-1]})"
    try:
        version = asyncio.run(_version(url))
    except (StoreError, ValueError) as error:
        fix = "start that server or correct the variable; without it the embedded server is used"
        return Finding("Redis", "missing", f"{given}: {error}", fix)
    if tuple(map(int, version.split(".")[:2])) < redis_server.MINIMUM_VERSION:
        wanted = ".".join(map(str, redis_server.MINIMUM_VERSION))
        fix = f"upgrade it to {wanted} or newer; without the variable the embedded server is used"
        return Finding("Redis", "missing", f"{given} is version {version}", fix)
    return Finding("Redis", "ok", f"{given}, version {version}")


async def _version(url: str) -> str:
    """What a server says it is; for Valkey, the Redis that it is compatible with."""
    from scheduler.store.connection import Address, Redis

    redis = Redis(Address(url))
    try:
        await redis.link.open(patience=1.0)
        info = await redis.command("INFO", "server", patience=1.0)
    finally:
        await redis.link.close()
    return str(info.decode().partition("redis_version:")[2].split()[0])


def _uv() -> Finding:
    try:
        from uv import find_uv_bin

        return Finding("uv", "ok", find_uv_bin())
    except (ImportError, FileNotFoundError):
        if found := shutil.which("uv"):
            return Finding("uv", "ok", found)
        return Finding("uv", "missing", "builds environments", "pip install uv")


def _gpu(host: Any) -> Finding:
    if host.gpus:
        names = ", ".join(f"{name} ({memory} MiB)" for _, name, memory, _ in host.gpus)
        return Finding("GPU", "ok", names)
    standing = "; the CPU stands in for GPU types (--cpu-fallback)" if host.cpu_fallback else ""
    return Finding(
        "GPU",
        "warn",
        f"no NVIDIA GPU answers{standing}",
        "apps with a GPU machine type are refused here; install the NVIDIA driver (nvidia-smi must list the card), "
        "or let the CPU stand in, slowly, with --cpu-fallback",
    )


def _suspending() -> Finding:
    """Whether idle workers can lend their cards; without it they are ended, so that it is no fault of the machine."""
    from gpu_worker.suspension import SuspensionFailed, run_checkpoint

    try:
        asyncio.run(run_checkpoint("probe"))
    except SuspensionFailed as failure:
        return Finding("suspending idle workers", "warn", str(failure), "they are ended when their keep_alive is over")
    return Finding("suspending idle workers", "ok", "the driver can; KEEPWARM_SUSPEND=4 lets four stand by")


def _space(data: Path) -> Finding:
    existing = data
    while not existing.exists():
        existing = existing.parent
    if not os.access(existing, os.W_OK):
        return Finding("data folder", "missing", f"{data} cannot be written", "choose another with --data")
    free = shutil.disk_usage(existing).free
    detail = f"{data}, {free / 1024**3:.0f} GiB free"
    if free < SPACE_WANTED:
        return Finding("data folder", "warn", detail, "a torch environment takes 1 to 6 GiB; free some space")
    return Finding("data folder", "ok", detail)


def _app_data(data: Path) -> Finding:
    folder = Path(os.environ.get("KEEPWARM_APP_DATA") or data / "data").expanduser().absolute()
    tried = folder
    while not tried.is_dir():
        tried = tried.parent  # made when it is needed
    done = subprocess.run(
        [sys.executable, "-m", "gpu_worker.app_data", str(tried)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = (done.stdout or done.stderr).strip().rpartition("\n")[2]
        return Finding("/data", "warn", "apps that name /data will not find it here", reason)
    return Finding("/data", "ok", f"apps see {folder} there")


def _limits() -> Finding:
    from gpu_worker import runner_group
    from gpu_worker.settings import runner_limits

    try:
        tasks, memory = runner_limits(os.environ)
    except ValueError as error:
        return Finding("limits", "missing", "of one runner", str(error))
    wanted = {runner_group.TASKS: tasks, runner_group.MEMORY: memory}
    reasons = runner_group.limits_that_cannot_be_enforced(controller for controller, most in wanted.items() if most)
    if reasons:
        what = " and the ".join(runner_group.NAMES[controller] for controller in reasons)
        return Finding("limits", "warn", f"nothing limits the {what} of a runner", "; ".join(reasons.values()))
    most = f"{tasks} processes and threads" if tasks else "any number of processes and threads"
    share = f"{memory / 1024**3:g} GB of memory" if memory else "any amount of memory (KEEPWARM_RUNNER_MEMORY_GB)"
    return Finding("limits", "ok", f"a runner may have {most} and {share}")


def _sandbox() -> Finding:
    return Finding(
        "isolation",
        "warn",
        "workers are separate processes with a clean environment, not sandboxes",
        "run only code that you trust, as you would run it by hand",
    )
