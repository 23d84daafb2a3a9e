"""``fal run --reload``: notices that the app's files were saved, and what to do then.

On the platform the saved app becomes a new revision while the old one goes on serving; with ``--local`` the process
that serves is ended and started again. Leaves the first start to ``fal.cli.run`` and ``fal.cli.local``.
"""

from __future__ import annotations

import ctypes
import importlib
import linecache
import math
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fal._bundle import collect, search_roots
from fal._loading import LoadedApp
from fal._problem import Problem
from fal.cli.building import Built, Delivery
from fal.cli.console import Screen, show_problem

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
#: Milliseconds between two looks at the times of files that were saved while nobody watched.
_LOOK_MS = 500


class Watch:
    """Waits for files to be saved: those named, and any Python file beside one of them.

    Args:
        since: what was saved after this moment (unix seconds) counts as saved just now.
    """

    def __init__(self, files: Iterable[Path], since: float | None = None) -> None:
        self.stopping = threading.Event()
        self._files = {path.resolve() for path in files}
        self._known = {path: min(_saved_at(path), math.inf if since is None else since) for path in self._files}

    def saved(self) -> Iterator[set[Path]]:
        """What was saved together, each time something was; ends when ``stopping`` is set."""
        import watchfiles

        changes = watchfiles.watch(
            *{path.parent for path in self._files},
            watch_filter=lambda change, path: path.endswith(".py") or Path(path) in self._files,
            recursive=False,
            debounce=400,
            rust_timeout=_LOOK_MS,
            yield_on_timeout=True,
            stop_event=self.stopping,
        )
        for seen in changes:
            now = {path: _saved_at(path) for path in self._files}
            # Also what was saved while nobody watched: during a build, say.
            changed = {Path(path) for _, path in seen} | {path for path, at in now.items() if at > self._known[path]}
            self._known = now
            if changed:
                yield changed

    def also(self, files: Iterable[Path]) -> None:
        """Look at these as well, from the next ``saved()`` on."""
        for path in {path.resolve() for path in files} - self._files:
            self._files.add(path)
            self._known[path] = _saved_at(path)


def _saved_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # editors put a new file in its place
        return 0.0


class Reloader:
    """Sends the app again, in a thread, whenever one of its files was saved.

    Args:
        load_again: reads the app from its file.
        delivery: has sent it before; what it sends is a new revision of the same app.
        show: tells the addresses once more when there are others.
        since: when the app was read for the first time.
    """

    def __init__(
        self,
        loaded: LoadedApp,
        load_again: Callable[[], LoadedApp],
        delivery: Delivery,
        screen: Screen,
        show: Callable[[Built, LoadedApp], None],
        since: float,
    ) -> None:
        self._loaded = loaded
        self._load_again = load_again
        self._delivery = delivery
        self._screen = screen
        self._show = show
        self._watch = Watch([loaded.file, *loaded.bundle.paths.values()], since)
        self._thread = threading.Thread(target=self._run, daemon=True, name="reloader")

    def __enter__(self) -> Reloader:
        # Two saves within one second: what was compiled from the first would be taken for the second's.
        sys.dont_write_bytecode = True
        self._screen.line("Saving a file of the app reloads it.", "dim")
        self._thread.start()
        return self

    def __exit__(self, *reason: object) -> None:
        # Not joined: it may be in the middle of a build, and Ctrl-C must not wait for that.
        self._watch.stopping.set()

    def _run(self) -> None:
        while not self._watch.stopping.is_set():
            for changed in self._watch.saved():
                self.once(changed)
                break  # what is watched may have changed with the app

    def once(self, changed: Iterable[Path]) -> None:
        """Load and send what was saved; a problem is shown and leaves the app as it was."""
        names = ", ".join(sorted(path.name for path in changed))
        self._screen.line(f"Saved: {names}. Reloading...", "bold")
        forget_modules([self._loaded.file, *self._loaded.bundle.paths.values(), *changed])
        try:
            loaded = self._load_again()
            self._watch.also(loaded.bundle.paths.values())
            built = self._delivery.finish(loaded, self._delivery.begin(loaded, ephemeral=True, reset_scale=True))
        except Problem as problem:
            if not self._watch.stopping.is_set():
                show_problem(problem)
                self._screen.note("The app goes on as it was before; save again when it is corrected.")
            return
        changed_endpoints = loaded.spec.endpoints != self._loaded.spec.endpoints
        self._loaded = loaded
        self._screen.tick(f"Reloaded as revision {built.revision}; requests that run finish on the one before.")
        if changed_endpoints:
            self._show(built, loaded)


def forget_modules(files: Iterable[Path]) -> None:
    """Make the next import read these files again."""
    paths = {path.resolve() for path in files}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name != "__main__" and file and Path(file).resolve() in paths:
            del sys.modules[name]
    importlib.invalidate_caches()
    linecache.checkcache()


def local_again_and_again(ref: str, arguments: Sequence[str], screen: Screen) -> None:
    """``fal run --local`` in a process of its own, ended and started again whenever a file of the app is saved."""
    file = Path(ref.partition("::")[0]).absolute()
    command = [sys.executable, "-B", "-m", "fal", "run", "--local", *arguments, ref]
    watch = Watch(files_of(file))
    screen.line("Saving a file of the app starts it again.", "dim")
    process: subprocess.Popen[Any] | None = None
    try:
        while True:
            process = subprocess.Popen(command, preexec_fn=_end_with_parent)
            changed = next(watch.saved(), None)
            if changed is None:
                return
            screen.line(f"Saved: {', '.join(sorted(path.name for path in changed))}. Starting again...", "bold")
            _end(process)
            watch.also(files_of(file))
    except KeyboardInterrupt:
        return
    finally:
        if process is not None:
            _end(process)


def _end_with_parent() -> None:
    """Where the kernel can do that, a command that is killed takes the app with it, which would keep its port."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _end(process: subprocess.Popen[Any]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    process.wait()


def files_of(file: Path) -> list[Path]:
    """The app's file and the local modules that it imports, as far as they can be read without running it."""
    found = [file]
    with suppress(Problem):
        found += collect(file, roots=search_roots(file)).paths.values()
    return found
