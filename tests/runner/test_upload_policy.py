"""Files of a request that brings its caller's own bucket, on a real S3 server over TLS."""

from __future__ import annotations

import importlib
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import pytest
from fal._runner.protocol import Cancel, Response

from keepwarm import tls
from tests.runner.harness import Runner, header, start
from tests.support.s3_server import s3_server

HEADER = b"x-app-fal-upload-policy"
SOURCE = """
from concurrent.futures import ThreadPoolExecutor
from tempfile import NamedTemporaryFile

import fal
from fal.toolkit import File, Image, _fetching
from fal.toolkit.file import policy_uploads
from pydantic import BaseModel

class Input(BaseModel):
    how: str = "bytes"
    text: str = "content"

# The bucket stands on loopback, which no bucket of a caller may.
public = _fetching.is_public
_fetching.is_public = lambda address: address == "127.0.0.1" or public(address)

class Demo(fal.App, max_multiplexing=2):
    @fal.endpoint("/")
    def make(self, request: Input) -> list[File]:
        print("the app was called")
        if request.how == "bytes":
            return [File.from_bytes(request.text.encode(), "text/plain", name) for name in ("a.txt", 'b"/../\\n.txt')]
        if request.how == "path":
            with NamedTemporaryFile() as file:
                file.write(b"x" * 3_000_000)
                file.flush()
                return [File.from_path(file.name)]
        if request.how == "reserve":
            pending = File.reserve("text/plain", "later.txt")
            pending.complete(request.text.encode())
            return [File(url=pending.url)]
        if request.how == "pool":
            with ThreadPoolExecutor(2) as pool:
                return list(pool.map(lambda text: File.from_bytes(text, "text/plain"), [b"content", b"content"]))
        if request.how == "slow":
            policy_uploads._WHOLE_SECONDS = 1.0
        return [File.from_bytes(b"", repository="in_memory" if request.how == "in memory" else "fal_v3")]

    @fal.endpoint("/held")
    async def held(self) -> None:
        import asyncio
        await asyncio.sleep(60)

    @fal.endpoint("/policy")
    def policy(self) -> str | None:
        policy = self.current_request.upload_policy
        return policy and policy.url

    @fal.realtime("/realtime")
    def talk(self, request: Input) -> Input:
        return request
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tls.TlsFiles:
    return tls.ensure(tmp_path_factory.mktemp("tls"), ["127.0.0.1"])


@pytest.fixture(scope="module")
def bucket(files: tls.TlsFiles) -> Iterator[Any]:
    """A client of the server that has the bucket."""
    boto3 = importlib.import_module("boto3")
    with s3_server(files) as variables:
        yield boto3.client(
            "s3",
            endpoint_url=variables["AWS_ENDPOINT_URL"],
            aws_access_key_id="tests",
            aws_secret_access_key="tests",
            region_name="us-east-1",
            verify=str(files.roots),
        )


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory, files: tls.TlsFiles, bucket: Any) -> Iterator[Runner]:
    folder = tmp_path_factory.mktemp("runner")
    environment = {"SSL_CERT_FILE": str(files.roots)}
    with start(folder, SOURCE, environment=environment, storage_hosts=["127.0.0.2"], max_multiplexing=2) as running:
        running.ready()
        yield running


@pytest.fixture(scope="module")
def policy(bucket: Any) -> dict[str, Any]:
    made: dict[str, Any] = bucket.generate_presigned_post("bucket", "out/${filename}")
    return made


def call(runner: Runner, policy: Any, path: str = "/", **body: str) -> Response:
    text = policy if isinstance(policy, bytes) else json.dumps(policy).encode()
    headers = [(b"content-type", b"application/json"), (HEADER, text)]
    return runner.call(json.dumps(body).encode(), path, headers=headers)


@pytest.mark.parametrize("how", ["bytes", "path", "reserve", "pool"])
def test_files_lie_in_the_callers_bucket(runner: Runner, bucket: Any, policy: dict[str, Any], how: str) -> None:
    answer = call(runner, policy, how=how)
    assert answer.status == 200, (answer.body, runner.logs("ERROR"))
    files = json.loads(answer.body)
    assert len({file["url"] for file in files}) == (2 if how in ("bytes", "pool") else 1)
    for file in files:
        assert file["url"].startswith(policy["url"] + "/out/")
        stored = bucket.get_object(Bucket="bucket", Key=urlsplit(file["url"]).path.removeprefix("/bucket/"))
        content = stored["Body"].read()
        assert content == (b"x" * 3_000_000 if how == "path" else b"content")
        assert stored["ContentType"] == ("application/octet-stream" if how == "path" else "text/plain")


def test_the_app_sees_the_policy(runner: Runner, policy: dict[str, Any]) -> None:
    assert json.loads(call(runner, policy, "/policy").body) == policy["url"]
    assert json.loads(runner.call(b"{}", "/policy").body) is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (b"", "not JSON"),
        (b"[]", "object"),
        (b"[" * 3000, "not JSON"),
        ({"url": "https://a.test/"}, "fields"),
        ({"url": 1, "fields": {}}, "url"),
        ({"url": "http://a.test/", "fields": {}}, "https"),
        ({"url": "https://user@a.test/", "fields": {}}, "credentials"),
        ({"url": "https://a.test/b?x=1", "fields": {}}, "query"),
        ({"url": "https://a.test/b/%2e%2e/c", "fields": {}}, "path"),
        ({"url": "https://[/", "fields": {}}, "https URL"),
        ({"url": "https://a.test/\ud800", "fields": {}}, "plain characters"),
        ({"url": "https://a.test/", "fields": {}}, "${filename}"),
        ({"url": "https://a.test/", "fields": {"key": "one"}}, "${filename}"),
        ({"url": "https://a.test/", "fields": {"key": "${filename}", "KEY": "b"}}, "one"),
        ({"url": "https://a.test/", "fields": {"key": ["${filename}"]}}, "string"),
        ({"url": "https://a.test/", "fields": {"key": "${filename}", 'a"\r\nb': "c"}}, "cannot be sent"),
        ({"url": "https://a.test/", "fields": {"key": "${filename}", "a": "\udc00"}}, "surrogates"),
    ],
)
def test_what_is_no_policy_does_not_reach_the_app(runner: Runner, given: Any, said: str) -> None:
    before = runner.logs().count("the app was called")
    answer = call(runner, given)
    detail = json.loads(answer.body)["detail"]
    assert answer.status == 422, answer.body
    assert said in detail
    assert "x-app-fal-upload-policy" in detail
    assert runner.logs().count("the app was called") == before


def test_a_connection_may_not_bring_one(runner: Runner, policy: dict[str, Any]) -> None:
    headers = [(HEADER, json.dumps(policy).encode())]
    answer = runner.call(path="/realtime", method="WEBSOCKET", headers=headers)
    assert (answer.status, "connections" in json.loads(answer.body)["detail"]) == (422, True)


def test_a_file_that_the_app_keeps_elsewhere_is_a_contradiction(runner: Runner, policy: dict[str, Any]) -> None:
    answer = call(runner, policy, how="in memory")
    assert (answer.status, "in_memory" in json.loads(answer.body)["detail"]) == (422, True)


def test_a_bucket_that_refuses_is_named_with_its_reason(runner: Runner, policy: dict[str, Any]) -> None:
    """Nothing goes to the platform instead."""
    url = policy["url"].replace("/bucket", "/nobodys")
    answer = call(runner, {**policy, "url": url})
    assert answer.status == 424, answer.body
    assert "answered 404 (NoSuchBucket)" in json.loads(answer.body)["detail"]


def test_a_file_of_nobody_knows_whom_is_not_stored_anywhere(runner: Runner, policy: dict[str, Any]) -> None:
    """A thread of the app's own saves it while two requests run: it could be the other one's."""
    runner.request("other", b"", "/held")
    answer = call(runner, policy, how="pool")
    assert (answer.status, "belongs to no request" in json.loads(answer.body)["detail"]) == (422, True)
    runner.send(Cancel("other"))
    runner.expect(Response)


def test_a_bucket_that_takes_its_time_is_cut_off(runner: Runner, policy: dict[str, Any], files: tls.TlsFiles) -> None:
    """One byte now and then keeps any time-out of single reads from ending."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate)
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            with context.wrap_socket(listener.accept()[0], server_side=True) as secure, suppress(OSError):
                secure.sendall(b"HTTP/1.1 200 OK\r\nx-slow: ")
                while not over.wait(0.05):
                    secure.sendall(b"x")

        slow = threading.Thread(target=drip)
        slow.start()
        answer = call(runner, {**policy, "url": f"https://127.0.0.1:{listener.getsockname()[1]}/b"}, how="slow")
        over.set()
        slow.join(10)
    assert (answer.status, "127.0.0.1 was too slow" in json.loads(answer.body)["detail"]) == (424, True), answer.body


def test_the_platforms_network_is_out_of_reach(runner: Runner, policy: dict[str, Any]) -> None:
    """Its own storage hosts are none for uploads: a POST of the caller's content would reach what stands beside."""
    with socket.create_server(("127.0.0.2", 0)) as inside:
        url = f"https://127.0.0.2:{inside.getsockname()[1]}/bucket"
        answer = call(runner, {**policy, "url": url})
        inside.settimeout(0.0)
        with pytest.raises(BlockingIOError):
            inside.accept()
    assert (answer.status, "not a public address" in json.loads(answer.body)["detail"]) == (424, True)
    assert header(answer.headers, b"content-type") == b"application/json"
