"""``fal create``: a file to begin with; written from here, so that no network is needed.

Owns the template. Leaves everything else to the user.
"""

from __future__ import annotations

import re
from pathlib import Path

import click

from fal.cli.options import json_option

_CLASS = re.compile(r"[A-Z][A-Za-z]*")
#: Between the words of a class's name.
_HUMP = re.compile(r"(?<=.)(?=[A-Z])")
_TEMPLATE = '''"""An app: `fal run {file}` tries it, `fal deploy {file}` gives it a stable URL."""

import fal
from pydantic import BaseModel, Field


class Input(BaseModel):
    prompt: str = Field(examples=["a rhino"])


class Output(BaseModel):
    text: str


class {name}(fal.App, keep_alive=300):
    machine_type = "{machine}"  # a GPU type of your hosts, such as "GPU"; XS, S, M, L, XL are CPU types
    requirements = []  # what pip would be given; imported inside setup() and the endpoints

    def setup(self) -> None:
        """Once for each runner, before its first request: load the model here and keep it on self."""
        self.answer = "You said: {{}}"

    @fal.endpoint("/")
    def run(self, request: Input) -> Output:
        return Output(text=self.answer.format(request.prompt))
'''


@click.group("create")
def command() -> None:
    """Begin an app: a file that runs, to change."""


@command.command("app")
@click.argument("name", default="MyApp")
@click.option("--machine-type", default="S", show_default=True, metavar="TYPE", help="What the app is to run on.")
@click.option(
    "--directory", "-C", type=click.Path(file_okay=False, path_type=Path), default=".", help="Where to put it."
)
@json_option
def app(name: str, machine_type: str, directory: Path, as_json: bool) -> None:
    """Write a small app of the class NAME into a file; no file is replaced."""
    from fal._problem import Problem
    from fal.cli.console import Screen, print_json

    if not _CLASS.fullmatch(name):
        raise Problem(
            f"{name!r} cannot be the name of an app's class.",
            why="the app's name in its URL is made of it: MyApp becomes my-app.",
            next_step="use letters alone, beginning with a capital, as in MyApp.",
        )
    path = directory / f"{_HUMP.sub('_', name).lower()}.py"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(_TEMPLATE.format(name=name, machine=machine_type, file=path))
    except FileExistsError as error:
        raise Problem(f"{path} is there already.", next_step="choose another NAME, or another --directory.") from error
    except OSError as error:
        raise Problem(f"{path} cannot be written.", why=str(error)) from error
    if as_json:
        print_json({"path": str(path), "class": name})
        return
    screen = Screen()
    screen.tick(f"Wrote {path}")
    screen.line(f"Try it:  fal run {path}", "dim")
