"""``fal run --local``: an app in this process, with this Python's packages and without the platform.

Owns what is said. Leaves serving to ``fal._local`` and reading the app to ``fal._loading``.
"""

from __future__ import annotations

import shlex
import sys
import traceback
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from fal._import_failure import flat, user_frames, written_requirements
from fal._loading import LoadedApp, LoadError, load
from fal._problem import Problem
from fal.cli.console import Screen

#: Exit status of an app whose ``setup()`` failed, as a runner's.
START_FAILED = 3


def serve(ref: str, app_name: str | None, port: int, screen: Screen, limit: int | None = None) -> None:
    """Serve the app until Ctrl-C, or until it has answered ``limit`` requests.

    Raises:
        Problem: it does not load, its packages are not here, its ``setup()`` failed, or the port is taken.
    """
    loaded = _load(ref, app_name, screen)
    from fal._local import LocalApp, LocalServer, SetupFailed

    _note_differences(loaded, screen)
    try:
        app = LocalApp(loaded.cls)
    except (ValueError, TypeError) as error:
        raise Problem(str(error)) from error
    grace = loaded.spec.termination_grace_period_seconds
    server = LocalServer(app, port, grace, lambda address: _show(address, loaded, screen), limit)
    screen.line("Setting up in this process...", "dim")
    try:
        server.serve_until_signal()
    except SetupFailed as failed:
        raise _setup_problem(failed.__cause__, loaded) from failed


def _load(ref: str, app_name: str | None, screen: Screen) -> LoadedApp:
    try:
        loaded = load(ref, app_name=app_name, run=True)
    except LoadError as problem:
        if isinstance(problem.__cause__, ModuleNotFoundError):
            file = Path(ref.partition("::")[0])
            _check_packages(written_requirements(file), file.name, screen)
        raise
    _check_packages(flat(loaded.spec.environment.requirements), loaded.cls.__name__, screen)
    return loaded


def _check_packages(lines: Sequence[str], name: str, screen: Screen) -> None:
    """Refuse when packages are missing; other versions than asked for are only said.

    Raises:
        Problem: with the command that installs them.
    """
    from fal._local import unmet_requirements

    missing, different = unmet_requirements(lines)
    if missing:
        raise Problem(
            f"This Python does not have what {name} requires: {', '.join(missing)}.",
            why=f"--local uses the packages of {sys.executable}.",
            next_step=f"{_install_command(lines)}, or leave --local out: the platform builds the environment.",
        )
    if different:
        screen.note(f"Other versions than {name} asks for: {', '.join(different)}.")


def _install_command(lines: Sequence[str]) -> str:
    words = [shlex.quote(word) for line in lines for word in (line.split() if line.startswith("-") else [line.strip()])]
    python = shlex.quote(sys.executable)
    installer = f"{python} -m pip install" if find_spec("pip") else f"uv pip install --python {python}"
    return f"{installer} {' '.join(words)}"


def _note_differences(loaded: LoadedApp, screen: Screen) -> None:
    """What this process is not, and a worker would be."""
    here, wanted = f"{sys.version_info[0]}.{sys.version_info[1]}", loaded.spec.environment.python_version
    if wanted != here:
        screen.note(f"This is Python {here}; on the platform {loaded.cls.__name__} runs in {wanted}.")
    if (machine := loaded.spec.machine_types[0]).startswith("GPU"):
        screen.note(f"machine_type {machine} is not looked at: the app finds what this machine has.")


def _show(address: str, loaded: LoadedApp, screen: Screen) -> None:
    from fal.cli.example_call import curl_command, example_body

    screen.line()
    screen.rule("Local App (no platform, no queue)")
    for endpoint in loaded.spec.endpoints:
        url = address + ("" if endpoint.path == "/" else endpoint.path)
        if endpoint.is_websocket:
            screen.parts(("  Socket ", "dim"), (f"ws{url.removeprefix('http')}", "cyan"))
        else:
            screen.parts(("  POST   ", "dim"), (url, "cyan"))
    screen.rule()
    screen.line()
    screen.exact(f"Access your exposed service at {address}")
    called = next((each for each in loaded.spec.endpoints if not each.is_websocket), None)
    if called is not None:
        url = address + ("" if called.path == "/" else called.path)
        screen.exact(f"  {curl_command(url, example_body(loaded.cls, called.name), with_key=False)}")
    screen.line()
    screen.line("Running; Ctrl-C ends it. What it prints:", "dim")


def _setup_problem(cause: BaseException | None, loaded: LoadedApp) -> Problem:
    assert cause is not None
    last = "".join(traceback.format_exception_only(type(cause), cause)).strip().splitlines()
    frames = user_frames(cause.__traceback__)
    return Problem(f"setup() of {loaded.cls.__name__} failed.", detail=[*frames, *last], exit_code=START_FAILED)
