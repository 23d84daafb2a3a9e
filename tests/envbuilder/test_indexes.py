"""The operator's own index: asked with its password, which no log shows."""

from __future__ import annotations

import base64
import contextlib
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from envbuilder import BuildError, build, placeholders
from envbuilder.key import environment_key
from tests.envbuilder.builds import Built, spec_of
from tests.envbuilder.conftest import MakeSettings
from tests.support.loop import run

PASSWORD = "index-password"
WHEEL = "kw_private_kit-1.0-py3-none-any.whl"


def write_wheel(folder: Path) -> None:
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        wheel.writestr("kw_private_kit.py", "PRICE = 7\n")
        info = "kw_private_kit-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: kw-private-kit\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


class _Guarded(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        expected = "Basic " + base64.b64encode(f"ci:{PASSWORD}".encode()).decode()
        if self.headers.get("authorization") == expected:
            super().do_GET()
        else:
            self.send_response(401)
            self.send_header("www-authenticate", "Basic")
            self.send_header("content-length", "0")
            self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """``host:port`` of an index with one package, for whoever knows the password."""
    write_wheel(tmp_path / "index" / "simple" / "kw-private-kit")
    handler = partial(_Guarded, directory=str(tmp_path / "index"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with contextlib.ExitStack() as stack:
            stack.callback(thread.join, 10)
            stack.callback(server.shutdown)
            yield f"127.0.0.1:{server.server_port}"


def test_a_private_index_of_the_operator(make_settings: MakeSettings, index: str) -> None:
    settings = make_settings(UV_EXTRA_INDEX_URL=f"http://ci:{PASSWORD}@{index}/simple")
    built = run(Built.make(settings, "kw-private-kit", smoke_imports=("kw_private_kit:PRICE",)))
    assert built.version("kw-private-kit") == "1.0"
    assert PASSWORD not in built.text


def test_an_owners_secret_opens_an_index_and_is_told_to_nobody(make_settings: MakeSettings, index: str) -> None:
    """Requirements went to the platform with the token in them: into the key's inputs, the log and the record."""
    lines: list[str] = []
    settings = make_settings()
    spec = spec_of(f"--extra-index-url=http://ci:${{TOKEN}}@{index}/simple", "kw-private-kit")
    assert placeholders(spec) == ("TOKEN",)
    with pytest.raises(BuildError, match=r"the secret TOKEN, which is not set\. Next: `fal secrets set TOKEN`"):
        run(build(spec, settings, lines.append))
    with pytest.raises(BuildError) as refused:
        run(build(spec, settings, lines.append, {"TOKEN": "wrong-password"}))
    assert "wrong-password" not in str(refused.value) + "".join(lines)
    built = run(build(spec, settings, lines.append, {"TOKEN": PASSWORD, "OTHER": "x"}))
    assert "kw-private-kit==1.0" in built.packages
    assert PASSWORD not in "".join(lines)
    assert built.key == environment_key(spec)
    again = run(build(spec, settings, lines.append, {"TOKEN": "another"}))
    assert again.path == built.path, "a new token needs no new environment"


def test_find_links_of_the_operator(make_settings: MakeSettings, tmp_path: Path) -> None:
    write_wheel(tmp_path / "wheels")
    built = run(Built.make(make_settings(UV_FIND_LINKS=str(tmp_path / "wheels")), "kw-private-kit==1.0"))
    assert built.version("kw-private-kit") == "1.0"
