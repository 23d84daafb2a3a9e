"""Apps that want the same card: one that takes it whole, two that say how much of it they need."""

from __future__ import annotations

import os
from typing import Any

import fal


class Small(fal.App):
    machine_type = "GPU-A100"
    gpu_memory = "15GB"
    keep_alive = 300

    @fal.endpoint("/")
    def run(self) -> dict[str, Any]:
        return {"cards": os.environ["CUDA_VISIBLE_DEVICES"], "pid": os.getpid()}


class Other(fal.App):
    machine_type = "GPU-A100"
    gpu_memory = "15GB"
    keep_alive = 300

    @fal.endpoint("/")
    def run(self) -> dict[str, Any]:
        return {"cards": os.environ["CUDA_VISIBLE_DEVICES"], "pid": os.getpid()}


class Third(fal.App):
    machine_type = "GPU-A100"
    gpu_memory = "15GB"
    keep_alive = 300

    @fal.endpoint("/")
    def run(self) -> dict[str, Any]:
        return {"cards": os.environ["CUDA_VISIBLE_DEVICES"], "pid": os.getpid()}


class Whole(fal.App):
    machine_type = "GPU-A100"
    keep_alive = 300

    @fal.endpoint("/")
    def run(self) -> dict[str, Any]:
        return {"cards": os.environ["CUDA_VISIBLE_DEVICES"], "pid": os.getpid()}


class Pair(fal.App):
    machine_type = "GPU-A100"
    num_gpus = 2

    @fal.endpoint("/")
    def run(self) -> dict[str, Any]:
        return {"cards": os.environ["CUDA_VISIBLE_DEVICES"]}
