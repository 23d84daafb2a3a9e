#!/usr/bin/env python3
"""Set up this clone and use it: needs Python 3.11 or newer and a way to the package index, nothing else.

    python3 bootstrap.py          install, start a platform, deploy examples/hello.py and stay until Ctrl-C
    python3 bootstrap.py test     install, then lint, type-check and run every test
    python3 bootstrap.py install  only install: .venv with the `fal` and `keepwarm` commands

Everything lands in ``.venv`` here and in the data folder (``$KEEPWARM_DATA``, else ``~/.keepwarm``).
Standard library only.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / "bin"
LOCKS = (ROOT / "requirements" / "bootstrap.lock", ROOT / "requirements" / "dev.lock")


def fail(message: str) -> None:
    print(f"bootstrap: {message}", file=sys.stderr)
    raise SystemExit(1)


def install() -> None:
    """Make ``.venv`` hold exactly the locked versions and this checkout; quick when it already does."""
    if sys.version_info < (3, 11):  # noqa: UP036 - this file runs before anything could check it
        fail(f"this is Python {sys.version.split()[0]}; 3.11 or newer is needed, e.g. python3.11 bootstrap.py")
    digest = hashlib.sha256(sys.version.encode())
    for path in (*LOCKS, ROOT / "pyproject.toml", ROOT / "sdk" / "pyproject.toml"):
        digest.update(path.read_bytes())
    marker = VENV / "installed"
    wanted = f"{digest.hexdigest()} {ROOT}"
    if marker.is_file() and marker.read_text() == wanted:
        return
    print("bootstrap: installing into .venv (once)", flush=True)
    marker.unlink(missing_ok=True)
    if not (BIN / "python").exists() or not (BIN / "pip").exists():
        made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=False)
        if made.returncode != 0:
            fail("python3 -m venv failed (see above); on Debian and Ubuntu: apt-get install python3-venv")
    run(BIN / "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "-r", LOCKS[0])
    uv = [BIN / "uv", "pip", "install", "--quiet", "--python", BIN / "python"]
    run(*uv, "--require-hashes", "-r", LOCKS[1])
    run(*uv, "--no-deps", "--no-build-isolation", "-e", ROOT / "sdk", "-e", ROOT)
    marker.write_text(wanted)


def run(*command: str | Path) -> None:
    """Run a command; leave with its status when it fails."""
    done = subprocess.run([str(part) for part in command], cwd=ROOT, check=False)
    if done.returncode != 0:
        print(f"bootstrap: failed: {' '.join(map(str, command))}", file=sys.stderr)
        raise SystemExit(done.returncode)


def demo(port: int) -> None:
    """Start ``keepwarm up``, deploy the hello app as demo/hello, open to everyone on this machine, and wait."""
    url = f"http://127.0.0.1:{port}"
    environ = {**os.environ, "KEEPWARM_URL": url, "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"}
    for name in ("FAL_KEY", "FAL_KEY_ID", "FAL_KEY_SECRET", "FAL_PROFILE"):
        environ.pop(name, None)
    platform = subprocess.Popen(
        [str(BIN / "keepwarm"), "up", "--port", str(port), "--owner", "demo"], cwd=ROOT, env=environ
    )
    # Ctrl-C reaches the platform by itself (same terminal); this process only waits for it to finish.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: platform.send_signal(signal.SIGTERM))
    try:
        if not healthy(url, platform):
            fail("the platform did not start; its messages stand above")
        deploy = [str(BIN / "fal"), "deploy", "examples/hello.py::Hello", "--auth", "public"]
        if subprocess.run(deploy, cwd=ROOT, env=environ, check=False).returncode != 0:
            fail("the example was not deployed; its messages stand above")
        print(
            "\nIt answers (the first call starts a worker):\n\n"
            f"  curl -X POST {url}/demo/hello -H 'Content-Type: application/json' -d '{{\"name\": \"Ada\"}}'\n\n"
            "Ctrl-C stops everything.",
            flush=True,
        )
        raise SystemExit(platform.wait())
    finally:
        if platform.poll() is None:
            platform.terminate()
            platform.wait()


def healthy(url: str, platform: subprocess.Popen[bytes]) -> bool:
    """Wait until the platform answers; False when it ended instead."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while platform.poll() is None:
        try:
            with opener.open(f"{url}/health", timeout=2) as answer:
                if answer.status == 200 and (time.sleep(0.1) or platform.poll() is None):
                    return True
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    return False


def test(pytest_arguments: list[str]) -> None:
    """Everything that decides whether a change is good: format, lint, imports, types, tests."""
    run(BIN / "ruff", "format", "--check", ".")
    run(BIN / "ruff", "check", ".")
    run(BIN / "lint-imports")
    run(BIN / "mypy")
    run(BIN / "python", "-m", "pytest", *(pytest_arguments or ["-m", "not debian and not gpu", *side_by_side()]))


def side_by_side() -> list[str]:
    """Options for several files of tests at once: they mostly wait, so one more than there are processors.

    In the order of ``tests/conftest.py``, where the longest files come first; of its own, xdist begins with those of
    many tests and is left with a few long ones at the end, on one processor.
    """
    return ["-n", str(min(8, (os.cpu_count() or 1) + 1)), "--dist", "loadfile", "--no-loadscope-reorder"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", nargs="?", choices=["demo", "test", "install"], default="demo")
    parser.add_argument("--port", type=int, default=8787, help="port of the demo (default 8787)")
    arguments, rest = parser.parse_known_args()
    if rest and arguments.action != "test":
        parser.error(f"unknown arguments: {' '.join(rest)}")
    install()
    if arguments.action == "test":
        test([part for part in rest if part != "--"])
    elif arguments.action == "demo":
        demo(arguments.port)


if __name__ == "__main__":
    main()
