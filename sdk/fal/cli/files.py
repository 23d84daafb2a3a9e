"""``fal files``: what lies in the folder that apps see as ``/data``.

Reads and prints. Leaves paths and transfers to ``fal._data_files``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fal.cli.options import control_api, json_option

if TYPE_CHECKING:
    from fal._data_files import DataFiles


@click.group("files")
def command() -> None:
    """List, fetch and put what apps see in /data: weights, caches, results. All apps share it.

    A path is /data/folder/file, or folder/file for short.
    """


def _data() -> DataFiles:
    from fal._data_files import DataFiles

    return DataFiles(control_api())


@click.command("list")
@click.argument("path", default="/data")
@json_option
def list_files(path: str, as_json: bool) -> None:
    """List a folder."""
    from fal._data_files import remote_path
    from fal.cli.console import Screen, amount, print_json, when

    entries = _data().list(remote_path(path))
    if as_json:
        print_json([asdict(entry) for entry in entries])
        return
    rows = [
        (
            entry.path if entry.is_file else f"{entry.path}/",
            amount(entry.size) if entry.is_file else "",
            when(entry.changed_at),
        )
        for entry in entries
    ]
    Screen().table(["Path", "Size", "Changed"], rows, empty="Nothing there.")


command.add_command(list_files)
command.add_command(list_files, "ls")


@command.command("download")
@click.argument("path")
@click.argument("target", required=False, type=click.Path(path_type=Path))
@json_option
def download(path: str, target: Path | None, as_json: bool) -> None:
    """Fetch a file, or a folder with all that is in it, to TARGET (the same name here)."""
    from fal._data_files import remote_path
    from fal._problem import Problem
    from fal.cli.console import Screen, amount, print_json

    data, remote = _data(), remote_path(path)
    found = list(data.files_below(remote))
    if not found:
        raise Problem(f"There is no file in {remote}.", next_step="see `fal files list`.")
    name = Path(remote).name
    whole = target or Path(name)
    if target is not None and target.is_dir():
        whole = target / name
    screen = Screen(to_stderr=True)
    size = sum(entry.size for entry in found)
    with screen.progress(f"Fetching {remote}", size) as advance:
        for entry in found:
            below = entry.path.removeprefix(remote).strip("/")
            data.download(entry.path, whole / below if below else whole, advance)
    if as_json:
        print_json({"files": len(found), "bytes": size, "path": str(whole)})
        return
    screen.tick(f"{_files(found)} ({amount(size)}) in {whole}")


@command.command("upload")
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.argument("path", required=False)
@json_option
def upload(source: Path, path: str | None, as_json: bool) -> None:
    """Put a file, or a folder with all that is in it, to PATH (the same name in /data)."""
    from fal._data_files import remote_path
    from fal.cli.console import Screen, amount, print_json

    data, name = _data(), source.absolute().name
    remote = remote_path(path or name)
    if path is not None and path.endswith("/"):
        remote = f"{remote}/{name}"
    sources = sorted(file for file in source.rglob("*") if file.is_file()) if source.is_dir() else [source]
    size = sum(file.stat().st_size for file in sources)
    screen = Screen(to_stderr=True)
    with screen.progress(f"Sending {source}", size) as advance:
        for file in sources:
            below = file.relative_to(source).as_posix()
            data.upload(file, remote if file == source else f"{remote}/{below}", advance)
    if as_json:
        print_json({"files": len(sources), "bytes": size, "path": remote})
        return
    screen.tick(f"{_files(sources)} ({amount(size)}) in {remote}")


@command.command("upload-url")
@click.argument("url")
@click.argument("path", required=False)
@json_option
def upload_url(url: str, path: str | None, as_json: bool) -> None:
    """Have the server fetch URL to PATH (the URL's last name in /data)."""
    from urllib.parse import urlsplit

    from fal._data_files import remote_path
    from fal._problem import Problem
    from fal.cli.console import Screen, print_json

    name = urlsplit(url).path.rstrip("/").rpartition("/")[2]
    if not name and (path is None or path.endswith("/")):
        raise Problem(f"{url} does not say what the file is to be called.", next_step="name it: PATH.")
    remote = remote_path(path or name)
    if path is not None and path.endswith("/"):
        remote = f"{remote}/{name}"
    _data().upload_url(url, remote)
    if as_json:
        print_json({"path": remote})
        return
    Screen().tick(f"{url} is {remote} now")


def _files(found: Sequence[object]) -> str:
    return f"{len(found)} file{'s' * (len(found) != 1)}"


@command.command("mv")
@click.argument("path")
@click.argument("destination")
@json_option
def move(path: str, destination: str, as_json: bool) -> None:
    """Give a file or folder another place."""
    from fal._data_files import remote_path
    from fal.cli.console import Screen, print_json

    source, target = remote_path(path), remote_path(destination)
    _data().move(source, target)
    if as_json:
        print_json({"path": target})
        return
    Screen().tick(f"{source} is {target} now")


@command.command("rm")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@json_option
def remove(paths: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Delete files, or folders with all that is in them."""
    from fal._data_files import remote_path
    from fal.cli.console import Screen, print_json

    remotes = [remote_path(path) for path in paths]
    if not yes and sys.stdin.isatty():
        click.confirm(f"Delete {', '.join(remotes)}?", abort=True)
    data = _data()
    for remote in remotes:
        data.delete(remote)
        if not as_json:
            Screen().tick(f"Deleted {remote}")
    if as_json:
        print_json({"deleted": remotes})
