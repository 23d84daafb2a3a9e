"""The parts that need no server: settings, addresses, webhook URLs, the table of errors."""

from __future__ import annotations

import uuid
from ipaddress import ip_network
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import wire
from gateway.addresses import Addresses, locate, split_app
from gateway.errors import Refusal, answer_for, bad_request
from gateway.incoming import new_request_id, read_head, split_query
from gateway.settings import Settings, SettingsError
from gateway.specs import is_safe_path
from gateway.webhook_target import checked_webhook
from scheduler.store import errors

REDIS = {"KEEPWARM_REDIS_URL": "unix:///tmp/x.sock"}


@pytest.mark.parametrize(
    ("server", "host", "public_url", "expected"),
    [
        (("127.0.0.1", 8787), b"gpu.example", None, "https://gpu.example"),
        (("127.0.0.1", 8787), b"fal.run", None, "https://127.0.0.1:8787"),
        (("::1", 8787), b"rest.fal.ai", None, "https://[::1]:8787"),
        (("10.0.0.5", 443), b"rest.fal.ai", None, "https://v3.fal.media"),
        (("10.0.0.5", 443), b"rest.fal.ai", "https://gpu.example", "https://gpu.example"),
    ],
)
def test_files_are_linked_to_where_apps_reach_them_too(
    server: tuple[str, int], host: bytes, public_url: str | None, expected: str
) -> None:
    addresses = Addresses(Settings("unix:///x", Path("/data"), public_url=public_url))
    scope = {"scheme": "https", "server": server, "client": ("10.0.0.9", 1), "headers": [(b"host", host)]}
    assert addresses.files_url(scope, read_head(scope)) == expected


def test_settings_come_from_the_environment() -> None:
    settings = Settings.from_env(
        REDIS
        | {
            "KEEPWARM_DATA": "/data",
            "KEEPWARM_PUBLIC_URL": "https://gpu.example/base/",
            "KEEPWARM_BIND_PORT": "0",
            "KEEPWARM_LISTEN_FD": "7",
            "KEEPWARM_MAX_BODY_BYTES": "2048",
            "KEEPWARM_ALLOW_PRIVATE_WEBHOOKS": "1",
            "KEEPWARM_TRUSTED_PROXIES": "10.0.0.0/8, 127.0.0.1",
        }
    )
    assert settings.data_dir == Path("/data")
    assert settings.public_url == "https://gpu.example/base"
    assert (settings.bind_port, settings.listen_fd, settings.max_body_bytes) == (0, 7, 2048)
    assert settings.allow_private_webhooks
    assert settings.trusted_proxies == (ip_network("10.0.0.0/8"), ip_network("127.0.0.1/32"))
    assert Settings.from_env(REDIS).bind_host == "127.0.0.1"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KEEPWARM_REDIS_URL", ""),
        ("KEEPWARM_PUBLIC_URL", "gpu.example"),
        ("KEEPWARM_PUBLIC_URL", "https://gpu.example/?a=1"),
        ("KEEPWARM_BIND_PORT", "http"),
        ("KEEPWARM_BIND_PORT", "70000"),
        ("KEEPWARM_MAX_BODY_BYTES", "12"),
        ("KEEPWARM_TRUSTED_PROXIES", "everybody"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        Settings.from_env({**REDIS, name: value})


@pytest.mark.parametrize(
    ("path", "host", "expected"),
    [
        ("/o/a", b"x", ("run", "/o/a")),
        ("/run/o/a/b", b"x", ("run", "/o/a/b")),
        ("/queue/o/a", b"x", ("queue", "/o/a")),
        ("/queue", b"x", ("queue", "/")),
        ("/o/a", b"queue.fal.run", ("queue", "/o/a")),
        ("/cdn/files/1/a", b"fal.run", ("cdn", "/files/1/a")),
        ("/files/1/a", b"v3.fal.media", ("cdn", "/files/1/a")),
        ("/api/v1/apps", b"x", ("api", "/api/v1/apps")),
        ("/health", b"queue.fal.run", ("health", "/health")),
        ("/dashboard/x", b"x", ("other", "/dashboard/x")),
        ("/queues/a", b"x", ("run", "/queues/a")),
    ],
)
def test_where_a_request_goes(path: str, host: bytes, expected: tuple[str, str]) -> None:
    assert locate(path, host) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/o/a", ("o/a", "/")),
        ("/o/a/", ("o/a", "/")),
        ("/o/a//", ("o/a", "/")),
        ("/o/a/b/c/", ("o/a", "/b/c")),
        ("/o", None),
        ("/o/", None),
        ("//a", None),
        ("/", None),
        ("", None),
    ],
)
def test_the_app_in_a_path(path: str, expected: tuple[str, str] | None) -> None:
    assert split_app(path) == expected


def test_a_request_without_a_host_gets_the_servers_own_address() -> None:
    scope = {
        "headers": [],
        "http_version": "1.0",
        "scheme": "http",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 5),
    }
    head = read_head(scope)
    assert Addresses(Settings("unix:///x", Path("/"))).base_url(scope, head) == "http://127.0.0.1:8000"


@given(st.lists(st.tuples(st.text(max_size=5), st.text(max_size=5)), max_size=5))
def test_a_query_without_our_names_reaches_the_app_unchanged(pairs: list[tuple[str, str]]) -> None:
    from urllib.parse import urlencode

    raw = urlencode(pairs)
    if "fal_" not in raw:
        assert split_query(raw.encode(), frozenset({"fal_webhook"})) == (raw, {})


def test_our_names_in_a_query_are_kept_from_the_app() -> None:
    raw = b"a=1&fal_webhook=https%3A%2F%2Fx%2F%3Fb&fal_jwt_token=t&c=&fal_other=2"
    rest, own = split_query(raw, frozenset({"fal_webhook"}))
    assert rest == "a=1&c=&fal_other=2"
    assert own == {"fal_webhook": "https://x/?b", "fal_jwt_token": "t"}


def test_request_ids_are_random_uuids() -> None:
    ids = {new_request_id() for _ in range(1000)}
    assert len(ids) == 1000
    for request_id in ids:
        parsed = uuid.UUID(request_id)
        assert (str(parsed), parsed.version, parsed.variant) == (request_id, 4, uuid.RFC_4122)


@pytest.mark.parametrize(
    "url",
    ["https://example.com/hook?a=b", "http://example.com:80/", "https://93.184.216.34/", "https://[2606:4700::1]/"],
)
def test_public_webhooks_pass(url: str) -> None:
    assert checked_webhook(url, allow_private=False) == url


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "a.localhost", "printer.local", "127.0.0.1", "127.1", "0x7f000001", "2130706433", "0", "0.0.0.0",
        "10.0.0.1", "100.64.0.1", "169.254.169.254", "172.31.0.1", "192.168.1.1", "198.18.0.1", "224.0.0.1",
        "255.255.255.255", "[::1]", "[::]", "[::ffff:10.0.0.1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]", "example.com:8080", "[fe80::1%25eth0]", "[fec0::1]", "[fd00::1]",
        "[ff02::1]", "[2001:db8::1]", "127.0.0.1.",
    ],
)  # fmt: skip
def test_every_spelling_of_a_private_host_is_refused(host: str) -> None:
    with pytest.raises(Refusal) as refused:
        checked_webhook(f"http://{host}/x", allow_private=False)
    assert refused.value.status == 400
    if host != "[fe80::1%25eth0]":
        assert checked_webhook(f"http://{host}/x", allow_private=True)


@pytest.mark.parametrize(
    ("error", "status", "error_type", "retry_after"),
    [
        (errors.StoreUnavailable(), 503, "internal_error", b"1"),
        (errors.StoreFull(), 503, "internal_error", b"5"),
        (errors.QueueFull(), 429, "concurrent_requests_limit", b"5"),
        (errors.IdempotencyConflict(), 422, "bad_request", None),
        (errors.NotFound("No app a/b."), 404, None, None),
        (errors.StoreError("odd"), 500, "internal_error", None),
        (bad_request("no"), 400, "bad_request", None),
        (KeyError("secret"), 500, "internal_error", None),
    ],
)
def test_the_table_of_errors(error: Exception, status: int, error_type: str | None, retry_after: bytes | None) -> None:
    given_status, headers, body = answer_for(error)
    named = dict(headers)
    assert given_status == status
    assert named.get(b"retry-after") == retry_after
    assert named.get(b"x-fal-error-type") == (error_type.encode() if error_type else None)
    parsed = orjson.loads(body)
    assert parsed.get("error_type") == error_type
    assert isinstance(parsed["detail"], str)
    assert "secret" not in parsed["detail"]


@given(st.text(max_size=20))
def test_a_path_that_is_called_safe_stays_inside(path: str) -> None:
    if is_safe_path(path):
        root = Path("/bundle")
        assert (root / path).resolve().is_relative_to(root)
        assert Path(path).as_posix() == path


def test_json_that_cannot_be_is_still_an_answer() -> None:
    assert orjson.loads(wire.dumps({1: Path("/x")})) == {"1": "/x"}
