"""From a reference to a spec: what is read out of real files, and what a user is told when that fails."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest
from fal._loading import LoadError, load
from fal._spec import HealthCheckSpec

pytestmark = pytest.mark.usefixtures("fresh_modules")

HELLO = """
    import fal
    from pydantic import BaseModel

    class Input(BaseModel):
        name: str

    class Hello(fal.App, keep_alive=300, max_concurrency=5):
        machine_type = "M"
        requirements = ["numpy==2.1.0", "six"]

        def setup(self):
            import numpy
            import json

        @fal.endpoint("/")
        def run(self, input: Input) -> dict[str, str]:
            return {"hello": input.name}

        @fal.endpoint("/images/up")
        def up(self, input: Input) -> dict[str, str]:
            return {}
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(text))
    return path


def test_reads_everything_that_the_platform_is_told(tmp_path: Path) -> None:
    write(tmp_path, "app.py", HELLO)
    loaded = load("app.py::Hello", cwd=tmp_path)
    spec = loaded.spec
    assert (spec.name, spec.class_name, spec.entry_file) == ("hello", "Hello", "app.py")
    assert spec.machine_types == ("M",)
    assert (spec.scaling.keep_alive, spec.scaling.max_concurrency) == (300, 5)
    assert [(endpoint.path, endpoint.name) for endpoint in spec.endpoints] == [("/", "run"), ("/images/up", "up")]
    assert spec.environment.requirements == (("numpy==2.1.0", "six"),)
    assert spec.environment.smoke_imports == ("numpy", "pydantic:BaseModel")
    assert spec.auth is None
    assert [file.path for file in loaded.bundle.files] == ["app.py"]


def test_the_only_app_needs_no_name_and_a_base_class_is_not_a_second_one(tmp_path: Path) -> None:
    extended = HELLO + "\n\n    class Loud(Hello):\n        app_name = 'loud'\n"
    write(tmp_path, "app.py", extended)
    assert load("app.py", cwd=tmp_path).spec.class_name == "Loud"


def test_command_line_beats_the_class(tmp_path: Path) -> None:
    write(tmp_path, "app.py", HELLO)
    spec = load("app.py", app_name="other-name", auth="shared", machine_type="GPU-H100", cwd=tmp_path).spec
    assert (spec.name, spec.auth, spec.machine_types) == ("other-name", "shared", ("GPU-H100",))


def test_run_is_public_whatever_the_class_says(tmp_path: Path) -> None:
    write(tmp_path, "app.py", HELLO.replace('machine_type = "M"', 'app_auth = "private"'))
    assert load("app.py", cwd=tmp_path).spec.auth == "private"
    assert load("app.py", run=True, cwd=tmp_path).spec.auth == "public"


def test_layers_of_requirements_keep_their_order(tmp_path: Path) -> None:
    write(tmp_path, "app.py", HELLO.replace('["numpy==2.1.0", "six"]', '[["six"], ["numpy==2.1.0"]]'))
    assert load("app.py", cwd=tmp_path).spec.environment.requirements == (("six",), ("numpy==2.1.0",))


def test_relative_imports_make_the_package_the_bundle(tmp_path: Path) -> None:
    write(tmp_path, "shop/__init__.py", "")
    write(tmp_path, "shop/prices.py", "VALUE = 3\n")
    write(tmp_path, "shop/app.py", HELLO + "\n    from .prices import VALUE\n")
    loaded = load("shop/app.py::Hello", cwd=tmp_path)
    assert loaded.spec.entry_file == "shop/app.py"
    assert [file.path for file in loaded.bundle.files] == ["shop/__init__.py", "shop/app.py", "shop/prices.py"]
    assert loaded.cls.__module__ == "shop.app"


def test_a_served_function_is_an_app(tmp_path: Path) -> None:
    write(
        tmp_path,
        "double.py",
        """
        import fal

        @fal.function(serve=True, requirements=["six"])
        def double(number: int) -> int:
            return number * 2
        """,
    )
    spec = load("double.py", cwd=tmp_path).spec
    assert (spec.class_name, spec.name, [e.path for e in spec.endpoints]) == ("double", "double", ["/"])


PYPROJECT = """
    [tool.fal.apps.shop]
    ref = "src/shop.py::Hello"
    auth = "public"
    name = "corner-shop"
    keep_alive = 11
    min_concurrency = 1
    app_scale_settings = true
    deployment_strategy = "recreate"

    [tool.fal.apps.shop.health_check]
    path = "/health"
    timeout_seconds = 20
"""


def test_an_app_named_in_pyproject(tmp_path: Path) -> None:
    write(tmp_path, "src/shop.py", HELLO)
    write(tmp_path, "pyproject.toml", PYPROJECT)
    (tmp_path / "below").mkdir()
    for ref in ("shop", None):
        loaded = load(ref, cwd=tmp_path / "below")
        assert (loaded.spec.name, loaded.spec.auth, loaded.reset_scale) == ("corner-shop", "public", True)
        assert loaded.strategy == "recreate"
        # The class says keep_alive=300 itself, and nothing about min_concurrency.
        assert (loaded.spec.scaling.keep_alive, loaded.spec.scaling.min_concurrency) == (300, 1)
        assert loaded.spec.health_check == HealthCheckSpec("/health", "GET", timeout_seconds=20)


@pytest.mark.parametrize(
    ("ref", "pyproject", "says"),
    [
        ("shpo", PYPROJECT, ["no app 'shpo'", "did you mean 'shop'"]),
        (
            "shop",
            PYPROJECT.replace("    name =", "    keep_alife = 3\n    name ="),
            ["unknown key 'keep_alife'", "'keep_alive'"],
        ),
        (
            "shop",
            PYPROJECT.replace("recreate", "sudden"),
            ["deployment_strategy = 'sudden'", '"rolling" or "recreate"'],
        ),
        ("shop", "[tool.fal.apps.shop]\nauth = 'public'\n", ["does not say what to run", "ref ="]),
        ("shop", "[tool.fal\n", ["pyproject.toml cannot be read"]),
        ("shop", None, ["No app 'shop'", "pyproject.toml"]),
        (None, None, ["Which app?", "app.py::MyApp"]),
    ],
)
def test_faults_of_pyproject(tmp_path: Path, ref: str | None, pyproject: str | None, says: list[str]) -> None:
    write(tmp_path, "src/shop.py", HELLO)
    if pyproject is not None:
        write(tmp_path, "pyproject.toml", pyproject)
    with pytest.raises(LoadError) as caught:
        load(ref, cwd=tmp_path)
    assert all(part in str(caught.value) for part in says), str(caught.value)


@pytest.mark.parametrize(
    ("ref", "says"),
    [
        ("app.py::Helo", ["no class 'Helo'", "apps in app.py: Hello", "did you mean app.py::Hello?"]),
        ("app.py::hello", ["did you mean app.py::Hello?"]),
        ("app.py::Input", ["'Input' in app.py is not a fal.App", "does not extend fal.App", "Hello"]),
        ("ap.py::Hello", ["no file ap.py", "did you mean app.py?"]),
        ("nowhere/app.py", ["no file nowhere/app.py", "no folder"]),
        ("app", ["No app 'app'", "pyproject.toml"]),
        ("two.py", ["two.py has 2 apps: First, Second", "two.py::First"]),
        ("none.py", ["There is no app in none.py", "fal.App", '@fal.endpoint("/")']),
    ],
)
def test_faults_of_the_reference(tmp_path: Path, ref: str, says: list[str]) -> None:
    write(tmp_path, "app.py", HELLO)
    write(tmp_path, "none.py", "VALUE = 1\n")
    app = "class {}(fal.App):\n    @fal.endpoint('/')\n    def run(self) -> int:\n        return 1\n"
    write(tmp_path, "two.py", "import fal\n" + app.format("First") + app.format("Second"))
    with pytest.raises(LoadError) as caught:
        load(ref, cwd=tmp_path)
    text = str(caught.value)
    assert all(part in text for part in says), text
    assert "Next:" in text


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('["numpy==2.1.0", "six"]', '"numpy"', ["requirements is the text 'numpy'", "['numpy']"]),
        ('["numpy==2.1.0", "six"]', '["./local"]', ["requirements holds './local'", "requirements_context_dir"]),
        ('["numpy==2.1.0", "six"]', '["-r requirements.txt"]', ["'-r requirements.txt'", "of this machine"]),
        ("keep_alive=300", "keep_alive='long'", ["Hello: keep_alive is 'long'"]),
        ("keep_alive=300", "keep_alife=300", ["unknown setting 'keep_alife'", "'keep_alive'"]),
        ("max_concurrency=5", "max_concurrency=0", ["max_concurrency is 0"]),
        ('machine_type = "M"', 'image = "x"', ["not supported", "requirements"]),
        ('machine_type = "M"', 'app_name = "No Good"', ["'No Good' cannot be an app's name", "--app-name"]),
        ('machine_type = "M"', 'app_files = ["gone.txt"]', ["'gone.txt', which does not exist"]),
        ('machine_type = "M"', 'local_python_modules = ["gone"]', ["'gone', which is not found"]),
        ('"/images/up"', '"images/up"', ["endpoint path 'images/up' must begin with '/'"]),
        ('"/images/up"', '"/"', ["both serve '/'"]),
    ],
)
def test_settings_that_cannot_be_meant(tmp_path: Path, old: str, new: str, says: list[str]) -> None:
    assert old in HELLO
    write(tmp_path, "app.py", HELLO.replace(old, new))
    with pytest.raises(LoadError) as caught:
        load("app.py", cwd=tmp_path)
    assert all(part in str(caught.value) for part in says), str(caught.value)


@pytest.mark.parametrize(
    ("new", "says"),
    [
        ("keep_alive=1e400", "Hello: keep_alive is inf; it must be a whole number of seconds, at least 0"),
        ('keep_alive=float("nan")', "Hello: keep_alive is nan; it must be"),
        ("keep_alive=3, request_timeout=0", "Hello: request_timeout is 0; it must be a number of seconds, above 0"),
        ("keep_alive=3, startup_timeout=0.0", "Hello: startup_timeout is 0.0; it must be a number of seconds, above"),
        ("keep_alive=3, max_multiplexing=10**30", "it must be a whole number, at least 1 and at most 10000"),
    ],
)
def test_what_the_server_would_refuse_is_refused_here_in_the_same_words(tmp_path: Path, new: str, says: str) -> None:
    """Infinity ended in a traceback, and a timeout of 0 was only refused by the server after everything was sent."""
    write(tmp_path, "app.py", HELLO.replace("keep_alive=300", new))
    with pytest.raises(LoadError) as caught:
        load("app.py", cwd=tmp_path)
    assert says in str(caught.value)
    assert "\n" not in caught.value.what


def test_a_name_that_no_url_can_hold_is_refused_here(tmp_path: Path) -> None:
    """A name of 64 letters was only refused by the server, after everything was sent."""
    write(tmp_path, "app.py", HELLO)
    assert load("app.py", cwd=tmp_path, app_name="a" * 63).spec.name == "a" * 63
    with pytest.raises(LoadError, match="cannot be an app's name") as caught:
        load("app.py", cwd=tmp_path, app_name="a" * 64)
    assert "at most 63" in str(caught.value)


def test_a_listed_package_that_is_missing_here_belongs_into_setup(tmp_path: Path) -> None:
    """A laptop has no torch. Loading the file used to end in a bare ModuleNotFoundError of twenty frames."""
    write(tmp_path, "app.py", "import faketorch.nn\n" + dedent(HELLO).replace('"six"', '"faketorch>=2", "six"'))
    with pytest.raises(LoadError) as caught:
        load("app.py", cwd=tmp_path)
    text = str(caught.value)
    assert "app.py does not load" in text
    assert "No module named 'faketorch'" in text
    assert "move `import faketorch` into setup()" in text
    frames = [line for line in caught.value.detail if line.startswith("File ")]
    assert len(frames) == 1, frames
    assert "app.py" in frames[0]
    assert "line 1" in frames[0]


def test_a_package_that_nobody_lists_belongs_into_requirements(tmp_path: Path) -> None:
    write(tmp_path, "app.py", "import fakepackage\n" + dedent(HELLO))
    with pytest.raises(LoadError, match="add it to requirements"):
        load("app.py", cwd=tmp_path)


def test_errors_of_the_users_own_code_show_the_users_own_frames(tmp_path: Path) -> None:
    write(tmp_path, "tools.py", "def half(x):\n    return x / 0\n")
    write(tmp_path, "app.py", "from tools import half\nhalf(1)\n" + dedent(HELLO))
    with pytest.raises(LoadError) as caught:
        load("app.py", cwd=tmp_path)
    detail = "\n".join(caught.value.detail)
    assert [name in detail for name in ("app.py", "tools.py", "ZeroDivisionError")] == [True] * 3
    assert "importlib" not in detail
    assert "_loading.py" not in detail


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("class App(:\n", ["not valid Python", "line 1", "SyntaxError", "Next:  correct it; this is Python 3."]),
        ("import sys\nsys.exit(3)\n", ["ends the program", "__main__"]),
        ("from . import gone\n", ["does not load"]),
    ],
)
def test_files_that_do_not_import(tmp_path: Path, text: str, says: list[str]) -> None:
    write(tmp_path, "app.py", text)
    with pytest.raises(LoadError) as caught:
        load("app.py", cwd=tmp_path)
    assert all(part in str(caught.value) for part in says), str(caught.value)


def test_init_of_an_app_is_refused_with_the_line(tmp_path: Path) -> None:
    write(tmp_path, "app.py", dedent(HELLO) + "\n    def __init__(self, x):\n        pass\n")
    with pytest.raises(LoadError, match="setup"):
        load("app.py", cwd=tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\x7fELF\x02\x01\x00\x00\x00binary", "app.py is no Python file: it holds binary data."),
        (b"name = '\xff\xfe'\n", "app.py does not load: it is not valid Python."),
    ],
)
def test_a_file_that_is_no_text_has_no_line_none(tmp_path: Path, content: bytes, says: str) -> None:
    """A binary given as the app's file was explained with `File "None", line None`."""
    (tmp_path / "app.py").write_bytes(content)
    with pytest.raises(LoadError) as caught:
        load("app.py", cwd=tmp_path)
    assert caught.value.what == says
    assert "None" not in str(caught.value)


def test_an_interrupt_during_the_import_says_where(tmp_path: Path) -> None:
    """Ctrl-C while an import hung ended the command without a word, so that nobody learned where it had hung."""
    write(tmp_path, "app.py", "def wait():\n    raise KeyboardInterrupt\n\n\nwait()\n")
    with pytest.raises(LoadError) as caught:
        load("app.py", cwd=tmp_path)
    assert caught.value.what == "Interrupted while app.py was being imported."
    assert caught.value.exit_code == 130
    assert f'File "{tmp_path}/app.py", line 2, in wait' in caught.value.detail
