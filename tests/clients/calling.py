"""What a user's script does with fal-client but for uploads: ``python calling.py NAME`` prints its answer."""

import asyncio
import json
import sys

import fal_client

CALLED = "tester/called"


def run() -> object:
    return fal_client.run(CALLED, arguments={"text": "run"})


def queue() -> object:
    """Through every URL that an answer to a submit holds, and those that the client makes up itself."""
    handle = fal_client.submit(CALLED, arguments={"text": "queued", "lines": 1})
    logs = [event for event in handle.iter_events(with_logs=True) if isinstance(event, fal_client.Completed)][-1].logs
    seen = fal_client.status(CALLED, handle.request_id, with_logs=True)
    return {
        "url": handle.status_url,
        "result": handle.get(),
        "again": fal_client.result(CALLED, handle.request_id),
        "state": type(seen).__name__,
        "logs": [line["message"] for line in logs or []],
    }


def cancelled() -> object:
    holding = fal_client.submit("tester/single", arguments={"seconds": 30})
    holding.cancel()
    seen = fal_client.status("tester/single", holding.request_id)
    assert isinstance(seen, fal_client.Completed)
    return seen.error_type


def stream() -> object:
    return list(fal_client.stream(CALLED, arguments={"text": "one two"}))


def asynchronously() -> object:
    async def calls() -> object:
        return [
            await fal_client.run_async(CALLED, arguments={"text": "a"}),
            await fal_client.subscribe_async(CALLED, arguments={"text": "b"}),
        ]

    return asyncio.run(calls())


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]]()))
