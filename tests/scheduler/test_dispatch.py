"""Wake-ups become looks: never two at once for one app, never one forgotten."""

from __future__ import annotations

import asyncio

from scheduler.control.dispatch import Dispatcher
from tests.support.loop import run
from tests.support.waiting import await_until


class Looks:
    """Records looks; each waits until the test lets it go on."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.go = asyncio.Event()

    async def __call__(self, app: str) -> None:
        self.started.append(app)
        await self.go.wait()


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def settled(looks: Looks, count: int) -> bool:
    return len(looks.started) >= count


def test_a_burst_is_looked_at_once_and_once_more() -> None:
    async def scenario() -> None:
        looks = Looks()
        dispatcher = Dispatcher(looks)
        dispatcher.wake("o/a")
        await turns()
        for _ in range(1000):
            dispatcher.wake("o/a")
        await turns()
        assert looks.started == ["o/a"]
        looks.go.set()
        await await_until(lambda: settled(looks, 2), "the second look, after the pause")
        for _ in range(1000):
            dispatcher.wake("o/a")
        await await_until(lambda: settled(looks, 3), "one look for all that came during the pause")
        assert looks.started == ["o/a"] * 3
        await dispatcher.close(1)

    run(scenario())


def test_a_wake_up_during_the_wait_for_a_slot_costs_no_second_look() -> None:
    async def scenario() -> None:
        looks = Looks()
        dispatcher = Dispatcher(looks, limit=1)
        dispatcher.wake("o/a")
        await turns()
        dispatcher.wake("o/b")
        await turns()
        dispatcher.wake("o/b")
        looks.go.set()
        await turns(10)
        assert looks.started == ["o/a", "o/b"]
        await dispatcher.close(1)

    run(scenario())


def test_a_timer_wakes_and_a_new_one_replaces_it() -> None:
    async def scenario() -> None:
        looks = Looks()
        looks.go.set()
        dispatcher = Dispatcher(looks)
        dispatcher.wake_in("o/a", 3600)
        dispatcher.wake_in("o/a", 0)
        while not looks.started:
            await asyncio.sleep(0.001)
        assert looks.started == ["o/a"]
        await dispatcher.close(1)

    run(scenario())


def test_closing_waits_for_looks_under_way_and_takes_no_more() -> None:
    async def scenario() -> None:
        looks = Looks()
        dispatcher = Dispatcher(looks)
        dispatcher.wake("o/a")
        await turns()
        closing = asyncio.create_task(dispatcher.close(5))
        await turns()
        dispatcher.wake("o/b")
        assert not closing.done()
        looks.go.set()
        await closing
        assert looks.started == ["o/a"]

    run(scenario())


def test_closing_cancels_a_look_that_takes_too_long() -> None:
    async def scenario() -> None:
        looks = Looks()
        dispatcher = Dispatcher(looks)
        dispatcher.wake("o/a")
        await turns()
        await dispatcher.close(0.01)
        assert looks.started == ["o/a"]

    run(scenario())
