"""``python -m tests.chaos.soak --minutes N``: round after round on one platform, and nothing may grow.

After each round the platform comes to rest; then memory, open files and Redis' keys are counted.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from dataclasses import dataclass, field

import psutil

from tests.chaos.driver import Chaos, Size, own_platform, seed_of
from tests.chaos.havoc import LONG_ROUND, ROLES, of_role
from tests.support.loop import run

#: What a process may have gained since the second round, when everything has been used once.
MORE_MB = 60.0
MORE_FDS = 40
MORE_KEYS = 10
#: Kinds of which there is one key for each request, worker or job: they end by their TTL, an hour or a day later.
_NUMEROUS = ("request", "idempotency", "worker", "logs", "output", "arq")
ROLE_NAMES = (*(role for role, _ in ROLES), "redis")


@dataclass
class Sample:
    """What there is while nothing happens: the largest process of each role, and keys of the kinds that are few."""

    megabytes: dict[str, float] = field(default_factory=dict)
    fds: dict[str, int] = field(default_factory=dict)
    keys: int = 0

    def growth_since(self, earlier: Sample) -> list[str]:
        """A sentence for each thing that grew more than it may."""
        grown = []
        for role, megabytes in self.megabytes.items():
            if megabytes > earlier.megabytes.get(role, megabytes) + MORE_MB:
                grown.append(f"{role}: {earlier.megabytes[role]:.0f} MB became {megabytes:.0f} MB")
        for role, fds in self.fds.items():
            if fds > earlier.fds.get(role, fds) + MORE_FDS:
                grown.append(f"{role}: {earlier.fds[role]} open files became {fds}")
        if self.keys > earlier.keys + MORE_KEYS:
            grown.append(f"{earlier.keys} keys that should be few became {self.keys}")
        return grown


def sample(root: int, kinds: dict[str, int]) -> Sample:
    """Look now."""
    seen = Sample(keys=sum(n for kind, n in kinds.items() if not any(word in kind for word in _NUMEROUS)))
    for role in ROLE_NAMES:
        for process in of_role(root, role):
            with contextlib.suppress(psutil.Error):
                seen.megabytes[role] = max(seen.megabytes.get(role, 0), process.memory_info().rss / 1e6)
                seen.fds[role] = max(seen.fds.get(role, 0), process.num_fds())
    return seen


def main() -> int:
    """Soak; 0 when every promise was kept and nothing grew."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=seed_of(), help="default: CHAOS_SEED, else random")
    arguments = parser.parse_args()
    ends = time.monotonic() + arguments.minutes * 60
    samples: list[Sample] = []
    with own_platform() as (platform, folder):
        print(f"soak: {arguments.minutes:g} minutes, seed {arguments.seed}, ledger in {folder}", flush=True)
        chaos = Chaos(platform, folder, arguments.seed)
        while True:
            verdict = run(chaos.run(Size(requests=350, spread_s=55.0, rest_s=200.0, round=LONG_ROUND)))
            assert platform.process is not None
            samples.append(sample(platform.process.pid, run(chaos.watch.kinds())))
            last = samples[-1]
            print(f"soak: round {len(samples)}, {sum(chaos.faults.values())} faults, rested {chaos.rested_in:.0f} s")
            sizes = " ".join(f"{r} {last.megabytes[r]:.0f} MB {last.fds[r]} fds," for r in last.megabytes)
            print(f"soak:   {sizes} {last.keys} keys that should be few\n  {verdict}", flush=True)
            if not verdict.kept or time.monotonic() > ends:
                break
    grown = samples[-1].growth_since(samples[1]) if len(samples) > 2 else []
    print("".join(f"  {why}\n" for why in (*verdict.why, *grown)), end="")
    print(verdict)
    return bool(grown) or not verdict.kept


if __name__ == "__main__":
    sys.exit(main())
