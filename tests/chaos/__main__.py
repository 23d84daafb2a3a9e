"""``python -m tests.chaos [--seed N] [--requests N]``: one run on a platform of its own."""

from __future__ import annotations

import argparse
import sys

from tests.chaos.driver import Chaos, Size, own_platform, seed_of
from tests.support.loop import run


def main() -> int:
    """One run; 0 when every promise was kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=seed_of(), help="default: CHAOS_SEED, else random")
    parser.add_argument("--requests", type=int, default=Size.requests)
    arguments = parser.parse_args()
    with own_platform() as (platform, folder):
        print(f"chaos: seed {arguments.seed}, ledger in {folder}", flush=True)
        chaos = Chaos(platform, folder, arguments.seed)
        verdict = run(chaos.run(Size(requests=arguments.requests)))
        print(f"chaos: {sum(chaos.faults.values())} faults {chaos.faults}, at rest after {chaos.rested_in:.0f} s")
    print("".join(f"  {why}\n" for why in verdict.why), end="")
    print(verdict)
    return not verdict.kept


if __name__ == "__main__":
    sys.exit(main())
