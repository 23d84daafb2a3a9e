"""The bad day: processes of a running platform are killed and frozen at random moments."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from dataclasses import dataclass, field

import psutil

from tests.chaos.ledger import Ledger

#: Which command lines are whose; the first that fits.
ROLES: tuple[tuple[str, str], ...] = (
    ("supervisor", "gpu_worker.supervisor"),
    ("runner", "fal._runner"),
    ("agent", "gpu_worker"),
    ("gateway", "gateway"),
    ("scheduler", "scheduler"),
    ("jobs", "keepwarm.jobs"),
)


@dataclass(frozen=True)
class Fault:
    """Kill one process of a role, or freeze it for a time between ``shortest`` and ``longest`` seconds."""

    role: str
    shortest: float | None = None
    longest: float | None = None

    @property
    def name(self) -> str:
        return f"{'kill' if self.shortest is None else 'freeze'} {self.role}"


#: One round; it is shuffled, so that every fault happens in every round. Frozen for 6 s, a scheduler has lost its lead
#: (3 s) and Redis' clients have given their connections up (5 s); a supervisor frozen for 25 s counts as dead (20 s),
#: and wakes up with a result that nobody wants any more.
ROUND: tuple[Fault, ...] = (
    *(Fault("runner"), Fault("runner"), Fault("runner"), Fault("runner", 1, 4), Fault("runner", 4, 8)),
    *(Fault("supervisor"), Fault("supervisor"), Fault("supervisor", 1, 4), Fault("supervisor", 24, 26)),
    *(Fault("scheduler"), Fault("scheduler"), Fault("scheduler", 4, 6)),
    *(Fault("gateway"), Fault("gateway"), Fault("gateway", 0.5, 3)),
    *(Fault("redis"), Fault("redis"), Fault("redis", 1, 6)),
    Fault("agent"),
)
#: For runs that may wait a minute: a delivery that died with its sender is tried again only then.
LONG_ROUND = (*ROUND, Fault("jobs"), Fault("jobs", 2, 5), Fault("supervisor", 31, 45), Fault("agent", 5, 20))


@dataclass
class Havoc:
    """Does the faults of one round after the other, until told to stop; nothing stays frozen.

    Args:
        root: pid of ``keepwarm up``.
        pause_s: mean time between two faults.
    """

    root: int
    draw: random.Random
    ledger: Ledger
    round: tuple[Fault, ...] = ROUND
    pause_s: float = 2.0
    done: dict[str, int] = field(default_factory=dict)
    _frozen: dict[int, psutil.Process] = field(default_factory=dict)
    _thawing: set[asyncio.Task[None]] = field(default_factory=set)

    async def one_round(self) -> None:
        """Every fault once, in random order."""
        faults = list(self.round)
        self.draw.shuffle(faults)
        for fault in faults:
            await asyncio.sleep(self.draw.uniform(0.3, 1.7) * self.pause_s)
            self._do(fault)
        await asyncio.gather(*self._thawing)

    def end(self) -> None:
        """Nobody stays frozen."""
        for process in self._frozen.values():
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGCONT)
        self._frozen.clear()

    def _do(self, fault: Fault) -> None:
        victims = [process for process in of_role(self.root, fault.role) if process.pid not in self._frozen]
        if not victims:
            return
        victim = self.draw.choice(victims)
        lasts = None if fault.shortest is None else self.draw.uniform(fault.shortest, fault.longest or fault.shortest)
        with contextlib.suppress(psutil.Error):
            victim.send_signal(signal.SIGKILL if lasts is None else signal.SIGSTOP)
            self.done[fault.name] = self.done.get(fault.name, 0) + 1
            self.ledger.noted(f"{fault.name} {victim.pid}" + ("" if lasts is None else f" for {lasts:.1f} s"))
            if lasts is not None:
                self._frozen[victim.pid] = victim
                task = asyncio.create_task(self._thaw(victim, lasts))
                self._thawing.add(task)
                task.add_done_callback(self._thawing.discard)

    async def _thaw(self, victim: psutil.Process, lasts: float) -> None:
        await asyncio.sleep(lasts)
        self._frozen.pop(victim.pid, None)
        with contextlib.suppress(psutil.Error):
            victim.send_signal(signal.SIGCONT)
            self.ledger.noted(f"thaw {victim.pid}")


def of_role(root: int, role: str) -> list[psutil.Process]:
    """The living processes of a role, oldest first: whoever takes one of them at random takes it by age, not by pid."""
    found = []
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(root).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if role_of(process) == role and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
    return sorted(found, key=lambda process: process.create_time())


def role_of(process: psutil.Process) -> str | None:
    """What a process below ``keepwarm up`` is for; Redis servers rewrite their command line, so the name counts."""
    if process.name() in ("valkey-server", "redis-server"):
        return "redis"
    words = process.cmdline()
    return next((role for role, word in ROLES if word in words), None)
