"""Call an app and wait for its answer: one POST. The connection stays open until the app has answered.

    export FAL_KEY=...        # `keepwarm env` prints it; not needed for a public app
    python examples/clients/wait.py http://127.0.0.1:8787/demo/hello '{"name": "Ada"}'

If the caller goes away, the request is cancelled; if it fails, nobody tries again. submit_and_poll.py is for work that
must not be lost.
"""

import json
import os
import sys
from typing import Any

import httpx


def call(url: str, arguments: dict[str, Any]) -> Any:
    """The app's answer.

    Raises:
        httpx.HTTPStatusError: the app or the platform answered with an error; its body says which and why.
    """
    key = os.environ.get("FAL_KEY")
    headers = {"Authorization": f"Key {key}"} if key else {}
    answer = httpx.post(url, json=arguments, headers=headers, timeout=600)
    answer.raise_for_status()
    return answer.json()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} APP_URL JSON")
    try:
        print(json.dumps(call(sys.argv[1], json.loads(sys.argv[2])), indent=2))
    except httpx.HTTPStatusError as error:
        sys.exit(f"{error.response.status_code}: {error.response.text}")
