"""Work on several GPUs by worker processes: not on this platform; using a name says what to do."""

from __future__ import annotations

from fal._absent import absent

__getattr__ = absent(
    "fal.distributed",
    "ask for num_gpus=N and start a process per GPU in setup(), by torch.multiprocessing (docs/migrating.md)",
)
