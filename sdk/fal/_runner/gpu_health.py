"""Whether the GPU of this process still works, asked after answers that failed.

User code may catch an exception and answer as it likes; a context that is broken stays broken. So the words of errors
are read, and where torch uses the GPU a tiny kernel tells. Leaves what follows to the supervisor.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import Any

from fal._runner.channel import Channel
from fal._runner.protocol import GpuFault, Request
from fal.exceptions._gpu import Fault, fault_in, fault_of

#: A kernel that has not ended by then says nothing: the GPU may be busy with another request.
PROBE_SECONDS = 5.0
#: Bytes of an answer that are read for what they say.
_MOST_TEXT = 64 * 1024


class GpuHealth:
    """Tells the supervisor what is wrong with the GPU."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def check(self, request: Request, error: BaseException | None = None, body: bytes = b"") -> None:
        """An attempt raised ``error``, answers a failure with ``body``, or comes to the end of a stream."""
        found = fault_of(error) if error is not None else None
        if found is None or found[0] == "out_of_memory":
            found = await _probed() or found
        if found is None and body and _driver_is_loaded() and not _torch_uses_cuda():
            found = fault_in(body[:_MOST_TEXT].decode("utf-8", "replace"))
        if found is not None:
            self._channel.send(GpuFault(request.id, request.attempt, found[0], found[1].splitlines()[0][:500]))


def _torch_uses_cuda() -> bool:
    torch: Any = sys.modules.get("torch")
    try:
        return torch is not None and bool(torch.cuda.is_initialized())
    except AttributeError:  # half imported, or something else of that name
        return False


async def _probed() -> tuple[Fault, str] | None:
    """What a tiny kernel ran into; None when it ran, or when there is nobody to ask."""
    if not _torch_uses_cuda():
        return None
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[tuple[Fault, str] | None] = loop.create_future()

    def settle(found: tuple[Fault, str] | None) -> None:
        if not answer.done():
            answer.set_result(found)

    def ask() -> None:
        found = probe(sys.modules["torch"])
        try:
            loop.call_soon_threadsafe(settle, found)
        except RuntimeError:
            pass  # the loop is closed: the process is ending

    # A thread of its own: one that a hung kernel keeps is missed by nobody.
    threading.Thread(target=ask, name="fal-gpu-probe", daemon=True).start()
    await asyncio.wait({answer}, timeout=PROBE_SECONDS)
    return answer.result() if answer.done() else None


def probe(torch: Any) -> tuple[Fault, str] | None:
    """Run a kernel of one element on each GPU that torch has used, on a stream of its own."""
    try:
        cuda = torch.cuda
        for device in range(cuda.device_count()):
            if device != cuda.current_device() and not cuda.memory_reserved(device):
                continue  # unused: asking would make a context there
            with cuda.device(device):
                stream = cuda.Stream()
                with cuda.stream(stream):
                    torch.zeros(1, device=f"cuda:{device}").add_(1)
                stream.synchronize()
    except RuntimeError as error:
        found = fault_of(error)
        if found is not None and found[0] == "out_of_memory":
            return None  # full, but alive
        return found or ("sticky", f"a kernel of one element failed: {error}")
    except Exception:  # noqa: BLE001 - a torch that is built otherwise says nothing about the GPU
        return None
    return None


def _driver_is_loaded() -> bool:
    """Whether anything in this process talks to an NVIDIA GPU."""
    try:
        with open("/proc/self/maps", "rb") as maps:
            return b"/libcuda.so" in maps.read()
    except OSError:
        return False
