"""A developer's own tests: an app on a real runner for the length of a with block."""

from __future__ import annotations

import pytest
from fal.app import AppClient, AppClientError

from tests.support.platform import PlatformUnderTest
from tests.system.apps.adder import Adder, Broken, Input, Output


@pytest.fixture
def shell(platform: PlatformUnderTest, monkeypatch: pytest.MonkeyPatch) -> PlatformUnderTest:
    """This process as a shell that knows the platform."""
    for name, value in platform.shell().items():
        monkeypatch.setenv(name, value)
    return platform


def test_endpoints_are_methods_that_take_and_return_what_they_say(shell: PlatformUnderTest) -> None:
    with AppClient.connect(Adder) as client:
        assert client.health() == {"version": "unknown"}
        assert client.add({"a": 2, "b": 3}) == Output(total=5)
        assert client.add(Input(a=2)) == Output(total=3)
        assert client.add.__doc__ == "Add two numbers."
        assert client.count() == {"calls": 2}
        with pytest.raises(AppClientError, match="a teapot") as refused:
            client.refuse()
        assert (refused.value.status_code, refused.value.headers["x-pot"]) == (418, "tea")
        with pytest.raises(AppClientError, match="Input should be a valid integer") as invalid:
            client.add({"a": "much"})
        assert invalid.value.status_code == 422
        app = client.url.removeprefix(f"{shell.url}/")
    assert app not in shell.fal("apps", "list", "--all").stdout, "it is gone with the block"


def test_an_app_that_does_not_start_says_why(shell: PlatformUnderTest) -> None:
    with (
        pytest.raises(AppClientError, match="no weights here") as failed,
        AppClient.connect(Broken, startup_timeout=3, health_check_interval=0.1),
    ):
        pass
    assert failed.value.status_code == 503
    assert "was not healthy within 3 s" in failed.value.message


def test_a_class_that_cannot_be_run_says_so(shell: PlatformUnderTest) -> None:
    class Inner(Adder):
        pass

    with pytest.raises(AppClientError, match=r"Inner could not be run:\n(.*\n)*.*Inner"), AppClient.connect(Inner):
        pass
