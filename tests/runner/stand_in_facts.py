"""Run by an environment that has torch: what code written for a GPU gets where the CPU stands in. Prints JSON."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable
from typing import Any

from fal._runner import cuda_on_cpu

told: list[str] = []
cuda_on_cpu.install_on_import("GPU-A100", told.append)

import torch  # noqa: E402 - the order is what is tested


def place(tensor: Any) -> str:
    return f"{tensor.device.type} {str(tensor.dtype).removeprefix('torch.')}"


def linear(**kwargs: Any) -> Any:
    return torch.nn.Linear(2, 2, **kwargs)


def in_a_thread(call: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join()
    return found[0]


def reloaded(**kwargs: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(torch.ones(1), buffer)
    buffer.seek(0)
    return torch.load(buffer, **kwargs)


def meta_parameters() -> list[bool]:
    with torch.device("meta"):
        return [linear().weight.is_meta, torch.arange(3).is_meta]


def within(device: str) -> Any:
    with torch.device(device):
        return torch.ones(1)


half = torch.ones(2, dtype=torch.float16)
generator = torch.Generator("cuda").manual_seed(1)
torch.cuda.synchronize()
torch.cuda.empty_cache()
torch.cuda.set_device(0)
torch.cuda.manual_seed_all(1)
with torch.cuda.device(0):
    pass

facts = {
    "told": told,
    "is_available": torch.cuda.is_available(),
    "factory": place(torch.zeros(2, device="cuda", dtype=torch.float16)),
    "factory like": place(torch.zeros_like(half, device="cuda:0")),
    "factory of a tensor": place(half.new_zeros(3, device=torch.device("cuda"), dtype=torch.bfloat16)),
    "factory on the CPU": place(torch.zeros(2, dtype=torch.float16)),
    "random": place(torch.randn(3, generator=generator, device="cuda")),
    "is a generator": isinstance(generator, torch.Generator),
    "tensor to": place(half.to("cuda")),
    "tensor to index": place(half.to(0)),
    "tensor to with dtype": place(half.to("cuda", torch.bfloat16)),
    "tensor to on the CPU": place(half.to("cpu")),
    "tensor cuda": place(half.cuda()),
    "integers": place(torch.ones(1, dtype=torch.int64).to("cuda")),
    "doubles": place(torch.ones(1, dtype=torch.float64).to("cuda")),
    "pinned": place(half.pin_memory()),
    "module made there": place(linear(device="cuda", dtype=torch.float16).weight),
    "module moved": place(linear(dtype=torch.float16).to("cuda").weight),
    "module moved with dtype": place(linear().to(device="cuda:0", dtype=torch.float16).weight),
    "module cuda": place(linear(dtype=torch.bfloat16).cuda().weight),
    "module half after": place(linear().to("cuda").half().weight),
    "module emptied": place(linear(device="meta").to_empty(device="cuda").weight),
    "runs": place(linear().half().to("cuda")(torch.ones(1, 2, device="cuda", dtype=torch.float16))),
    "loaded": place(reloaded(map_location="cuda")),
    "loaded anywhere": place(reloaded()),
    "meta": meta_parameters(),
    "context": place(within("cuda")),
    "thread": place(in_a_thread(lambda: torch.ones(1, device="cuda"))),
}
import torch._dynamo  # noqa: E402 - refuses replaced functions that share an identity

print(json.dumps(facts))
