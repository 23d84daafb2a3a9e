"""Calls of functions from their user's own machine: the app of each definition, and one HTTP request per call.

An app lasts until this process ends and is made by the first call of its definition. Leaves reading the function's file
to ``fal._function_loading``, servers and sessions to ``fal._ephemeral``, bytes to ``fal._calls``.
"""

from __future__ import annotations

import inspect
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

from fal._calls import CONTENT_TYPE, pack_call, unpack_answer
from fal._carried_classes import Classes
from fal._carried_values import Codec
from fal._function_runs import Run, Runs
from fal._problem import Problem
from fal._server import detail_of
from fal._spawn_info import SpawnInfo
from fal.exceptions import FalSerializationError, FalServerlessError

if TYPE_CHECKING:
    from fal._functions import IsolatedFunction

#: Calls of one process that run at once; more wait for one of them.
_AT_ONCE = 64
#: Seconds in which a gateway that takes no connections is asked again.
_CONNECT_SECONDS = 15.0


def call(function: IsolatedFunction[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run it on the platform; the function's value, or what it raised."""
    return _Call(function, args, kwargs).run()


def submit(function: IsolatedFunction[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future[Any]:
    """The same in a thread. What is wrong with the arguments is raised here."""
    return _pool().submit(_Call(function, args, kwargs).run)


def spawn(function: IsolatedFunction[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> SpawnInfo:
    """The same, with more to see."""
    one = _Call(function, args, kwargs)
    one.watched_by = SpawnInfo()
    one.watched_by.future = _pool().submit(one.run)
    return one.watched_by


class _Call:
    """One call: its bytes are made at once, so that what is changed afterwards does not count."""

    def __init__(self, function: IsolatedFunction[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._function = function
        self._name = function.raw_func.__name__
        self.watched_by: SpawnInfo | None = None
        bound = _named(function, args, kwargs)
        self._codec = _codec(function)
        self._body = pack_call(self._codec, self._name, bound)

    def run(self) -> Any:
        """Send it, and once more where its app turns out to be gone: nothing has run then."""
        try:
            run = _runs().of(self._function)
            answer = self._send(run)
            if answer.status_code == 404 and not _is_answer(answer):
                _runs().forget(run)
                run = _runs().of(self._function)
                answer = self._send(run)
        except Problem as problem:
            error = FalServerlessError(str(problem), problem.status or 0)
            if self.watched_by is not None:
                self.watched_by.not_run(error)
            raise error from problem
        run.show_log()
        if self.watched_by is not None:
            for line in run.lines_of(answer.headers.get("x-fal-request-id", "")):
                self.watched_by.logs.put(line)
        if _is_answer(answer):
            return unpack_answer(self._codec, self._name, answer.content)
        raise self._refused(answer)

    def _send(self, run: Run) -> httpx.Response:
        if self.watched_by is not None:
            self.watched_by.runs_in(run.app, run.url)
        headers = {"Content-Type": CONTENT_TYPE, "Accept": CONTENT_TYPE}
        until = time.monotonic() + _CONNECT_SECONDS
        try:
            while True:
                try:
                    return run.http.post(run.url, content=self._body, headers=headers)
                except httpx.ConnectError:  # nothing was sent: a gateway that restarts is back within seconds
                    if time.monotonic() > until:
                        raise
                    time.sleep(0.2)
        except httpx.TransportError as error:
            raise FalServerlessError(
                f"the connection to {run.url} was lost during {self._name}(), which may have run: "
                f"{error or type(error).__name__}"
            ) from error

    def _refused(self, answer: httpx.Response) -> Exception:
        text, status = detail_of(answer), answer.status_code
        if status == 413:
            size = len(self._body) / 2**20
            return FalSerializationError(
                f"the arguments of {self._name}() take {size:.1f} MiB, which the platform refuses: {text} Send large "
                "data as fal.toolkit.File or a path below /data; the operator sets the limit (KEEPWARM_MAX_BODY_BYTES)."
            )
        return FalServerlessError(f"{self._name}() could not be run ({status}): {text}", status)


def _is_answer(answer: httpx.Response) -> bool:
    kind: str = answer.headers.get("content-type", "")
    return kind.partition(";")[0].strip() == CONTENT_TYPE


def _named(
    function: IsolatedFunction[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[tuple[str | None, str, Any]]:
    """The arguments with the names of their parameters.

    Raises:
        TypeError: they are not those that the function takes, in Python's own words.
    """
    first = () if function.options.get("setup_function") is None else (None,)
    try:
        signature = inspect.signature(function.raw_func)
    except (ValueError, TypeError):
        names: list[str] = []
    else:
        try:
            signature.bind(*first, *args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{function.raw_func.__name__}(): {error}") from None
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        names = [name for name, each in signature.parameters.items() if each.kind in kinds][len(first) :]
    positional = [(None, names[n] if n < len(names) else str(n + 1), value) for n, value in enumerate(args)]
    return [*positional, *((name, name, value) for name, value in kwargs.items())]


def _codec(function: IsolatedFunction[Any, Any]) -> Codec:
    from fal._bundle import search_roots
    from fal._function_loading import module_of

    try:
        module, file = module_of(function)
    except Problem as problem:
        raise FalServerlessError(str(problem)) from problem
    return Codec(Classes(module, search_roots(file)))


# --- what belongs to the process --------------------------------------------------------------------------------------


@dataclass
class _Process:
    """A fork has its parent's memory, but none of its threads and connections."""

    pid: int
    runs: Runs
    pool: ThreadPoolExecutor


_process: _Process | None = None


def _of_process() -> _Process:
    global _process
    if _process is None or _process.pid != os.getpid():
        _process = _Process(os.getpid(), Runs(_AT_ONCE), ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fal-call"))
    return _process


def _runs() -> Runs:
    return _of_process().runs


def _pool() -> ThreadPoolExecutor:
    return _of_process().pool
