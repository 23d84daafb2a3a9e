"""What the builder looks up before it installs: upload times, local CPU wheels, settings. No network."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from envbuilder import BuildSettings
from envbuilder.cpu_wheels import cpu_constraints, installed_cpu_build
from envbuilder.pin_dates import first_met, index_urls
from envbuilder.requirements import parse, parse_line

PYTHON = (3, 11)


def file(name: str, day: str, **more: object) -> dict[str, object]:
    return {"filename": name, "upload-time": f"{day}T10:00:00Z", **more}


def day_of(line: str, *files: dict[str, object]) -> str | None:
    moment = first_met(files, parse_line(line), PYTHON)
    return moment.strftime("%Y-%m-%d") if moment else None


def test_a_pin_is_as_old_as_the_first_wheel_that_fits_this_python() -> None:
    files = (
        file("a-1.0.tar.gz", "2023-01-01"),
        file("a-1.0-cp310-cp310-manylinux_2_17_x86_64.whl", "2023-01-01"),
        file("a-1.0-cp311-cp311-manylinux_2_17_x86_64.manylinux_2_17_aarch64.whl", "2023-05-01"),
        file("a-1.0-cp311-abi3-manylinux_2_17_x86_64.manylinux_2_17_aarch64.whl", "2025-05-01"),
        file("a-2.0-py3-none-any.whl", "2024-01-01"),
    )
    assert day_of("a==1.0", *files) == "2023-05-01"
    assert day_of("a>=1.5", *files) == "2024-01-01"
    assert day_of("a>=3", *files) is None


def test_without_a_fitting_wheel_the_source_dates_it() -> None:
    assert day_of("a==1.0", file("a-1.0.tar.gz", "2023-01-01"), file("a-1.0-cp39-cp39-win32.whl", "2022-01-01")) == (
        "2022-01-01"
    )


def test_ranges_pass_over_yanked_and_unfinished_releases_but_pins_do_not() -> None:
    files = (
        file("a-2.0-py3-none-any.whl", "2023-01-01", yanked="broken"),
        file("a-2.1rc1-py3-none-any.whl", "2023-02-01"),
        file("a-2.1-py3-none-any.whl", "2023-03-01"),
    )
    assert day_of("a>=2", *files) == "2023-03-01"
    assert day_of("a==2.0", *files) == "2023-01-01"
    assert day_of("a==2.1rc1", *files) == "2023-02-01"


@pytest.mark.parametrize("entry", [{"filename": "a-1.0.tar.gz"}, {"filename": 7, "upload-time": "2024"}, {}])
def test_an_index_without_upload_times_dates_nothing(entry: dict[str, object]) -> None:
    assert first_met([entry], parse_line("a==1.0"), PYTHON) is None


def test_indexes_are_asked_in_uvs_order() -> None:
    settings = BuildSettings.from_env(
        {
            "UV_DEFAULT_INDEX": "https://main/simple/",
            "UV_INDEX": "mine=https://named/simple",
            "UV_EXTRA_INDEX_URL": "https://extra/simple file:///mirror",
        }
    )
    asked = parse([["--extra-index-url https://own/simple", "a"]])
    assert index_urls(asked, settings) == (
        "https://own/simple",
        "https://named/simple",
        "https://extra/simple",
        "https://main/simple",
    )


@pytest.fixture
def wheels(tmp_path: Path) -> str:
    for name in (
        "torch-2.12.0+cpu-cp311-cp311-manylinux_2_28_x86_64.manylinux_2_28_aarch64.whl",
        "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.manylinux_2_28_aarch64.whl",
        "torch-2.14.0+cpu-cp312-cp312-manylinux_2_28_x86_64.whl",
        "torch-2.15.0-cp311-cp311-manylinux_2_28_x86_64.whl",
        "torch-nonsense.whl",
    ):
        (tmp_path / name).touch()
    return str(tmp_path)


@pytest.mark.parametrize(
    ("lines", "held"),
    [
        (["torch"], ("torch==2.13.0+cpu",)),
        (["accelerate"], ("torch==2.13.0+cpu",)),
        (["torch==2.13.0"], ("torch==2.13.0+cpu",)),
        (["torch<2.13"], ("torch==2.12.0+cpu",)),
        (["torch==2.3.0"], ()),
        (["torch @ https://x/torch.whl"], ()),
        (["torch", "--extra-index-url https://download/whl/cpu"], ()),
    ],
)
def test_torch_is_held_to_the_newest_local_cpu_wheel_that_the_user_admits(
    wheels: str, lines: list[str], held: tuple[str, ...]
) -> None:
    assert cpu_constraints(parse([lines]), (wheels, "https://not/listed"), PYTHON) == held


def test_a_cpu_build_is_known_by_its_version() -> None:
    assert installed_cpu_build(["six==1.0", "torch==2.13.0+cpu"])
    assert not installed_cpu_build(["torch==2.13.0", "torchvision==1+cpu"])


def test_pip_variables_stand_in_where_uv_ones_are_absent(tmp_path: Path) -> None:
    pip = {
        "PIP_FIND_LINKS": f"{tmp_path} /not/there https://links",
        "PIP_INDEX_URL": "https://main/simple",
        "PIP_EXTRA_INDEX_URL": "https://a https://b",
        "PIP_CERT": "/cert.pem",
    }
    settings = BuildSettings.from_env(pip)
    assert settings.find_links == (str(tmp_path), "https://links")
    assert (settings.default_index, settings.extra_indexes) == ("https://main/simple", ("https://a", "https://b"))
    assert settings.child_environment["SSL_CERT_FILE"] == "/cert.pem"
    both = BuildSettings.from_env({**pip, "UV_FIND_LINKS": "", "UV_DEFAULT_INDEX": "https://uv/simple"})
    assert (both.find_links, both.default_index, both.extra_indexes) == ((), "https://uv/simple", ())


def test_children_see_nothing_that_is_not_named() -> None:
    settings = BuildSettings.from_env(
        {
            "PATH": "/bin",
            "PYTHONPATH": "/evil",
            "PYTHONDONTWRITEBYTECODE": "1",
            "KEEPWARM_REDIS_URL": "redis://secret",
            "UV_LINK_MODE": "hardlink",
            "UV_INDEX_MINE_PASSWORD": "p",
            "HTTPS_PROXY": "http://proxy",
        }
    )
    assert settings.child_environment == {
        "PATH": "/bin",
        "LANG": "C.UTF-8",
        "UV_INDEX_MINE_PASSWORD": "p",
        "HTTPS_PROXY": "http://proxy",
    }


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("KEEPWARM_LINK_MODE", "symlink", "use one of auto, clone, copy, hardlink"),
        ("KEEPWARM_BUILD_WALL_SECONDS", "soon", "is not a number"),
        ("KEEPWARM_BUILD_DISK_FLOOR_BYTES", "-1", "is negative"),
    ],
)
def test_settings_name_the_variable_that_is_wrong(name: str, value: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        BuildSettings.from_env({name: value})
    assert name in str(caught.value)


def test_times_are_shown_in_utc() -> None:
    assert first_met([file("a-1.tar.gz", "2024-01-01")], parse_line("a==1"), PYTHON) == datetime(
        2024, 1, 1, 10, tzinfo=UTC
    )
