"""What can be read from an app's class without running it: settings, name, routes."""

from __future__ import annotations

import sys
from typing import Any

import fal
import pytest
from fal._endpoints import collect
from fal._settings import APP_FILES_IGNORE, app_name_of
from fal._spec import AppSpec, EndpointSpec, EnvironmentSpec, HealthCheckSpec, ScalingSpec
from fal.app import app_spec_settings


def _app(**body: Any) -> type[fal.App]:
    """A class with one endpoint; ``keywords`` in ``body`` are class keywords."""
    keywords = body.pop("keywords", {})

    def run(self: Any) -> None: ...

    body.setdefault("run", fal.endpoint("/")(run))
    return type("Demo", (fal.App,), body, **keywords)


def test_keywords_and_attributes_become_one_spec() -> None:
    class MyApp(fal.App, keep_alive=300, min_concurrency=0, max_concurrency=5):
        machine_type = "GPU-A100"
        requirements = ["torch==2.3.0", "accelerate"]

        @fal.endpoint("/")
        def run(self) -> None: ...

        @fal.endpoint("/a/nested")
        def nested(self) -> None: ...

    settings = app_spec_settings(MyApp)
    spec = AppSpec(
        entry_file="app.py",
        environment=EnvironmentSpec(**settings.environment),
        **settings.spec,
    )
    assert spec.name == "my-app"
    assert spec.class_name.endswith("MyApp")
    assert spec.machine_types == ("GPU-A100",)
    assert spec.scaling == ScalingSpec(keep_alive=300, min_concurrency=0, max_concurrency=5)
    assert spec.environment.requirements == (("torch==2.3.0", "accelerate"),)
    assert spec.environment.python_version == f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert spec.endpoints == (EndpointSpec("/", "run"), EndpointSpec("/a/nested", "nested"))
    assert settings.app_files_ignore == APP_FILES_IGNORE
    assert MyApp.keep_alive == 300  # type: ignore[attr-defined]


def test_defaults() -> None:
    spec = app_spec_settings(_app()).spec
    assert spec["machine_types"] == ("S",)
    assert spec["scaling"] == ScalingSpec(keep_alive=60)
    assert spec["auth"] is None


def test_subclasses_inherit_and_override() -> None:
    class Parent(fal.App, keep_alive=300, max_concurrency=4):
        machine_type = "M"

        @fal.endpoint("/")
        def run(self) -> None: ...

    class Child(Parent, keep_alive=5):
        max_concurrency = 7

    scaling = app_spec_settings(Child).spec["scaling"]
    assert (scaling.keep_alive, scaling.max_concurrency) == (5, 7)
    assert app_spec_settings(Child).spec["machine_types"] == ("M",)
    assert app_spec_settings(Parent).spec["scaling"].max_concurrency == 4
    assert Child.host_kwargs["keep_alive"] == 5


def test_a_method_may_be_called_like_a_setting() -> None:
    class Paint(fal.App):
        @fal.endpoint("/image")
        def image(self) -> None: ...

        @fal.endpoint("/metadata")
        def metadata(self) -> None: ...

    assert app_spec_settings(Paint).spec["metadata"] == {}


@pytest.mark.parametrize(
    ("class_name", "expected"),
    [
        ("MyGoodApp", "my-good-app"),
        ("ONNXModel", "o-n-n-x-model"),
        ("SDXL2Turbo", "s-d-x-l-turbo"),
        ("Flux1Dev", "flux-dev"),
        ("snake_case", "snake-case"),
        ("lower", "lower"),
    ],
)
def test_names(class_name: str, expected: str) -> None:
    assert app_name_of(class_name) == expected


def test_a_parents_name_wins_and_says_so() -> None:
    """In fal an explicit name= on a child is ignored in silence, and a deploy then replaces the parent's app."""

    class Parent(fal.App, name="the-parent"): ...

    with pytest.warns(UserWarning, match="name='mine' is ignored"):

        class Child(Parent, name="mine"): ...

    assert Child.app_name == "the-parent"

    class Named(Parent):
        app_name = "mine"

    assert Named.app_name == "mine"


def test_an_unknown_setting_names_the_closest() -> None:
    with pytest.raises(ValueError, match="unknown setting 'keepalive'; did you mean 'keep_alive'"):
        app_spec_settings(_app(keywords={"keepalive": 3}))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"requirements": "torch"}, r"write a list: \['torch'\]"),
        ({"requirements": [1]}, "write a list of pip lines"),
        ({"max_concurrency": 0}, "max_concurrency is 0; it must be a whole number, at least 1 and at most 10000"),
        ({"max_concurrency": 10**30}, r"max_concurrency is 10{30}; it must be a whole number"),
        ({"max_multiplexing": 10**5000}, "max_multiplexing is a number of thousands of digits; it must be"),
        ({"keep_alive": float("inf")}, "keep_alive is inf; it must be a whole number of seconds, at least 0 and at"),
        ({"keep_alive": float("nan")}, "keep_alive is nan; it must be a whole number of seconds"),
        ({"keep_alive": 0.5}, "keep_alive is 0.5; it must be a whole number of seconds"),
        ({"scaling_delay": 1e400}, "scaling_delay is inf; it must be a number of seconds, at least 0"),
        ({"request_timeout": 0}, "request_timeout is 0; it must be a number of seconds, above 0 and at most 31622400"),
        ({"startup_timeout": 0.0}, "startup_timeout is 0.0; it must be a number of seconds, above 0"),
        ({"num_gpus": True}, "num_gpus is True; it must be a whole number"),
        ({"gpu_memory": 12}, 'gpu_memory is 12; write what one worker may take, as in "12GB"'),
        ({"gpu_memory": "12 GB of it"}, "gpu_memory is '12 GB of it'"),
        ({"recycle_above_memory": "much"}, "recycle_above_memory is 'much'"),
        ({"recycle_after_requests": -1}, "recycle_after_requests is -1"),
        ({"gpu_memory": "0GB"}, "gpu_memory is '0GB'"),
        ({"app_priority": 101}, "app_priority is 101; it must be a whole number, at least -100 and at most 100"),
        ({"max_concurrency": 1, "min_concurrency": 2}, "below min_concurrency = 2"),
        ({"keep_alive": -1}, "keep_alive is -1"),
        ({"request_timeout": "10"}, "request_timeout is '10'; it must be a number"),
        ({"app_auth": "open"}, "private, shared, public"),
        ({"machine_type": []}, "machine_type is empty"),
        ({"kind": "container"}, "not supported"),
        ({"image": "python:3.11"}, "not supported"),
        ({"retry_config": {}}, "retry_config is empty"),
        ({"retry_config": {"timeouts": 1}}, "names 'timeouts'"),
        ({"skip_retry_conditions": ["boom"]}, "names 'boom'"),
        ({"app_files": "data"}, "write a list of strings"),
    ],
)
def test_values_that_cannot_be_meant(body: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        app_spec_settings(_app(**body))


def test_more_settings() -> None:
    spec = app_spec_settings(
        _app(
            machine_type=["GPU-H100", "GPU-A100"],
            requirements=[["torch"], ["flash-attn"]],
            retry_config=fal.RetryConfig(server_error=2, timeout=-1),
            secrets=["HF_TOKEN"],
            app_auth="public",
            request_start_timeout=3,
            keywords={"_scheduler": "nomad"},
        )
    )
    assert spec.spec["machine_types"] == ("GPU-H100", "GPU-A100")
    assert spec.environment["requirements"] == (("torch",), ("flash-attn",))
    assert spec.spec["retry_config"] == {"server_error": 2, "timeout": 0}
    assert spec.spec["secrets"] == ("HF_TOKEN",)
    assert spec.spec["auth"] == "public"
    assert spec.ignored == ("_scheduler",)


def test_min_above_the_default_max_raises_the_max() -> None:
    assert app_spec_settings(_app(min_concurrency=4)).spec["scaling"].max_concurrency == 4


def test_init_is_refused() -> None:
    with pytest.raises(ValueError, match=r"put its code into setup\(\)"):
        _app(__init__=lambda self: None)


def test_instances_exist_only_on_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IS_ISOLATE_AGENT", raising=False)
    with pytest.raises(NotImplementedError, match=r"fal run FILE\.py::Demo"):
        _app()()


def test_an_app_needs_an_endpoint() -> None:
    class Empty(fal.App): ...

    with pytest.raises(ValueError, match="Empty has no endpoint"):
        app_spec_settings(Empty)


def test_route_rules() -> None:
    def run(self: Any) -> None: ...

    marked = fal.endpoint("/")(run)
    with pytest.raises(ValueError, match="already an endpoint at '/'"):
        fal.endpoint("/b")(marked)
    with pytest.raises(ValueError, match="must begin with '/'"):
        fal.endpoint("b")(lambda self: None)
    with pytest.raises(ValueError, match="both serve '/'"):
        collect(_app(other=fal.endpoint("/")(lambda self: None)))
    check = fal.HealthCheck()
    with pytest.raises(ValueError, match="an app can have one"):
        collect(
            _app(
                a=fal.endpoint("/a", health_check=check)(lambda self: None),
                b=fal.endpoint("/b", health_check=check)(lambda self: None),
            )
        )
    with pytest.raises(ValueError, match="cannot be a health check"):
        fal.endpoint("/ws", is_websocket=True, health_check=check)


def _asked(cls: type[fal.App]) -> HealthCheckSpec | None:
    found: HealthCheckSpec | None = app_spec_settings(cls).spec["health_check"]
    return found


def test_which_health_check_counts() -> None:
    """The marked endpoint, else the project file's table, else a ``health()`` of the app's own, else none."""
    marked = fal.endpoint("/check", health_check=fal.HealthCheck(failure_threshold=2, call_regularly=False))

    def health(self: Any) -> None: ...

    assert _asked(_app()) is None
    assert _asked(_app(health=health)) == HealthCheckSpec("/health", "GET")
    table = {"path": "/", "timeout_seconds": 20}
    assert _asked(_app(health=health, health_check_config=table)) == HealthCheckSpec("/", timeout_seconds=20)
    assert _asked(_app(health_check_config={"path": "/health"})) == HealthCheckSpec("/health", "GET")
    everything = _app(health=health, health_check_config=table, check=marked(lambda self: None))
    assert _asked(everything) == HealthCheckSpec("/check", failure_threshold=2, call_regularly=False)
    both = _app(health=fal.endpoint("/health", health_check=fal.HealthCheck())(lambda self: None))
    assert _asked(both) == HealthCheckSpec("/health")
    by_get = fal.endpoint("/health", health_check=fal.HealthCheck(method="GET"))
    assert _asked(_app(check=by_get(lambda self: None))) == HealthCheckSpec("/health", "GET")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"timeout_seconds": 0}, "HealthCheck: timeout_seconds is 0; it must be a number of seconds, above 0"),
        ({"failure_threshold": 0}, "HealthCheck: failure_threshold is 0; it must be a whole number, at least 1"),
        ({"start_period_seconds": -1}, "HealthCheck: start_period_seconds is -1"),
        ({"call_regularly": "no"}, "call_regularly is 'no'; write True or False"),
        ({"method": "PUT"}, "method is 'PUT'; write 'POST', or 'GET' for /health"),
    ],
)
def test_health_checks_that_cannot_be_meant(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fal.HealthCheck(**values)
    with pytest.raises(ValueError, match=f"Demo: .*{message}"):
        _asked(_app(health_check_config={"path": "/", **values}))


def test_a_health_check_that_nothing_could_answer_is_refused_with_the_class() -> None:
    """Endpoints answer POST alone: asked by GET, a well runner would be replaced for ever."""
    with pytest.raises(ValueError, match=r"'/check' uses method='GET', but endpoints answer POST only: .* def health"):
        fal.endpoint("/check", health_check=fal.HealthCheck(method="GET"))
    for table, message in (
        ({"path": "/chekc"}, "'/chekc' is no endpoint that answers POST; there are: /"),
        ({"path": "/", "tiemout": 3}, "has the unknown key 'tiemout'; it may have call_regularly, failure_threshold"),
        ({}, "write a table with a path"),
        ("/", "write a table with a path"),
    ):
        with pytest.raises(ValueError, match=message):
            _asked(_app(health_check_config=table))


def test_realtime_is_declared() -> None:
    specs = app_spec_settings(_app(live=fal.realtime("/live", buffering=3)(lambda self, x: x))).spec["endpoints"]
    assert EndpointSpec("/live", "live", is_websocket=True) in specs


def test_cached_runs_once_per_arguments() -> None:
    calls: list[int] = []

    @fal.cached
    def load(n: int) -> int:
        calls.append(n)
        return n

    assert [load(1), load(1), load(2)] == [1, 1, 2]
    assert calls == [1, 2]


def test_functions() -> None:
    @fal.function(requirements=["x"], serve=True, keep_alive=3)
    def my_function(n: int) -> int:
        return n + 1

    assert my_function.run_local(1) == 2
    settings = app_spec_settings(my_function.as_app())
    assert settings.spec["name"] == "my-function"
    assert settings.spec["machine_types"] == ("XS",)
    assert settings.spec["scaling"].keep_alive == 3
    assert app_spec_settings(my_function.on(keep_alive=9).as_app()).spec["scaling"].keep_alive == 9
    with pytest.raises(NotImplementedError, match="run_local"):
        my_function(1)
    with pytest.raises(ValueError, match="did you mean 'keep_alive'"):
        fal.function(keep_aliv=1)

    @fal.function()
    def unserved() -> None: ...

    with pytest.raises(ValueError, match="serve=True"):
        unserved.as_app()
