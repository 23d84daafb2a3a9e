"""Run examples/sdxl.py unchanged on this machine's CPU: its own pins (about 5 GB), a tiny pipeline, one picture.

    make check-seed            the environment stays cached in $KEEPWARM_DATA or ~/.keepwarm

Prints where the picture is; with --stay the platform keeps running so that a browser can open it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
WEIGHTS = ROOT / "examples" / "weights"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", default="a red circle on a blue background")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="a Hugging Face cache (HF_HOME) to load from")
    parser.add_argument("--port", type=int, default=8788)
    parser.add_argument("--stay", action="store_true", help="keep the platform running until Ctrl-C")
    arguments = parser.parse_args()
    data = Path(os.environ.get("KEEPWARM_DATA") or "~/.keepwarm").expanduser()
    url = f"http://127.0.0.1:{arguments.port}"
    environ = {
        **os.environ,
        "KEEPWARM_DATA": str(data),
        "KEEPWARM_URL": url,
        # The runner finds the model in a cache on disk and asks no hub for it.
        "KEEPWARM_RUNNER_ENV": "HF_HOME,HF_HUB_OFFLINE",
        "HF_HOME": str(arguments.weights.resolve()),
        "HF_HUB_OFFLINE": "1",
    }
    environ.pop("FAL_KEY", None)
    up = [BIN / "keepwarm", "up", "--port", str(arguments.port), "--owner", "seed", "--cpu-fallback"]
    platform = subprocess.Popen([str(part) for part in up], env=environ)
    interrupted = False
    try:
        wait_healthy(url, platform)
        started = time.monotonic()
        deploy = [str(BIN / "fal"), "deploy", str(ROOT / "examples" / "sdxl.py") + "::MyApp", "--auth", "public"]
        subprocess.run(deploy, env=environ, check=True)
        print(f"deployed after {time.monotonic() - started:.1f} s", flush=True)
        picture = ask(f"{url}/seed/my-app", arguments.prompt)
        print(f"picture: {picture}", flush=True)
        if arguments.stay:
            platform.wait()
        else:
            print(f"The platform stops now. To look at the picture: {sys.executable} {__file__} --stay", flush=True)
    except KeyboardInterrupt:
        interrupted = True  # and so is the platform, by the same terminal: a second signal would force it
    finally:
        if not interrupted:
            platform.terminate()
        platform.wait()


def wait_healthy(url: str, platform: subprocess.Popen[bytes]) -> None:
    while platform.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the platform did not start; its messages stand above")


def ask(url: str, prompt: str) -> str:
    """POST the prompt, wait for the picture, and return its URL after having fetched it."""
    request = urllib.request.Request(
        url, data=json.dumps({"prompt": prompt}).encode(), headers={"Content-Type": "application/json"}
    )
    for attempt in ("first call, worker asleep", "second call, worker warm"):
        started = time.monotonic()
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:
                device = answer.headers.get("x-keepwarm-device", "not said")
                image = json.load(answer)["image"]
        except urllib.error.HTTPError as error:
            raise SystemExit(f"{url} answered {error.code}: {error.read().decode(errors='replace')}") from error
        print(f"{attempt}: {time.monotonic() - started:.2f} s, device: {device}", flush=True)
    with urllib.request.urlopen(image["url"], timeout=60) as answer:
        content = answer.read()
    if not content.startswith(b"\x89PNG"):
        raise SystemExit(f"{image['url']} is no PNG picture but {content[:16]!r}")
    return str(image["url"])


if __name__ == "__main__":
    main()
