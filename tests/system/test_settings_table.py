"""Settings of an app class, each seen at work on a whole platform; `rows.py` says which test is whose."""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.platform import PlatformUnderTest
from tests.support.waiting import wait_until

PROJECT = "tests/system/apps/project/settled.py"
LIMITS = "tests/system/apps/limits.py"
LIMITED = ("Buffered", "BufferedPerc", "Delayed", "Hurried", "Retried", "Untried", "Graceless", "SlowStart")


@pytest.fixture(scope="module")
def settled(platform: PlatformUnderTest) -> str:
    """The URL of the app that sets everything."""
    platform.fal("secrets", "set", "LISTED=1", "UNLISTED=1")
    done = platform.fal("deploy", f"{PROJECT}::Settled", "--json")
    assert "keeps the name 'settled'" in done.stderr
    return str(json.loads(done.stdout.splitlines()[-1])["urls"]["sync"])


@pytest.fixture(scope="module")
def told(settled: str) -> dict[str, Any]:
    """What it found."""
    return post(settled).json()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def shown(platform: PlatformUnderTest, told: dict[str, Any]) -> dict[str, Any]:
    """What the platform says of it."""
    return json.loads(platform.fal("apps", "show", "settled", "--json").stdout)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def limited(platform: PlatformUnderTest) -> dict[str, str]:
    """URLs of the apps with one limit each, by class."""
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(LIMITED, pool.map(lambda name: platform.deploy(LIMITS, name), LIMITED), strict=True))


def post(url: str, **body: Any) -> httpx.Response:
    return httpx.post(url, json=body, trust_env=False, timeout=120)


def revision(platform: PlatformUnderTest, app: str) -> dict[str, Any]:
    return json.loads(platform.fal("apps", "list-rev", app, "--json").stdout)[0]  # type: ignore[no-any-return]


def test_names(shown: dict[str, Any]) -> None:
    """The attribute wins over the keyword."""
    assert shown["app"] == "tester/settled"
    assert shown["class_name"] == "Settled"


CLASSES = {"MyGoodApp": "my-good-app", "ONNXModel": "o-n-n-x-model", "Flux1Dev": "flux-dev", "snake_Case": "snake-case"}


@pytest.mark.parametrize(("name", "app"), CLASSES.items())
def test_the_name_that_a_class_gets(platform: PlatformUnderTest, tmp_path: Path, name: str, app: str) -> None:
    (tmp_path / "named.py").write_text(
        f"import fal\n\nclass {name}(fal.App):\n    machine_type = 'XS'\n\n"
        "    @fal.endpoint('/')\n    def run(self) -> dict:\n        return {}\n"
    )
    checked = json.loads(platform.fal("deploy", f"{tmp_path}/named.py::{name}", "--check", "--json").stdout)
    assert checked["app"] == f"tester/{app}"


def test_a_parents_name_wins(platform: PlatformUnderTest, tmp_path: Path) -> None:
    (tmp_path / "family.py").write_text(
        "import fal\n\nclass Elder(fal.App, name='elder'):\n    machine_type = 'XS'\n\n"
        "    @fal.endpoint('/')\n    def run(self) -> dict:\n        return {}\n\n"
        "class Younger(Elder, name='younger'):\n    pass\n"
    )
    done = platform.fal("deploy", f"{tmp_path}/family.py::Younger", "--check", "--json")
    assert json.loads(done.stdout)["app"] == "tester/elder"
    done = platform.fal("deploy", f"{tmp_path}/family.py::Younger", "--check", "--json", "--app-name", "given")
    assert json.loads(done.stdout)["app"] == "tester/given"


def test_app_auth(platform: PlatformUnderTest, settled: str, shown: dict[str, Any]) -> None:
    """The class says public; without anything an app is private."""
    assert shown["auth"] == "public"
    assert post(settled).status_code == 200
    platform.fal("deploy", "tests/system/apps/basic.py::Async", "--app-name", "private-by-itself")
    assert post(f"{platform.url}/tester/private-by-itself").status_code == 401


def test_machine_types_in_order(platform: PlatformUnderTest, told: dict[str, Any], shown: dict[str, Any]) -> None:
    """Nobody offers the first one."""
    assert shown["machine_types"] == ["GPU-NOBODY-HAS-THIS", "XS"]
    assert {worker["machine_type"] for worker in platform.workers("tester/settled")} == {"XS"}


def test_requirements_from_a_folder_of_this_machine(told: dict[str, Any]) -> None:
    assert told["library"] == "from the shelf"


def test_local_python_modules_travel(told: dict[str, Any]) -> None:
    assert told["carried"] == "carried along"


def test_app_files_lie_where_the_app_runs_and_at_app(told: dict[str, Any]) -> None:
    assert told["text"] == told["at /app"] == "hello"
    assert told["files"] == ["texts/a.txt"], "what app_files_ignore fits stays here"
    assert told["on the path"], "the working folder can be imported from"


def test_python_version_resolver_and_kind(told: dict[str, Any]) -> None:
    assert told["python"] == [str(number) for number in sys.version_info[:2]]


def test_scaling_settings_of_class_parent_and_host_kwargs(shown: dict[str, Any]) -> None:
    expected = {
        "keep_alive": 77,  # the class's keyword, not its parent's
        "max_concurrency": 4,  # its attribute
        "scaling_delay": 0.25,  # the parent's host_kwargs
        "concurrency_buffer_perc": 10,
        "min_concurrency": 0,
        "request_timeout": 55,
    }
    assert {name: shown["scaling"][name] for name in expected} == expected


def test_secrets_are_those_that_are_listed(told: dict[str, Any]) -> None:
    assert told["secrets"] == {"LISTED": True, "UNLISTED": False}


def test_accepted_without_effect(shown: dict[str, Any], told: dict[str, Any]) -> None:
    """regions, data_mounts, metrics_port, private_logs, compile_bytecode, exposed_port, setup_function, force,
    _scheduler, _scheduler_options, _base_image, isolate_channel, local_file_path: the app was deployed with them."""
    assert shown["health"] == "OK"


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("kind = 'container'", "a container image, which is not supported"),
        ("kind = 'conda'", "an environment of kind 'conda', which is not supported"),
        ("image = fal.ContainerImage.from_dockerfile_str('FROM x')", "a container image, which is not supported"),
        ("requirements = 'torch'", "write a list: ['torch']"),
        ("skip_retry_conditions = ['rain']", "conditions are timeout, server_error, connection_error"),
        ("retry_config = {}", "retry_config is empty"),
        ("machine_type = 'GPU-NOBODY-HAS-THIS'", "no host offers GPU-NOBODY-HAS-THIS"),
        ("def __init__(self): pass", "put its code into setup()"),
    ],
)
def test_refusals(platform: PlatformUnderTest, tmp_path: Path, setting: str, says: str) -> None:
    (tmp_path / "refused.py").write_text(
        f"import fal\n\nclass Refused(fal.App):\n    {setting}\n\n"
        "    @fal.endpoint('/')\n    def run(self) -> dict:\n        return {}\n"
    )
    done = platform.fal("deploy", f"{tmp_path}/refused.py", check=False)
    assert (done.returncode, says.lower() in done.stderr.lower()) == (1, True), done.stderr


def test_an_unknown_setting_is_refused_with_the_closest(platform: PlatformUnderTest, tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(
        "import fal\n\nclass Odd(fal.App, keep_aliv=3):\n"
        "    @fal.endpoint('/')\n    def run(self) -> dict:\n        return {}\n"
    )
    assert "did you mean 'keep_alive'?" in platform.fal("deploy", f"{tmp_path}/odd.py", check=False).stderr


def test_an_instance_is_made_on_a_worker_only() -> None:
    from tests.system.apps.basic import Counting

    with pytest.raises(NotImplementedError, match="fal run"):
        Counting()


@pytest.mark.parametrize("name", ["Buffered", "BufferedPerc"])
def test_a_buffer_adds_runners_to_the_load(platform: PlatformUnderTest, limited: dict[str, str], name: str) -> None:
    app = limited[name].removeprefix(f"{platform.url}/")
    with ThreadPoolExecutor(1) as pool:
        calling = pool.submit(post, limited[name], seconds=1.5)
        wait_until(lambda: len(platform.workers(app)) == 2, "one runner for the request and one beside it", timeout=60)
        assert calling.result().status_code == 200


def test_scaling_delay_holds_a_start_back(platform: PlatformUnderTest, limited: dict[str, str]) -> None:
    """The runner was ordered no earlier than a second after the request that wants it."""
    app = limited["Delayed"].removeprefix(f"{platform.url}/")
    before = time.time()
    assert post(limited["Delayed"]).status_code == 200
    (worker,) = platform.workers(app)
    assert datetime.fromisoformat(worker["created_at"]).timestamp() >= before + 1.0


def test_request_timeout(limited: dict[str, str]) -> None:
    answer = post(limited["Hurried"], seconds=30, tag="hurried")
    assert (answer.status_code, answer.headers["x-fal-error-type"]) == (504, "request_timeout")


def test_request_start_timeout(platform: PlatformUnderTest, limited: dict[str, str]) -> None:
    """Its class gives two seconds; a header may say otherwise, and 0 that there is no limit."""
    url = f"/queue/{limited['Retried'].removeprefix(f'{platform.url}/')}"
    with platform.client() as client:
        holding = client.post(url, json={"seconds": 3}).json()
        late = client.post(url, json={}, headers={"x-fal-request-timeout": "0.5"}).json()
        wait_until(lambda: client.get(late["status_url"]).status_code == 200, "it to be given up")
        answer = client.get(late["response_url"])
        assert (answer.status_code, answer.json()["error_type"]) == (504, "request_timeout")
        wait_until(lambda: client.get(holding["status_url"]).status_code == 200, "the other to end")
        shown = json.loads(platform.fal("apps", "show", "hurried", "--json").stdout)
        assert shown["scaling"]["request_start_timeout"] == 2


def test_startup_timeout(limited: dict[str, str]) -> None:
    answer = post(limited["SlowStart"])
    assert (answer.status_code, answer.headers["x-fal-error-type"]) == (504, "startup_timeout")


@pytest.mark.parametrize(("name", "tries"), [("Retried", 2), ("Untried", 1)])
def test_how_often_a_request_is_tried(
    platform: PlatformUnderTest, limited: dict[str, str], name: str, tries: int
) -> None:
    url = f"/queue/{limited[name].removeprefix(f'{platform.url}/')}"
    with platform.client() as client:
        made = client.post(f"{url}/die", json={"tag": name}).json()
        wait_until(lambda: client.get(made["status_url"]).status_code == 200, "it to be given up", timeout=60)
        assert client.get(made["response_url"]).status_code == 503
    assert (platform.data / "data" / f"tries-{name}").read_text() == "x" * tries


def test_termination_grace_ends_a_runner_that_does_not(platform: PlatformUnderTest, limited: dict[str, str]) -> None:
    app = limited["Graceless"].removeprefix(f"{platform.url}/")
    with ThreadPoolExecutor(1) as pool:
        calling = pool.submit(post, limited["Graceless"], seconds=60)
        wait_until(
            lambda: any(w["state"] == "RUNNING" for w in platform.workers(app)), "the request to run", timeout=60
        )
        platform.fal("runners", "stop", platform.workers(app)[0]["worker_id"])
        assert calling.result().status_code == 503
    assert (platform.data / "data" / "graceless-told").exists(), "handle_exit() was called"
