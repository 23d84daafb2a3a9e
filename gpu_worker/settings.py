"""Settings of the host agent; workers get theirs from it, in their assignment."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from gpu_worker.inventory import GpuSource, gpu_source, nvml_gpus
from gpu_worker.runner_process import passed_environ
from scheduler.store import files_variables

#: Less is a start that always fails: threads of the runner's own, bytes of Python with fal and nothing else.
_FEWEST_TASKS, _LEAST_MEMORY, _MOST_MEMORY = 32, 128 * 1024**2, 2**60


@dataclass(frozen=True)
class ZygoteLimits:
    """Bounds of one host's zygotes.

    Args:
        count: how many; 0 switches them off.
        memory: bytes that all together may hold.
        idle_seconds: one that no worker came from for so long ends.
    """

    count: int = 4
    memory: int = 8 * 1024**3
    idle_seconds: float = 3600.0


@dataclass(frozen=True)
class AgentSettings:
    """What one host offers and how its workers run. Times in seconds.

    Args:
        host_id: the host's name on the platform; two agents with one name on one data folder exclude each other.
        offer: ``"GPU-A100=2"`` when the operator limits or renames what is offered; None: what the driver shows.
        cpu_fallback: the operator lets the CPU stand in for GPU types.
        sdk_dir: folder that holds ``fal`` and nothing else that an app could import by accident.
        public_url, local_url: where the platform is reached, by everybody and on this host; None: not known.
        app_data: the persistent folder that apps share and see as ``/data``; None: ``data/`` in the data folder.
        passed_environ: what runners inherit of this process's environment.
        stop_grace: how long workers may drain when the agent is stopped.
        ping_seconds: pause between two pings of a runner; three unanswered in a row mean that it hangs.
        health_seconds: pause between two health checks of a runner whose app has one.
        files: where users' files are kept, by variable; empty: in the data folder.
        log_level: of the agent's own lines on standard error.
        zygotes: bounds of the processes that have imported ahead (see ``zygotes``).
        runner_tasks: processes and threads that one runner may have, with all that it starts; 0: no limit.
        runner_memory: bytes of memory that they may take together; 0: no limit.
        cpu_overcommit, memory_overcommit: how many times the machine's cores and RAM workers of CPU types may take
            together, by what their types say; 0: any number.
        suspends: idle workers of this host that may be suspended at once, so that others have their cards; 0: none.
    """

    redis_url: str
    data_dir: Path
    sdk_dir: Path
    host_id: str
    offer: str | None = None
    cpu_fallback: bool = False
    public_url: str | None = None
    local_url: str | None = None
    gpu_source: GpuSource | None = None
    app_data: Path | None = None
    passed_environ: Mapping[str, str] = field(default_factory=dict)
    stop_grace: float = 40.0
    ping_seconds: float = 8.0
    health_seconds: float = 15.0
    files: Mapping[str, str] = field(default_factory=dict)
    log_level: str = "INFO"
    zygotes: ZygoteLimits = field(default_factory=ZygoteLimits)
    runner_tasks: int = 8192
    runner_memory: int = 0
    suspends: int = 0
    cpu_overcommit: float = 8.0
    memory_overcommit: float = 1.5

    @property
    def platform_url(self) -> str | None:
        """Where apps of this host call the platform."""
        return self.public_url or self.local_url

    @property
    def simulated_gpus(self) -> bool:
        """Whether the cards are not there."""
        return self.gpu_source not in (None, nvml_gpus)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> AgentSettings:
        """Read ``KEEPWARM_*``.

        Raises:
            ValueError: naming the variable and what is wrong with it.
        """
        redis_url = environ.get("KEEPWARM_REDIS_URL")
        if not redis_url:
            raise ValueError("KEEPWARM_REDIS_URL is not set; `keepwarm up` sets it, else write redis://host:port/0")
        app_data = environ.get("KEEPWARM_APP_DATA")
        tasks, memory = runner_limits(environ)
        names = tuple(name.strip() for name in environ.get("KEEPWARM_RUNNER_ENV", "").split(",") if name.strip())
        return cls(
            redis_url=redis_url,
            data_dir=Path(environ.get("KEEPWARM_DATA") or "~/.keepwarm").expanduser().absolute(),
            sdk_dir=Path(environ.get("KEEPWARM_SDK_DIR") or _own_sdk()).absolute(),
            host_id=environ.get("KEEPWARM_HOST_ID") or socket.gethostname(),
            offer=environ.get("KEEPWARM_OFFER") or None,
            cpu_fallback=environ.get("KEEPWARM_CPU_FALLBACK", "") not in ("", "0", "false"),
            public_url=(environ.get("KEEPWARM_PUBLIC_URL") or "").rstrip("/") or None,
            local_url=environ.get("KEEPWARM_LOCAL_URL") or None,
            gpu_source=gpu_source(environ),
            app_data=Path(app_data).expanduser().absolute() if app_data else None,
            passed_environ=passed_environ(environ, names),
            stop_grace=_seconds(environ, "KEEPWARM_STOP_GRACE", 40.0),
            ping_seconds=_seconds(environ, "KEEPWARM_PING_SECONDS", 8.0),
            health_seconds=_seconds(environ, "KEEPWARM_HEALTH_SECONDS", 15.0),
            files=files_variables(environ),
            log_level=_level(environ.get("KEEPWARM_LOG_LEVEL", "INFO").upper()),
            zygotes=ZygoteLimits(
                count=_whole(environ, "KEEPWARM_ZYGOTES", ZygoteLimits.count),
                memory=_whole(environ, "KEEPWARM_ZYGOTES_MAX_BYTES", _some_memory()),
                idle_seconds=_seconds(environ, "KEEPWARM_ZYGOTE_IDLE_SECONDS", ZygoteLimits.idle_seconds),
            ),
            runner_tasks=tasks,
            runner_memory=memory,
            suspends=_whole(environ, "KEEPWARM_SUSPEND", 0),
            cpu_overcommit=_times(environ, "KEEPWARM_CPU_OVERCOMMIT", cls.cpu_overcommit),
            memory_overcommit=_times(environ, "KEEPWARM_MEMORY_OVERCOMMIT", cls.memory_overcommit),
        )


def _own_sdk() -> str:
    """The folder of the installed ``fal``; in a checkout it holds nothing else."""
    import fal

    return os.path.dirname(os.path.dirname(os.path.abspath(fal.__file__)))


def _level(name: str) -> str:
    return name if name in logging.getLevelNamesMapping() else "INFO"


def runner_limits(environ: Mapping[str, str]) -> tuple[int, int]:
    """How many processes and threads, and how many bytes of memory a runner may have; 0: no limit.

    Raises:
        ValueError: naming the variable and what is wrong with it.
    """
    tasks = _whole(environ, "KEEPWARM_RUNNER_TASKS", AgentSettings.runner_tasks)
    if 0 < tasks < _FEWEST_TASKS:
        raise ValueError(f"KEEPWARM_RUNNER_TASKS={tasks} is not enough for a runner; write {_FEWEST_TASKS} or more")
    text = environ.get("KEEPWARM_RUNNER_MEMORY_GB") or "0"
    try:
        memory = int(float(text) * 1024**3)
    except (ValueError, OverflowError):
        memory = -1
    if memory != 0 and not _LEAST_MEMORY <= memory <= _MOST_MEMORY:
        least = f"{_LEAST_MEMORY / 1024**3:g}"
        raise ValueError(f"KEEPWARM_RUNNER_MEMORY_GB={text!r} is no number of GB from {least} up; 0 is no limit")
    return tasks, memory


def _some_memory() -> int:
    """An eighth of this machine's memory."""
    return psutil.virtual_memory().total // 8


def _whole(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name)
    if not text:
        return default
    if not text.strip().isdecimal():
        raise ValueError(f"{name}={text!r} is not a whole number of 0 or more")
    return int(text)


def _times(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name)
    if not text:
        return default
    if re.fullmatch(r"\d{1,4}(\.\d{1,3})?", text) is None:
        raise ValueError(f"{name}={text!r} is no factor; write for example {default:g}, or 0 for any number of workers")
    return float(text)


def _seconds(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError as error:
        raise ValueError(f"{name}={text!r} is not a number of seconds") from error
    if value <= 0:
        raise ValueError(f"{name}={text!r} must be more than 0 seconds")
    return value
