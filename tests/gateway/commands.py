"""The real ``fal`` command against a running gateway."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.gateway.platform import RunningGateway


def fal(gateway: RunningGateway, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[bytes]:
    """Run the command as the owner; its output is bytes."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("KEEPWARM_", "FAL_"))}
    ours = {"KEEPWARM_URL": gateway.url, "FAL_KEY": gateway.key, "HOME": str(gateway.settings.data_dir)}
    done = subprocess.run(
        [Path(sys.executable).parent / "fal", *arguments],
        env=kept | ours,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, f"fal {arguments}: {done.returncode}\n{done.stdout!r}\n{done.stderr!r}"
    assert b"Traceback" not in done.stderr, done.stderr
    return done
