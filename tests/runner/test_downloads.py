"""Fetching what callers and apps name by URL: what is refused, what is kept, what a broken transfer leaves."""

from __future__ import annotations

import http.server
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fal import _context
from fal._addresses import is_public
from fal.toolkit._fetching import checked_address, fetch
from fal.toolkit.exceptions import DownloadError
from fal.toolkit.utils import download_utils
from fal.toolkit.utils.download_utils import clone_repository, download_file, download_model_weights


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "192.0.0.8", "192.88.99.1", "198.18.0.1", "203.0.113.9", "::1", "::", "::127.0.0.1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::", "2001::1",
        "2001:db8::1", "3fff::1", "fe80::1", "fe80::1%eth0", "fec0::1", "fc00::1", "ff02::1", "5f00::1", "",
        "localhost",
    ],
)  # fmt: skip
def test_addresses_that_are_refused(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_addresses_that_are_allowed(address: str) -> None:
    assert is_public(address)


class _Platform:
    def __init__(self, *hosts: str) -> None:
        self.storage_hosts = frozenset(hosts)
        self.values: _context.Values | None = None

    def store(self, source: bytes | Path, name: str, content_type: str) -> str | None:
        return None

    def reserve(self, name: str) -> _context.Place | None:
        return None

    def fill(self, place: _context.Place, source: bytes | Path, name: str, content_type: str) -> None:
        raise OSError


class _Site(http.server.BaseHTTPRequestHandler):
    seen: list[tuple[str, str | None]] = []

    def do_GET(self) -> None:
        type(self).seen.append((self.path, self.headers.get("Authorization")))
        if self.path.startswith("/redirect/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/redirect/"))
            self.end_headers()
        elif self.path == "/loop":
            self.send_response(302)
            self.send_header("Location", "/loop")
            self.end_headers()
        elif self.path == "/missing":
            self.send_error(404)
        else:
            body = b"0123456789" * 100
            self.send_response(200)
            claimed = len(body) * 2 if self.path == "/short" else len(body)
            if self.path != "/chunkless":
                self.send_header("Content-Length", str(claimed))
            if self.path == "/named":
                self.send_header("Content-Disposition", 'attachment; filename="../weights 1.bin"')
            self.send_header("Content-Type", "text/plain")
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    """A server on loopback that the platform calls its own."""
    _Site.seen = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    _context.set_runner(_Platform(f"127.0.0.1:{server.server_port}"))
    yield f"http://127.0.0.1:{server.server_port}"
    _context.set_runner(None)
    server.shutdown()
    server.server_close()


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(download_utils, "FAL_PERSISTENT_DIR", tmp_path)
    monkeypatch.setattr(download_utils, "FAL_MODEL_WEIGHTS_DIR", tmp_path / "weights")
    return tmp_path


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "http://localhost/x", "http://[::1]/", "http://0x7f000001/"])
def test_private_addresses_are_refused(url: str) -> None:
    with pytest.raises(DownloadError, match=r"not a public address|cannot resolve"):
        fetch(url)


@pytest.mark.parametrize(
    "url", ["ftp://example.com/a", "file:///etc/passwd", "http:///x", "http://a:99999/", "nothing"]
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(DownloadError):
        fetch(url)


def test_one_private_answer_among_public_ones_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name may answer with a public address first and with the metadata service second."""

    def answers(*args: object, **kwargs: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        return [(2, 1, 6, "", ("93.184.216.34", 80)), (2, 1, 6, "", ("169.254.169.254", 80))]

    monkeypatch.setattr("socket.getaddrinfo", answers)
    with pytest.raises(DownloadError, match=r"169\.254\.169\.254"):
        checked_address("rebinding.example", 80)


def test_the_platforms_own_storage_is_reachable_and_nothing_else_on_that_host(site: str) -> None:
    assert fetch(f"{site}/a")[0] == b"0123456789" * 100
    with pytest.raises(DownloadError, match="not a public address"):
        fetch("http://127.0.0.1:1/a")


def test_redirects_are_followed_and_checked(site: str) -> None:
    assert fetch(f"{site}/redirect/{site}/a")[1] == "text/plain"
    with pytest.raises(DownloadError, match="not a public address"):
        fetch(f"{site}/redirect/http://10.0.0.1/a")
    with pytest.raises(DownloadError, match="not an http"):
        fetch(f"{site}/redirect/file:///etc/passwd")
    with pytest.raises(DownloadError, match="redirects"):
        fetch(f"{site}/loop")


def test_credentials_do_not_follow_a_redirect_elsewhere(site: str) -> None:
    other = site.replace("127.0.0.1", "localhost")
    port = site.rpartition(":")[2]
    _context.set_runner(_Platform(f"127.0.0.1:{port}", f"localhost:{port}"))
    fetch(f"{site}/redirect/{other}/a", headers={"Authorization": "secret"})
    fetch(f"{site}/redirect/{site}/b", headers={"Authorization": "secret"})
    assert [seen for seen in _Site.seen if not seen[0].startswith("/redirect")] == [("/a", None), ("/b", "secret")]


def test_limits_and_errors(site: str) -> None:
    with pytest.raises(DownloadError, match="limit is 10"):
        fetch(f"{site}/a", limit=10)
    with pytest.raises(DownloadError, match="limit of 10"):
        fetch(f"{site}/chunkless", limit=10)
    with pytest.raises(DownloadError, match="answered 404"):
        fetch(f"{site}/missing")
    with pytest.raises(DownloadError, match="broke off"):
        fetch(f"{site}/short")


def test_download_file_keeps_what_is_there(site: str, data: Path) -> None:
    path = download_file(f"{site}/weights.bin?signature=x", "models")
    assert path == data / "models" / "weights.bin"
    assert path.stat().st_size == 1000
    path.write_bytes(b"m" * 1000)
    assert download_file(f"{site}/weights.bin", "models").read_bytes() == b"m" * 1000
    assert download_file(f"{site}/weights.bin", "models", force=True).read_bytes() != b"m" * 1000
    path.write_bytes(b"half")
    assert download_file(f"{site}/weights.bin", "models").stat().st_size == 1000
    assert download_file(f"{site}/named", data / "elsewhere") == data / "elsewhere" / "weights 1.bin"


def test_a_broken_download_leaves_nothing(site: str, data: Path) -> None:
    for url, options in ((f"{site}/short", {}), (f"{site}/big", {"filesize_limit": 0})):
        with pytest.raises(DownloadError):
            download_file(url, "models", **options)  # type: ignore[arg-type]
    assert not (data / "models").exists() or not list((data / "models").iterdir())


def test_weights_are_fetched_once(site: str, data: Path) -> None:
    url = f"{site}/model.safetensors"
    first = download_model_weights(url)
    assert download_model_weights(url) == first
    assert len(_Site.seen) == 1
    assert (first.parent / ".fal_used").exists()
    assert first.parent.parent == data / "weights"
    download_model_weights(url, force=True)
    assert len(_Site.seen) == 2


def _git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "init.defaultBranch=main"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_clone_repository(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin = tmp_path / "origin"
    origin.mkdir()
    _git(origin, "init")
    (origin / "code.py").write_text("VALUE = 1\n")
    _git(origin, "add", ".")
    _git(origin, "commit", "-m", "one")
    commit = _git(origin, "rev-parse", "HEAD")
    # git itself maps the https address to the folder, so that no network is needed.
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.{origin}.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "https://git.example/me/code.git")
    url = "https://git.example/me/code.git"
    target = clone_repository(url, commit_hash=commit, target_dir="repos")
    assert target == data / "repos" / f"code-{commit[:8]}"
    assert (target / "code.py").is_file()
    (target / "mine").touch()
    assert (clone_repository(url, commit_hash=commit, target_dir="repos") / "mine").exists()
    assert not (clone_repository(url, commit_hash=commit, target_dir="repos", force=True) / "mine").exists()
    assert [path.name for path in (data / "repos").iterdir()] == [target.name]
    with pytest.raises(ValueError, match="at least 8"):
        clone_repository(url, commit_hash="abc")
    with pytest.raises(DownloadError, match="checkout failed"):
        clone_repository(url, commit_hash="0" * 40, target_dir="repos")
    with pytest.raises(ValueError, match="not an https"):
        clone_repository("git@example.com:x")
