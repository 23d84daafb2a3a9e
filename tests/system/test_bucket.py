"""A platform whose files are in a bucket: what callers upload and what apps answer with."""

from __future__ import annotations

from collections.abc import Callable

from tests.support.platform import PlatformUnderTest


def test_files_go_to_the_bucket_and_come_from_it(
    start_platform: Callable[..., PlatformUnderTest], s3: dict[str, str]
) -> None:
    platform = start_platform(environ=s3)
    platform.deploy("tests/system/apps/pictures.py", "Pictures")
    with platform.client() as client:
        made = client.post("/tester/pictures", json={"text": "from the app"}).raise_for_status().json()
        answer = client.get(made["file"]["url"], headers={"range": "bytes=5-7"})
        assert (answer.status_code, answer.text) == (206, "the")
        sent = client.post("/cdn/files/upload", content=b"from the caller", headers={"content-type": "text/plain"})
        url = sent.raise_for_status().json()["access_url"]
        assert client.get(url).text == "from the caller"
    assert not list((platform.data / "files").rglob("*"))
    assert not list((platform.data / "uploads").glob("*"))
