"""What a user's script does with fal-client: ``python uploading.py NAME`` runs one function and prints its answer.

A process of its own, because the client leaves connections to the end of the process to close.
"""

import asyncio
import hashlib
import json
import random
import sys
import tempfile
from pathlib import Path

import fal_client
from fal_client.client import StorageACL, StorageSettings
from PIL import Image


def large() -> bytes:
    """Above the size from which the client sends parts: eleven of them."""
    return random.Random(7).randbytes(1024) * (101 * 1024)


def text() -> object:
    return fal_client.upload(b"some text", "text/plain", "notes.txt")


def files() -> object:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        path.write_text("a,b\n1,2\n")
        image = Image.new("RGB", (8, 8), "red")
        return [fal_client.upload_file(path), fal_client.upload_image(image, format="png")]


def given_to_the_app() -> object:
    url = fal_client.upload(bytes(5000), "application/octet-stream", "zeros.bin")
    return fal_client.run("tester/called/measure", arguments={"file": url})


def in_parts() -> object:
    data = large()
    url = fal_client.upload(data, "application/x-large", "large.bin")
    return {"url": url, "sha256": hashlib.sha256(data).hexdigest()}


def in_parts_async() -> object:
    data = large()
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(data)
        file.flush()
        url = asyncio.run(fal_client.upload_file_async(Path(file.name)))
    return {"url": url, "sha256": hashlib.sha256(data).hexdigest()}


def many_async() -> object:
    async def send() -> list[str]:
        return list(await asyncio.gather(*(fal_client.upload_async(b"%d" % n, "text/plain") for n in range(5))))

    return asyncio.run(send())


def older_repository() -> object:
    return fal_client.upload(b"signed", "text/plain", "signed.txt", repository="fal", fallback_repository=[])


def hidden_and_for_an_hour() -> object:
    kept = StorageSettings(expires_in="1h", initial_acl=StorageACL(default="hide"))
    return fal_client.upload(b"mine", "text/plain", "mine.txt", lifecycle=kept)


def token() -> object:
    """As before a realtime connection."""
    return fal_client.sync_client._get_realtime_token("tester/called")


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]]()))
