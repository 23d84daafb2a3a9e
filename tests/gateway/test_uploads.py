"""Uploads as the clients make them, and what a wrong or stolen token does not open."""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from gateway import tokens
from gateway.storage import LATE_CLOCKS, SIGNED_LIFE, TOKEN_LIFE
from gateway.tokens import LEEWAY_SECONDS, Tokens
from tests.gateway.conftest import StartGateway
from tests.gateway.platform import RunningGateway

PICTURE = b"\x89PNG" + bytes(1000)
PUBLIC = {"access-control-allow-origin": "*"}


def cdn(gateway: RunningGateway) -> httpx.Client:
    """A client with a token for files, as the Python client gets one."""
    with gateway.owner_client() as owner:
        got = owner.post("/rest/storage/auth/token?storage_type=fal-cdn-v3", json={}).json()
    assert datetime.fromisoformat(got["expires_at"]).tzinfo is not None
    assert got["base_url"] == f"{gateway.url}/cdn"
    return gateway.client(headers={"authorization": f"{got['token_type']} {got['token']}"})


def initiate(gateway: RunningGateway, how: str = "initiate", **headers: str) -> dict[str, str]:
    with gateway.owner_client() as owner:
        body = {"file_name": "cat.png", "content_type": "image/png"}
        answer = owner.post(f"/rest/storage/upload/{how}?storage_type=fal-cdn-v3", json=body, headers=headers)
        answer.raise_for_status()
        found: dict[str, str] = answer.json()
        return found


def test_a_file_by_token(gateway: RunningGateway) -> None:
    with cdn(gateway) as client, gateway.client() as anybody:
        headers = {"content-type": "image/png", "x-fal-file-name": "a cat.png"}
        sent = client.post("/cdn/files/upload", content=PICTURE, headers=headers)
        url = sent.json()["access_url"]
        assert url.endswith("/a%20cat.png")
        got = anybody.get(url)
    assert (got.content, got.headers["content-type"]) == (PICTURE, "image/png")
    assert got.headers["content-disposition"] == "inline; filename*=UTF-8''a%20cat.png"


def test_a_key_is_as_good_as_a_token_and_nothing_is_not(gateway: RunningGateway) -> None:
    with gateway.owner_client() as owner, gateway.client() as anybody:
        assert owner.post("/cdn/files/upload", content=b"x").status_code == 200
        for path in ("/cdn/files/upload", "/cdn/files/upload/multipart"):
            refused = anybody.post(path, content=b"x")
            assert refused.status_code == 401
            assert refused.headers["x-fal-request-id"]
        assert anybody.post("/rest/storage/auth/token", json={}).status_code == 401
        assert anybody.post("/rest/storage/upload/initiate", json={}).status_code == 401


def test_parts_by_token(gateway: RunningGateway) -> None:
    with cdn(gateway) as client:
        begun = client.post("/cdn/files/upload/multipart", headers={"content-type": "video/mp4"}).json()
        at = f"{begun['access_url']}/multipart/{begun['uploadId']}"
        parts: list[dict[str, Any]] = []
        for number in (2, 1):
            answer = client.put(f"{at}/{number}", content=b"%d" % number * 4)
            parts.append({"partNumber": number, "etag": answer.headers["etag"]})
        assert parts[0]["etag"].startswith('"')
        for _ in range(2):  # a client that did not hear of it says it again
            assert client.post(f"{at}/complete", json={"parts": parts}).status_code == 200
        got = client.get(begun["access_url"])
    assert (got.content, got.headers["content-type"]) == (b"11112222", "video/mp4")


def test_one_signed_url(gateway: RunningGateway) -> None:
    urls = initiate(gateway)
    with gateway.client() as anybody:
        sent = anybody.put(urls["upload_url"], content=PICTURE, headers={"content-type": "image/png"})
        assert sent.status_code == 200
        assert PUBLIC.items() <= dict(sent.headers).items()
        assert anybody.get(urls["file_url"]).content == PICTURE


def test_parts_below_a_signed_url(gateway: RunningGateway) -> None:
    """The JavaScript client reads number and tag out of the body, fal's SDK the tag out of the header; a variant of it
    asks for the place of each part and spells part_number."""
    urls = initiate(gateway, "initiate-multipart")
    parts_url = urlsplit(urls["upload_url"])
    at, query = f"{gateway.url}{parts_url.path}", parts_url.query
    with gateway.client() as anybody:
        first = anybody.put(f"{at}/1?{query}", content=b"first ")
        assert first.json() == {"partNumber": 1, "etag": first.headers["etag"]}
        place = anybody.post(f"{at}/2?{query}").json()["upload_url"]
        second = anybody.put(place, content=b"second")
        parts = [{"part_number": 2, "etag": second.headers["etag"]}, first.json()]
        assert anybody.post(f"{at}/complete?{query}", json={"parts": parts}).status_code == 200
        assert anybody.get(urls["file_url"]).content == b"first second"


def test_a_signature_opens_nothing_else(gateway: RunningGateway) -> None:
    one, other, many = initiate(gateway), initiate(gateway), initiate(gateway, "initiate-multipart")
    signature = urlsplit(one["upload_url"]).query
    with gateway.client() as anybody, gateway.owner_client() as owner:
        wrong = [
            f"{other['upload_url'].partition('?')[0]}?{signature}",
            f"{many['upload_url'].partition('?')[0]}/1?{signature}",
            f"{one['upload_url'].partition('?')[0]}/1?{signature}",
            one["upload_url"].partition("?")[0],
            one["upload_url"][:-3] + "abc",
        ]
        for url in wrong:
            assert anybody.put(url, content=b"x").status_code == 401, url
        mixed = anybody.put(one["upload_url"], content=b"<script>", headers={"content-type": "text/html"})
        assert mixed.status_code == 403
        token = parse_qs(signature)["signature"][0]
        assert anybody.post("/cdn/files/upload", headers={"authorization": f"Bearer {token}"}).status_code == 401
        app = gateway.app("signed", auth="private")
        assert anybody.post(f"/{app}?fal_jwt_token={token}", json={}).status_code == 401
        assert owner.get(one["file_url"]).status_code == 404


def test_an_upload_is_only_for_its_owner(gateway: RunningGateway) -> None:
    stranger_key, secret = gateway.call(gateway.store.keys.create("stranger", ""))
    stranger = {"authorization": f"Key {stranger_key.key_id}:{secret}"}
    with cdn(gateway) as client, gateway.client(headers=stranger) as other:
        begun = client.post("/cdn/files/upload/multipart").json()
        at = f"{begun['access_url']}/multipart/{begun['uploadId']}"
        assert other.put(f"{at}/1", content=b"x").status_code == 404
        assert client.put(at.replace("/files/", "/files/f") + "/1", content=b"x").status_code == 404


def test_an_expired_token_is_refused(gateway: RunningGateway) -> None:
    token = Tokens(gateway.settings.data_dir).issue("files", -LEEWAY_SECONDS - 1, sub=gateway.key.partition(":")[0])
    with gateway.client(headers={"authorization": f"Bearer {token}"}) as client:
        answer = client.post("/cdn/files/upload", content=b"x")
    assert (answer.status_code, "expired" in answer.json()["detail"]) == (401, True)


def test_a_revoked_key_takes_its_tokens_along(start_gateway: StartGateway) -> None:
    gateway = start_gateway()
    record, secret = gateway.call(gateway.store.keys.create("tester", "to go"))
    with gateway.client(headers={"authorization": f"Key {record.key_id}:{secret}"}) as client:
        token = client.post("/rest/storage/auth/token", json={}).json()["token"]
    gateway.call(gateway.store.keys.revoke(record.key_id))
    with gateway.client(headers={"authorization": f"Bearer {token}"}) as client:
        assert client.post("/cdn/files/upload", content=b"x").status_code == 401


def test_too_large_is_said_with_the_limit(start_gateway: StartGateway) -> None:
    gateway = start_gateway(max_file_bytes=100_000)
    signed = initiate(gateway)["upload_url"]
    with cdn(gateway) as client:
        for answer in (
            client.post("/cdn/files/upload", content=bytes(100_001)),
            client.post("/cdn/files/upload", content=iter([bytes(60_000), bytes(60_000)])),
            client.put(signed, content=bytes(100_001)),
        ):
            assert (answer.status_code, "100000" in answer.json()["detail"]) == (413, True)
        begun = client.post("/cdn/files/upload/multipart").json()
        at = f"{begun['access_url']}/multipart/{begun['uploadId']}"
        assert client.put(f"{at}/1", content=bytes(60_000)).status_code == 200
        assert client.put(f"{at}/2", content=bytes(60_000)).status_code == 413
    assert not list((gateway.settings.data_dir / "uploads").glob("*.part"))


def test_files_may_be_larger_than_other_bodies(start_gateway: StartGateway) -> None:
    """By path, and by Host, where the path alone does not say that it is a file."""
    gateway = start_gateway(max_body_bytes=1024 * 1024)
    large = bytes(4 * 1024 * 1024)
    with cdn(gateway) as client:
        assert client.post("/cdn/files/upload", content=large).status_code == 200
        by_host = client.post("/files/upload", content=large, headers={"host": "v3.fal.media"})
        assert by_host.status_code == 200
        assert by_host.json()["access_url"].startswith(f"{gateway.url}/cdn/files/")
        assert client.get(by_host.json()["access_url"]).content == large


@pytest.mark.parametrize(
    ("default", "anybody", "friend"), [("allow", 200, 200), ("forbid", 403, 200), ("hide", 404, 200)]
)
def test_who_may_fetch(gateway: RunningGateway, default: str, anybody: int, friend: int) -> None:
    key, secret = gateway.call(gateway.store.keys.create("friend", ""))
    wanted = {"initial_acl": {"default": default, "rules": [{"user": "friend", "decision": "allow"}]}}
    with cdn(gateway) as client, gateway.client() as nobody, gateway.owner_client() as owner:
        sent = client.post("/cdn/files/upload", content=b"x", headers={"x-fal-object-lifecycle": json.dumps(wanted)})
        url = sent.json()["access_url"]
        assert nobody.get(url).status_code == anybody
        assert owner.get(url).status_code == 200
        assert nobody.get(url, headers={"authorization": f"Key {key.key_id}:{secret}"}).status_code == friend


def test_a_file_with_an_end(gateway: RunningGateway) -> None:
    urls = initiate(gateway, **{"x-fal-object-lifecycle": json.dumps({"expiration_duration_seconds": 3600})})
    with gateway.client() as anybody:
        assert anybody.put(urls["upload_url"], content=b"x").status_code == 200
        got = anybody.get(urls["file_url"])
    assert 3500 < int(got.headers["cache-control"].partition("max-age=")[2]) <= 3600
    file_id = urlsplit(urls["file_url"]).path.split("/")[3]
    stored = gateway.store.files.open(file_id)
    assert stored is not None
    assert stored.expires_at is not None
    assert 3500 < stored.expires_at - time.time() <= 3600


@pytest.mark.parametrize(
    "wanted",
    [
        "nonsense",
        "[]",
        '{"expiration_duration_seconds": 0}',
        '{"expiration_duration_seconds": "1d"}',
        '{"expiration_duration_seconds": true}',
        '{"initial_acl": "private"}',
        '{"initial_acl": {"default": "deny"}}',
        '{"initial_acl": {"rules": {}}}',
        '{"initial_acl": {"rules": [{"user": 1}]}}',
        '{"initial_acl": {"rules": [{"user": "x", "decision": ["allow"]}]}}',
    ],
)
def test_a_lifecycle_that_cannot_be_read_stores_nothing(gateway: RunningGateway, wanted: str) -> None:
    with cdn(gateway) as client:
        answer = client.post("/cdn/files/upload", content=b"x", headers={"x-fal-object-lifecycle": wanted})
    assert (answer.status_code, answer.json()["error_type"]) == (400, "bad_request")


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"parts": 1}', b'{"parts": [1]}', b'{"parts": [{"etag": "x"}]}', b'{"parts": []}']
)
def test_a_list_of_parts_that_cannot_be_read(gateway: RunningGateway, body: bytes) -> None:
    urls = urlsplit(initiate(gateway, "initiate-multipart")["upload_url"])
    with gateway.client() as anybody:
        answer = anybody.post(f"{urls.path}/complete?{urls.query}", content=body)
    assert answer.status_code == 400


@pytest.mark.parametrize("number", ["0", "10001", "99999"])
def test_parts_have_numbers(gateway: RunningGateway, number: str) -> None:
    urls = urlsplit(initiate(gateway, "initiate-multipart")["upload_url"])
    with gateway.client() as anybody:
        assert anybody.put(f"{urls.path}/{number}?{urls.query}", content=b"x").status_code == 400


@pytest.mark.parametrize("body", [{"file_name": 1}, {"content_type": []}, {"content_type": "x" * 201}])
def test_names_and_types_are_text(gateway: RunningGateway, body: dict[str, Any]) -> None:
    with gateway.owner_client() as owner:
        assert owner.post("/rest/storage/upload/initiate", json=body).status_code == 400


@pytest.mark.parametrize(
    ("given", "shown"), [("../../etc/passwd", "passwd"), ("C:\\x\\y.png", "y.png"), ("", "upload.bin")]
)
def test_a_name_is_never_a_path(gateway: RunningGateway, given: str, shown: str) -> None:
    with gateway.owner_client() as owner:
        urls = owner.post("/rest/storage/upload/initiate", json={"file_name": given}).json()
    assert urls["file_url"].endswith(f"/{shown}")


@pytest.mark.parametrize("path", ["/{}", "/queue/{}"])
def test_a_call_whose_files_should_be_kept_in_unknown_words_is_refused(gateway: RunningGateway, path: str) -> None:
    headers = {"x-fal-object-lifecycle-preference": '{"initial_acl": {"default": "private"}}'}
    with gateway.client() as client:
        answer = client.post(path.format(gateway.app()), json={}, headers=headers)
    assert (answer.status_code, answer.json()["error_type"]) == (400, "bad_request")
    assert "'private'" in answer.json()["detail"]


class Clock:
    """A gateway's clock, so many seconds ahead of the others'."""

    def __init__(self, ahead: float) -> None:
        self._ahead = ahead

    def time(self) -> float:
        return time.time() + self._ahead


@pytest.mark.parametrize(
    ("ahead", "status"), [(-SIGNED_LIFE - 300, 401), (-SIGNED_LIFE - 50, 200), (-300, 200), (50, 200), (300, 401)]
)
def test_a_signed_url_of_a_gateway_whose_clock_differs(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch, ahead: int, status: int
) -> None:
    """F29: who signs and who takes the file may be two machines."""
    monkeypatch.setattr(tokens, "time", Clock(ahead))
    one, many = initiate(gateway)["upload_url"], urlsplit(initiate(gateway, "initiate-multipart")["upload_url"])
    with gateway.client() as anybody:
        assert anybody.put(one, content=PICTURE, headers={"content-type": "image/png"}).status_code == status
        assert anybody.put(f"{many.path}/1?{many.query}", content=PICTURE).status_code == status


def test_a_client_whose_clock_is_late_uploads_all_the_same(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F29: the Python client keeps its token until its own clock says that it is over; five minutes late, every upload
    of five minutes in each hour was refused."""
    monkeypatch.setattr(tokens, "time", Clock(-TOKEN_LIFE - LATE_CLOCKS / 2))  # it was issued so long ago
    with cdn(gateway) as client:
        assert client.post("/cdn/files/upload", content=PICTURE).status_code == 200
    monkeypatch.setattr(tokens, "time", Clock(-TOKEN_LIFE - LATE_CLOCKS - LEEWAY_SECONDS - 5))
    with cdn(gateway) as client:
        assert client.post("/cdn/files/upload", content=PICTURE).status_code == 401
