"""All benchmarks, one table after the other: calls, the queue, cold starts, environments. Takes about thirteen minutes.

python benchmarks/run.py [--heavy]
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_TABLES = {
    "A call of a warm app": ("latency.py", False),
    "What the queue takes in and gives out": ("queue_rates.py", False),
    "From submitting to seeing the result, beside other queues": ("queue_round_trip.py", False),
    "Ten thousand callers waiting at once": ("queue_waiters.py", False),
    "The first call of a sleeping app, in seconds": ("cold_start.py", True),
    "A thousand sleeping apps": ("scheduler_reaction.py", False),
    "Waiting and paying, by scaling policy": ("scaling_traces.py", False),
    "Building an environment": ("environments.py", True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heavy", action="store_true", help="also what needs torch")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, {platform.platform()}, Python {platform.python_version()}", flush=True)
    failed = False
    for title, (script, has_heavy) in _TABLES.items():
        print(f"\n## {title}\n", flush=True)
        more = ["--heavy"] if options.heavy and has_heavy else []
        failed |= subprocess.run([sys.executable, str(_HERE / script), *more], check=False).returncode != 0
    sys.exit(failed)


if __name__ == "__main__":
    main()
