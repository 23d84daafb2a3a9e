"""Call an app through its queue: submit, look now and then, fetch the result. Survives restarts of either side.

    export FAL_KEY=...        # `keepwarm env` prints it; not needed for a public app
    python examples/clients/submit_and_poll.py http://127.0.0.1:8787/demo/hello '{"name": "Ada"}'

The 200 for the submission means that the request is stored: it will end exactly once, whatever happens here.
"""

import json
import os
import sys
import time
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx


def queue_url(url: str) -> str:
    """The queue's address of an app, from the address for waiting calls."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"/queue{parts.path}"))


def call(url: str, arguments: dict[str, Any], every: float = 0.5) -> Any:
    """Submit, report each change and every log line on stderr, and return the result.

    Args:
        every: seconds between two looks.

    Raises:
        httpx.HTTPStatusError: the submission was refused, or the request ended with an error.
    """
    key = os.environ.get("FAL_KEY")
    headers = {"Authorization": f"Key {key}"} if key else {}
    with httpx.Client(headers=headers, timeout=30) as client:
        request = client.post(queue_url(url), json=arguments).raise_for_status().json()
        print(f"submitted as {request['request_id']}; to cancel: PUT {request['cancel_url']}", file=sys.stderr)
        shown = 0
        while True:
            status = client.get(request["status_url"], params={"logs": "1"}).raise_for_status().json()
            for line in (status.get("logs") or [])[shown:]:
                print(f"  {line['message']}", file=sys.stderr)
                shown += 1
            if status["status"] == "COMPLETED":
                return client.get(request["response_url"]).raise_for_status().json()
            waiting = f", {status['queue_position']} ahead" if status["status"] == "IN_QUEUE" else ""
            print(f"{status['status']}{waiting}", file=sys.stderr)
            time.sleep(every)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} APP_URL JSON")
    try:
        print(json.dumps(call(sys.argv[1], json.loads(sys.argv[2])), indent=2))
    except httpx.HTTPStatusError as error:
        sys.exit(f"{error.response.status_code}: {error.response.text}")
