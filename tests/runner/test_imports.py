"""What is loaded when: `import fal` is free, and the runner needs nothing that a user's environment does not have."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import fal

from tests.runner.harness import SDK, start

PACKAGE = Path(fal.__file__).parent
RUNTIME = {"fal", "fastapi", "starlette", "pydantic", "pydantic_core", "msgpack", "PIL", "typing_extensions"}
#: Public names of `fal` for the user's own machine; in a runner they say which package is missing.
FOR_THE_OWN_MACHINE = {"fal._sync_dir"}


def _loaded_after(statement: str) -> set[str]:
    program = f"import sys; {statement}; print(*(m for m in sys.modules))"
    output = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(SDK)}, capture_output=True, text=True, check=True
    ).stdout
    return set(output.split())


def _foreign(modules: set[str]) -> set[str]:
    """Top-level packages that neither Python nor this SDK brings. Editable installs leave a finder of their own."""
    tops = {name.partition(".")[0] for name in modules}
    return {name for name in tops if name not in sys.stdlib_module_names and not name.startswith("__editable__")} - {
        "fal",
        "__main__",
    }


def test_import_fal_loads_nothing_but_itself() -> None:
    loaded = _loaded_after("import fal")
    assert {name for name in loaded if name == "fal" or name.startswith("fal.")} == {"fal"}
    assert _foreign(loaded) <= {"_distutils_hack"}
    assert not loaded & {"asyncio", "inspect", "typing_extensions", "http.client", "ssl"}


def test_a_class_can_be_declared_without_a_web_framework() -> None:
    loaded = _loaded_after("import fal; A = type('A', (fal.App,), {'f': fal.endpoint('/')(lambda self: 1)})")
    assert _foreign(loaded) <= {"_distutils_hack"}


def test_the_toolkit_loads_pillow_only_for_pixels() -> None:
    loaded = _loaded_after("import os; from fal.toolkit import Image, File")
    assert "PIL" not in loaded
    assert "fastapi" not in loaded


def test_public_names_all_resolve() -> None:
    for name in fal.__all__:
        assert getattr(fal, name) is not None
    assert set(fal.__all__) <= set(dir(fal))


def test_runtime_code_names_only_what_every_environment_carries() -> None:
    roots = ["fal", "fal.app", "fal.exceptions", *_modules_under("_runner"), *_modules_under("toolkit")]
    waiting, seen, offenders = list(roots), {*roots, *FOR_THE_OWN_MACHINE}, []
    while waiting:
        module = waiting.pop()
        for line, name in _imports_of(module):
            top = name.partition(".")[0]
            if top == "fal" and name not in seen and _path_of(name).is_file():
                seen.add(name)
                waiting.append(name)
            elif top not in sys.stdlib_module_names and top not in RUNTIME:
                offenders.append(f"{module}:{line} imports {name}")
    assert {"fal._routes", "fal._threads", "fal._spec", "fal._functions"} <= seen, "the walk follows imports"
    assert not offenders, "the runner lives in the user's environment; " + "; ".join(offenders)


def _modules_under(folder: str) -> list[str]:
    found = (PACKAGE / folder).rglob("*.py")
    return [
        ".".join(("fal", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__") for path in found
    ]


def _path_of(module: str) -> Path:
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _imports_of(module: str) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(_path_of(module).read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.append((node.lineno, node.module))
            if node.module.startswith("fal"):
                found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def test_a_runner_loads_no_server_package(tmp_path: Path) -> None:
    source = """
import json, sys
import fal

class Demo(fal.App):
    @fal.endpoint("/")
    def modules(self) -> list[str]:
        return sorted(sys.modules)
"""
    with start(tmp_path, source) as runner:
        runner.ready()
        loaded = set(json.loads(runner.call().body))
    tops = {name.partition(".")[0] for name in loaded}
    server = {"gateway", "scheduler", "gpu_worker", "envbuilder", "keepwarm", "redis", "hiredis", "arq"}
    assert not tops & (server | {"uvicorn", "uvloop", "click", "rich", "PIL", "structlog"})
