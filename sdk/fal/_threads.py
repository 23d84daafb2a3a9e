"""Threads that run sync handlers, so that the event loop stays free.

Leaner than anyio's pool on the one path that every request takes: idle threads are reused last-in first-out, so an app
that serves one request at a time sees one thread (CUDA and BLAS keep per-thread state). There is no limit of its own:
the platform never sends more requests at once than the app's ``max_multiplexing``.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextvars import copy_context
from queue import SimpleQueue
from typing import Any

_Job = tuple[Callable[[], Any], "Callable[[Any], Any] | None", "asyncio.Future[Any]", asyncio.AbstractEventLoop]
_idle: list[SimpleQueue[_Job]] = []
_count = 0


class _Unstoppable(asyncio.Future[Any]):
    """Refuses to be cancelled: the task that awaits it gets its CancelledError when the thread has finished."""

    def cancel(self, msg: Any | None = None) -> bool:
        return False


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def _work(jobs: SimpleQueue[_Job]) -> None:
    while True:
        job, then, future, loop = jobs.get()
        result: Any = None
        failure: BaseException | None = None
        try:
            result = job()
        except (SystemExit, KeyboardInterrupt, StopIteration) as error:
            # None of these may reach the loop: the first two would end the process, a future refuses the third.
            failure = RuntimeError(f"the handler raised {error!r}")
            failure.__cause__ = error
        except BaseException as error:  # noqa: BLE001 - handed to the request that waits for it
            failure = error
        _idle.append(jobs)
        if then is not None and failure is None:
            try:
                result = then(result)
            except Exception as error:  # noqa: BLE001 - handed to the request that waits for it
                failure = error
        try:
            loop.call_soon_threadsafe(_settle, future, result, failure)
        except RuntimeError:
            return  # the loop is closed: the process is ending
        del job, then, future, result, failure


def _take_thread() -> SimpleQueue[_Job]:
    global _count
    try:
        return _idle.pop()
    except IndexError:
        jobs: SimpleQueue[_Job] = SimpleQueue()
        _count += 1
        threading.Thread(target=_work, args=(jobs,), name=f"fal-handler-{_count}", daemon=True).start()
        return jobs


async def run_in_thread(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call ``function`` in a handler thread and wait for it, whatever happens.

    A cancelled caller still waits: a thread cannot be stopped, and the platform must not count it as free.
    """
    return await run_in_thread_then(None, function, *args, **kwargs)


async def run_in_thread_then(
    then: Callable[[Any], Any] | None, function: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> Any:
    """The same with a last step in that thread, whose result counts.

    Args:
        then: gets what ``function`` returned. When it begins the thread is free for the next call: what lets the
            platform send one must not come before that, or a second thread would be made for it.
    """
    loop = asyncio.get_running_loop()
    future = _Unstoppable(loop=loop)
    context = copy_context()
    _take_thread().put((lambda: context.run(function, *args, **kwargs), then, future, loop))
    return await future
