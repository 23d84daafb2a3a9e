"""F27: a folder of the platform cannot be used: a lost mount, a broken disk. Callers are told, nothing half is kept,
and all is as before when it is back.

A file in the folder's place makes every use of it fail, for root too.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway.conftest import StartGateway
from tests.gateway.platform import RunningGateway
from tests.support.waiting import wait_until

LARGE = bytes(400_000)
SOURCE = b"# an app\n" * 50_000
SHA = hashlib.sha256(SOURCE).hexdigest()
#: One use of a folder, prepared while it is there: call what comes back while it is not, and then again.
Use = Callable[[RunningGateway, httpx.Client, str], Callable[[], httpx.Response]]


@contextlib.contextmanager
def broken(folder: Path) -> Iterator[None]:
    away = folder.with_name(f"{folder.name}.away")
    folder.mkdir(parents=True, exist_ok=True)
    folder.rename(away)
    folder.touch()
    try:
        yield
    finally:
        folder.unlink()
        away.rename(folder)


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def large_call(gateway: RunningGateway, client: httpx.Client, app: str) -> Callable[[], httpx.Response]:
    return lambda: client.post(f"/{app}", content=LARGE)


def large_submit(gateway: RunningGateway, client: httpx.Client, app: str) -> Callable[[], httpx.Response]:
    return lambda: client.post(f"/queue/{app}", content=LARGE)


def large_result(gateway: RunningGateway, client: httpx.Client, app: str) -> Callable[[], httpx.Response]:
    sent = client.post(f"/queue/{app}", content=LARGE).json()["request_id"]
    wait_until(lambda: client.get(f"/queue/{app}/requests/{sent}/status").status_code == 200, "the result")
    return lambda: client.get(f"/queue/{app}/requests/{sent}")


def upload(gateway: RunningGateway, client: httpx.Client, app: str) -> Callable[[], httpx.Response]:
    return lambda: client.post("/cdn/files/upload", content=LARGE)


def download(gateway: RunningGateway, client: httpx.Client, app: str) -> Callable[[], httpx.Response]:
    url = client.post("/cdn/files/upload", content=LARGE).json()["access_url"]
    return lambda: client.get(url)


def upload_in_parts(gateway: RunningGateway, client: httpx.Client, app: str) -> Callable[[], httpx.Response]:
    return lambda: client.post("/cdn/files/upload/multipart")


def one_part(gateway: RunningGateway, client: httpx.Client, app: str) -> Callable[[], httpx.Response]:
    begun = client.post("/cdn/files/upload/multipart").json()
    return lambda: client.put(f"{begun['access_url']}/multipart/{begun['uploadId']}/1", content=LARGE)


def all_parts(gateway: RunningGateway, client: httpx.Client, app: str) -> Callable[[], httpx.Response]:
    begun = client.post("/cdn/files/upload/multipart").json()
    at = f"{begun['access_url']}/multipart/{begun['uploadId']}"
    tag = client.put(f"{at}/1", content=LARGE).headers["etag"]
    return lambda: client.post(f"{at}/complete", json={"parts": [{"partNumber": 1, "etag": tag}]})


def source(gateway: RunningGateway, client: httpx.Client, app: str) -> Callable[[], httpx.Response]:
    return lambda: client.put(f"/api/v1/bundles/objects/{SHA}", content=SOURCE)


def put_data(gateway: RunningGateway, client: httpx.Client, app: str) -> Callable[[], httpx.Response]:
    form: Any = {"files": {"file_upload": ("chunk", LARGE, "application/octet-stream")}}
    return lambda: client.post("/rest/files/file/local//data/a.bin", **form)


def list_data(gateway: RunningGateway, client: httpx.Client, app: str) -> Callable[[], httpx.Response]:
    return lambda: client.get("/rest/files/list//data")


USES: tuple[tuple[str, Use], ...] = (
    ("blobs", large_call),
    ("blobs", large_submit),
    ("blobs", large_result),
    ("files", upload),
    ("files", download),
    ("files", all_parts),
    ("uploads", upload),
    ("uploads", upload_in_parts),
    ("uploads", one_part),
    ("uploads", all_parts),
    ("bundles", source),
    ("data", put_data),
    ("data", list_data),
)


@pytest.mark.parametrize(("folder", "use"), USES, ids=lambda value: getattr(value, "__name__", value))
def test_a_folder_that_cannot_be_used(start_gateway: StartGateway, folder: str, use: Use) -> None:
    """Uploads, downloads and results were a 500 without a word about the disk."""
    gateway = start_gateway()
    data = gateway.settings.data_dir
    app = gateway.app()
    gateway.worker(app)
    with gateway.owner_client() as client:
        again = use(gateway, client, app)
        before = files_below(data)
        with broken(data / folder):
            refused = again()
            assert (refused.status_code, refused.headers.get("retry-after")) == (503, "5"), refused.text
            assert refused.json()["error_type"] == "internal_error"
            assert "The platform's disk" in refused.json()["detail"]
            assert str(data) not in refused.text, "where it lies is the operator's affair"
            assert client.post(f"/{app}", content=b"small").content == b"small"
        assert files_below(data) == before, "nothing half is kept"
        assert again().status_code in (200, 201, 204)
