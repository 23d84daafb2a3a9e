"""Training by the clock: how far a stage is in its time, how fast it should learn there, and saving on the way.

The clock counts this process's own CPU seconds, so that a stage learns as much on a busy machine, only later.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch

_SAVE_SECONDS = 120.0


class Stage:
    """One time-boxed stage of training `modules`, with an optimiser and a checkpoint that it goes on from.

    Args:
        seconds: CPU seconds that the stage may use, those of interrupted runs included.
        top_rate: the highest learning rate.
        checkpoint: file to save to every two minutes and to resume from.
    """

    def __init__(
        self,
        name: str,
        modules: torch.nn.Module,
        seconds: float,
        top_rate: float,
        checkpoint: Path,
        weight_decay: float = 0.0,
    ) -> None:
        self.name = name
        self.steps = 0
        self.extra: dict[str, Any] = {}  # saved and restored with the rest
        self._modules = modules
        self._parameters = [p for p in modules.parameters() if p.requires_grad]
        self._optimiser = torch.optim.AdamW(self._parameters, weight_decay=weight_decay)
        self._seconds = seconds
        self._top_rate = top_rate
        self._checkpoint = checkpoint
        self._loss = 0.0
        used_before = self._resume() if checkpoint.exists() else 0.0
        self._started = time.process_time() - used_before
        self._saved_at = self.used

    @property
    def used(self) -> float:
        """CPU seconds so far."""
        return time.process_time() - self._started

    @property
    def progress(self) -> float:
        """0.0 at the start, 1.0 when the time is up."""
        return min(1.0, self.used / self._seconds)

    def learn(self, loss: torch.Tensor) -> None:
        """One step down the gradient of `loss`. The rate rises over 100 steps, then falls along a cosine."""
        rate = self._top_rate * min(1.0, (self.steps + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * self.progress))
        for group in self._optimiser.param_groups:
            group["lr"] = rate + 1e-6
        self._optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimiser.step()
        value = loss.item()
        self._loss = value if self.steps == 0 else 0.98 * self._loss + 0.02 * value
        self.steps += 1
        if self.steps % 100 == 0:
            print(f"{self.name}: step {self.steps}, loss {self._loss:.4f}, {self.used:.0f} s", flush=True)

    def save_now_and_then(self) -> bool:
        """Write the checkpoint if the last one is old; True when it did."""
        if self.used - self._saved_at < _SAVE_SECONDS and self.progress < 1:
            return False
        self._saved_at = self.used
        state = {
            "modules": self._modules.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "steps": self.steps,
            "used": self.used,
            "loss": self._loss,
            "extra": self.extra,
        }
        partial = self._checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self._checkpoint)
        return True

    def _resume(self) -> float:
        state = torch.load(self._checkpoint, weights_only=True)
        self._modules.load_state_dict(state["modules"])
        if state["optimiser"] is not None:
            self._optimiser.load_state_dict(state["optimiser"])
        self.steps, self._loss, self.extra = state["steps"], state["loss"], state["extra"]
        used: float = state["used"]
        return used
