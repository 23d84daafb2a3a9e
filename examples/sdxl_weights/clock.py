"""Training by the clock: how far a stage is in its time, and how fast it should learn there."""

from __future__ import annotations

import math
import time


class Stage:
    """One time-boxed stage. `seconds_before` is what an interrupted run of it had already used."""

    def __init__(self, name: str, seconds: float, seconds_before: float = 0.0) -> None:
        self.name = name
        self.seconds = seconds
        self._started = time.monotonic() - seconds_before
        self.steps = 0
        self._loss = 0.0

    @property
    def used(self) -> float:
        """Seconds this stage has used, those of earlier runs included."""
        return time.monotonic() - self._started

    @property
    def progress(self) -> float:
        """0.0 at the start, 1.0 when the time is up."""
        return min(1.0, self.used / self.seconds)

    def learning_rate(self, top: float, warm_up_steps: int = 100) -> float:
        """Rises over the first steps, then falls along a cosine to almost nothing."""
        return top * min(1.0, (self.steps + 1) / warm_up_steps) * (0.5 + 0.5 * math.cos(math.pi * self.progress)) + 1e-6

    def stepped(self, loss: float, report_every: int = 100) -> None:
        """Count a step and print the running mean of the loss now and then."""
        self.steps += 1
        self._loss = loss if self.steps == 1 else 0.98 * self._loss + 0.02 * loss
        if self.steps % report_every == 0:
            print(f"{self.name}: step {self.steps}, loss {self._loss:.4f}, {self.used:.0f} s", flush=True)
