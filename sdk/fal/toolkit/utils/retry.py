"""``retry``: call again what failed, with pauses."""

from __future__ import annotations

import asyncio
import functools
import inspect
import random
import time
from collections.abc import Callable
from typing import Any, Literal, TypeVar, cast

BackoffType = Literal["exponential", "fixed"]
_F = TypeVar("_F", bound=Callable[..., Any])


def retry(
    max_retries: int = 3,
    base_delay: float = 1.0,
    max_delay: float = 60.0,
    backoff_type: BackoffType = "exponential",
    jitter: bool = False,
    should_retry: Callable[[Exception], bool] | None = None,
) -> Callable[[_F], _F]:
    """Decorate a function, async or not, to be called again after an exception.

    Args:
        max_retries: calls after the first one; when they are used up, the last exception is raised.
        base_delay, max_delay: seconds of the first pause, and of the longest.
        backoff_type: ``exponential`` doubles the pause each time, ``fixed`` keeps it.
        jitter: vary each pause by half of it either way.
        should_retry: False for an exception that another call would not cure.
    """

    def pause(retries: int) -> float:
        seconds = base_delay * 2**retries if backoff_type == "exponential" else base_delay
        seconds = min(seconds, max_delay)
        return min(seconds * random.uniform(0.5, 1.5), max_delay) if jitter else seconds

    def is_over(retries: int, error: Exception) -> bool:
        return retries >= max_retries or (should_retry is not None and not should_retry(error))

    def decorate(function: _F) -> _F:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            retries = 0
            while True:
                try:
                    return function(*args, **kwargs)
                except Exception as error:
                    if is_over(retries, error):
                        raise
                    time.sleep(pause(retries))
                    retries += 1

        @functools.wraps(function)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            retries = 0
            while True:
                try:
                    return await function(*args, **kwargs)
                except Exception as error:
                    if is_over(retries, error):
                        raise
                    await asyncio.sleep(pause(retries))
                    retries += 1

        return cast(_F, call_async if inspect.iscoroutinefunction(function) else call)

    return decorate
