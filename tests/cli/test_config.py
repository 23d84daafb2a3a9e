"""Profiles, keys and addresses: which server a command talks to."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from fal._config import Config, Target, credentials, server_url
from fal._platform import check_machine, configured_server, find_server, guess_check, running_platform
from fal._problem import Problem

from tests.cli.control_server import ControlServer


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    return {"FAL_CONFIG_PATH": str(tmp_path / "fal" / "config.toml"), "KEEPWARM_DATA": str(tmp_path / "data")}


def configure(shell: dict[str, str], text: str) -> None:
    path = Path(shell["FAL_CONFIG_PATH"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_what_is_written_is_read_back_and_private(shell: dict[str, str]) -> None:
    config = Config.load(shell)
    config.choose('odd "name" ')
    config.set("key", 'id:se"cr\\et\n')
    config.set("host", "http://box:8787")
    config.save()
    again = Config.load(shell)
    assert (again.profile, again.get("key"), again.get("host")) == (
        'odd "name" ',
        'id:se"cr\\et\n',
        "http://box:8787",
    )
    assert stat.S_IMODE(again.path.stat().st_mode) == 0o600


def test_a_broken_file_is_named(shell: dict[str, str]) -> None:
    configure(shell, "[default\n")
    with pytest.raises(Problem, match=r"settings file .* cannot be read"):
        Config.load(shell)


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("localhost:8787", "http://localhost:8787"),
        ("127.0.0.1:1", "http://127.0.0.1:1"),
        ("gpu.example.com", "https://gpu.example.com"),
        ("http://gpu.example.com:80/", "http://gpu.example.com:80"),
        (" https://x/base/ ", "https://x/base"),
    ],
)
def test_addresses(given: str, url: str) -> None:
    assert server_url(given) == url


@pytest.mark.parametrize("given", ["ftp://x", "http://", "://", "", "http://x:port"])
def test_addresses_that_are_none(given: str) -> None:
    with pytest.raises(Problem, match="is not the address of a server"):
        server_url(given)


def test_keys_from_the_environment() -> None:
    assert credentials({"FAL_KEY": " a:b "}) == "a:b"
    assert credentials({"FAL_KEY_ID": "a", "FAL_KEY_SECRET": "b"}) == "a:b"
    assert credentials({"FAL_KEY_ID": "a"}) is None


def test_the_variable_beats_the_profile(shell: dict[str, str]) -> None:
    configure(shell, '[__internal__]\nprofile = "one"\n[one]\nhost = "http://one"\nkey = "a:b"\n')
    target = configured_server(shell)
    assert target is not None
    assert (target.url, target.key) == ("http://one", "a:b")
    target = configured_server(shell | {"KEEPWARM_URL": "http://two", "FAL_KEY": "c:d"})
    assert target == Target("http://two", "c:d", "KEEPWARM_URL")
    # The profile's key belongs to its own host, and to no other.
    assert configured_server(shell | {"KEEPWARM_URL": "http://two"}) == Target("http://two", None, "KEEPWARM_URL")
    assert configured_server(shell | {"KEEPWARM_URL": "http://one"}) == Target("http://one", "a:b", "KEEPWARM_URL")


def test_a_stock_profile_with_only_a_key_names_no_server(shell: dict[str, str]) -> None:
    configure(shell, '[__internal__]\nprofile = "cloud"\n[cloud]\nkey = "a:b"\n')
    assert configured_server(shell) is None


def test_an_unknown_profile_is_named(shell: dict[str, str]) -> None:
    configure(shell, '[one]\nhost = "http://one"\n')
    assert configured_server(shell | {"FAL_PROFILE": "one"}) is not None
    with pytest.raises(Problem, match="FAL_PROFILE names the profile 'two'"):
        configured_server(shell | {"FAL_PROFILE": "two"})


def platform_file(shell: dict[str, str], url: str, pid: int) -> None:
    folder = Path(shell["KEEPWARM_DATA"])
    folder.mkdir()
    content = {"url": url, "redis_url": "unix:///x", "pid": pid, "owner": "tester", "ephemeral": False}
    (folder / "platform.json").write_text(json.dumps(content))
    (folder / "admin.key").write_text("id:secret\n")


def test_a_running_platform_is_found_with_its_key(shell: dict[str, str], control: ControlServer) -> None:
    platform_file(shell, control.url, os.getpid())
    target = find_server(shell)
    assert (target.url, target.key, target.local) == (control.url, "id:secret", True)


def test_a_platform_that_died_is_not_found(shell: dict[str, str], control: ControlServer) -> None:
    """A machine was switched off: platform.json names a process that is no more, or another one by now."""
    platform_file(shell, control.url, 2**22 + 1)
    assert running_platform(shell) is None
    (Path(shell["KEEPWARM_DATA"]) / "platform.json").unlink()
    Path(shell["KEEPWARM_DATA"], "admin.key").unlink()
    Path(shell["KEEPWARM_DATA"]).rmdir()
    platform_file(shell, "http://127.0.0.1:9", os.getpid())
    assert running_platform(shell) is None
    with pytest.raises(Problem, match="No platform to talk to") as caught:
        find_server(shell)
    assert "keepwarm up" in caught.value.next_step


def test_the_machine_is_asked_about_gpu_types_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KEEPWARM_OFFER", raising=False)
    monkeypatch.delenv("KEEPWARM_CPU_FALLBACK", raising=False)
    check_machine(("M",))
    check_machine(("GPU-H9000", "XS"))
    with pytest.raises(Problem, match="No host offers GPU-H9000") as caught:
        check_machine(("GPU-H9000",))
    assert caught.value.next_step


def test_the_guess_is_used_when_it_was_right(tmp_path: Path, shell: dict[str, str]) -> None:
    file = tmp_path / "app.py"
    file.write_text('machine_type = "GPU-H9000"\n')
    check = guess_check(file, shell)
    assert check is not None
    assert check.machine_types == ("GPU-H9000",)
    with pytest.raises(Problem, match="No host offers GPU-H9000"):
        check_machine(("GPU-H9000",), check)
    assert guess_check(file, shell | {"KEEPWARM_URL": "http://x"}) is None
    file.write_text('a, b = "GPU-A100", "GPU-H100"\n')
    assert guess_check(file, shell) is None
