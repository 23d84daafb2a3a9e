"""The callers: a bounded number of queued and direct requests, sent again when unanswered, polled, some cancelled."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.chaos.ledger import Entry, Ledger

#: Seconds for which a caller sends the same request again under the same idempotency key before it gives up.
PATIENCE_S = 30.0
#: What one caller in so many wants to become of its request; the rest want an answer.
FATES = (("refuse", 0.05), ("raise", 0.04), ("busy", 0.05), ("die", 0.02))
#: Error types that are the platform's way of saying "ask me again".
_PASSING = {"internal_error", "runner_scheduling_failure", "concurrent_requests_limit"}


@dataclass
class Plan:
    """One caller's intentions, all drawn before the first request goes out."""

    at: float
    entry: Entry
    seconds: float
    low: bool
    send_twice: bool
    cancel_after: float | None
    hang_up_after: float | None


@dataclass
class Callers:
    """Sends requests and writes down what comes back.

    Args:
        client: with the platform's key.
        paths: the apps' paths, ``/owner/app``.
        draw: the run's randomness.
        hook: where webhooks go.
    """

    client: httpx.AsyncClient
    paths: tuple[str, ...]
    ledger: Ledger
    journal: Path
    draw: random.Random
    hook: str
    run_id: str
    collecting: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when results need no longer be awaited: whatever is still missing is lost."""

    async def send(self, count: int, spread_s: float) -> None:
        """``count`` requests, begun at random moments within ``spread_s`` seconds; returns when each has its result."""
        first = len(self.ledger.entries)
        plans = sorted((self._plan(first + n, spread_s) for n in range(count)), key=lambda plan: plan.at)
        began = time.monotonic()
        callers: list[asyncio.Task[None]] = []
        for plan in plans:
            await asyncio.sleep(max(0.0, began + plan.at - time.monotonic()))
            self.ledger.attempted(plan.entry)
            call = self._queued(plan) if plan.entry.mode == "queued" else self._direct(plan)
            callers.append(asyncio.create_task(call))
        await asyncio.gather(*callers)

    def _plan(self, number: int, spread_s: float) -> Plan:
        draw = self.draw
        fate, dice = "answer", draw.random()
        for name, share in FATES:
            if dice < share:
                fate = name
                break
            dice -= share
        queued = draw.random() < 0.75
        webhook = queued and draw.random() < 0.4
        entry = Entry(number, draw.choice(self.paths), "queued" if queued else "direct", fate, webhook)
        return Plan(
            at=draw.uniform(0, spread_s),
            entry=entry,
            seconds=draw.choice((0.0, 0.05, 0.2, 0.5, 1.5)),
            low=draw.random() < 0.2,
            send_twice=draw.random() < 0.2,
            cancel_after=draw.choice((0.0, 0.02, 0.2, 1.0, 3.0)) if queued and draw.random() < 0.2 else None,
            hang_up_after=draw.uniform(0.05, 1.0) if not queued and draw.random() < 0.15 else None,
        )

    def _body(self, plan: Plan) -> dict[str, object]:
        entry = plan.entry
        return {
            "number": entry.number,
            "journal": str(self.journal),
            "seconds": plan.seconds,
            "fate": entry.fate,
        }

    # --- direct -------------------------------------------------------------------------------------------------------

    async def _direct(self, plan: Plan) -> None:
        """Sent once: direct calls are never tried again, by nobody."""
        call = self.client.post(plan.entry.app, json=self._body(plan))
        try:
            answer = await asyncio.wait_for(call, plan.hang_up_after)
        except (httpx.HTTPError, TimeoutError):
            plan.entry.unanswered += 1
            return
        self._check(plan.entry, answer)
        if not _is_passing(answer):
            self.ledger.saw(plan.entry, answer.status_code, answer.text)

    # --- queued -------------------------------------------------------------------------------------------------------

    async def _queued(self, plan: Plan) -> None:
        request_id = await self._submit(plan)
        if request_id is None:
            return
        if plan.send_twice:
            await self._submit(plan)
        address = f"/queue{plan.entry.app}/requests/{request_id}"
        if plan.cancel_after is not None:
            await asyncio.sleep(plan.cancel_after)
            await self._cancel(plan.entry, address)
        await self._collect(plan.entry, address)

    async def _submit(self, plan: Plan) -> str | None:
        entry, deadline = plan.entry, time.monotonic() + PATIENCE_S
        headers = {"idempotency-key": f"{self.run_id}-{entry.number}"}
        if plan.low:
            headers["x-fal-queue-priority"] = "low"
        query = {"fal_webhook": self.hook} if entry.webhook else {}
        while time.monotonic() < deadline:
            try:
                answer = await self.client.post(
                    f"/queue{entry.app}", json=self._body(plan), headers=headers, params=query, timeout=15
                )
            except httpx.HTTPError:
                entry.unanswered += 1
            else:
                self._check(entry, answer)
                if answer.status_code == 200:
                    request_id: str = answer.json()["request_id"]
                    self.ledger.acknowledged(entry, request_id)
                    return request_id
                if not _is_passing(answer):
                    self.ledger.complained(entry, f"submit answered {answer.status_code}: {answer.text[:200]}")
                    return None
            await asyncio.sleep(0.3)
        return None

    async def _cancel(self, entry: Entry, address: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            try:
                answer = await self.client.put(f"{address}/cancel", timeout=15)
            except httpx.HTTPError:
                pass  # whether it was cancelled is unknown: the ledger claims nothing
            else:
                if answer.status_code == 202:
                    self.ledger.cancelled(entry)
                if answer.status_code in (202, 400):
                    return
                if not _is_passing(answer):
                    self.ledger.complained(entry, f"cancel answered {answer.status_code}: {answer.text[:200]}")
                    return
            await asyncio.sleep(0.3)

    async def _collect(self, entry: Entry, address: str) -> None:
        while not self.collecting.is_set():
            if await self.look(entry, address):
                return
            await asyncio.sleep(0.5)

    async def look(self, entry: Entry, address: str) -> bool:
        """Read the result if there is one; True when there was."""
        try:
            if (await self.client.get(f"{address}/status", timeout=15)).status_code != 200:
                return False
            answer = await self.client.get(address, timeout=15)
        except httpx.HTTPError:
            return False
        if answer.headers.get("x-fal-error-type") == "internal_error":
            return False
        self._check(entry, answer)
        self.ledger.saw(entry, answer.status_code, answer.text)
        return True

    def _check(self, entry: Entry, answer: httpx.Response) -> None:
        """Whatever happens, a caller gets a request id, and JSON that says what went wrong."""
        if "x-fal-request-id" not in answer.headers:
            self.ledger.complained(entry, f"{answer.status_code} without a request id: {answer.text[:200]}")
        if answer.status_code >= 400:
            try:
                answer.json()
            except ValueError:
                self.ledger.complained(entry, f"{answer.status_code} is no JSON: {answer.text[:200]}")


def _is_passing(answer: httpx.Response) -> bool:
    return answer.status_code >= 429 and answer.headers.get("x-fal-error-type") in _PASSING
