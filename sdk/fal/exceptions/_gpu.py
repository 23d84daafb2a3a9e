"""GPU failures: how they are recognised, without importing torch.

They answer 503, which tells the platform to replace the runner. Some are *sticky*: they stay in the process and fail
every later request, so the runner must go whatever the app made of the exception.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from fal.exceptions._errors import FalServerlessException


class GPUException(FalServerlessException):
    """The GPU or its driver failed; the runner is replaced."""

    def __init__(self, message: str = "GPU error", status_code: int = 503) -> None:
        super().__init__(message)
        self.message = message
        self.status_code = status_code


class CUDAOutOfMemoryException(GPUException):
    """The GPU's memory is full."""

    def __init__(self, message: str = "CUDA error: out of memory", status_code: int = 503) -> None:
        super().__init__(message, status_code)


_OUT_OF_MEMORY = re.compile(
    r"CUDA (error: )?out of memory|HIP out of memory|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED"
    r"|NVML_SUCCESS == r INTERNAL ASSERT FAILED|cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"
    r"|cudaErrorMemoryAllocation",
    re.IGNORECASE,
)
_GPU_WORDS = re.compile(r"\b(cuda|cudnn|cublas|cufft|cusparse|nccl|nvml|nvrtc|triton|cutlass)", re.IGNORECASE)
#: What the driver and its libraries call errors after which the process can do nothing more on its GPU.
_STICKY = re.compile(
    r"illegal memory access was encountered|device-side assert triggered|unspecified launch failure"
    r"|uncorrectable ECC error|uncorrectable NVLink error|misaligned address|an illegal instruction was encountered"
    r"|invalid program counter|hardware stack error|the launch timed out and was terminated"
    r"|operation not supported on global/shared address space|GPU is lost"
    r"|cudaError(IllegalAddress|Assert|LaunchFailure|ECCUncorrectable|NvlinkUncorrectable|MisalignedAddress"
    r"|IllegalInstruction|InvalidPc|HardwareStackError|LaunchTimeout|InvalidAddressSpace)"
    r"|CUDA_ERROR_(ILLEGAL_ADDRESS|ASSERT|LAUNCH_FAILED|ECC_UNCORRECTABLE|NVLINK_UNCORRECTABLE|MISALIGNED_ADDRESS"
    r"|ILLEGAL_INSTRUCTION|INVALID_PC|HARDWARE_STACK_ERROR|LAUNCH_TIMEOUT|INVALID_ADDRESS_SPACE)",
    re.IGNORECASE,
)
#: Among them, those that accuse the card and not the program.
_BROKEN_CARD = re.compile(r"uncorrectable|ECC|GPU is lost", re.IGNORECASE)
#: What torch says on a machine without a GPU. The machine works; the app asked for something it does not have.
_NO_GPU_HERE = re.compile(r"not compiled with CUDA|no NVIDIA driver|No CUDA GPUs are available", re.IGNORECASE)


def classify(error: BaseException) -> GPUException | None:
    """The GPU failure that ``error`` amounts to; ``None`` when it is something else."""
    if isinstance(error, GPUException):
        return error
    names = {f"{cls.__module__}.{cls.__qualname__}" for cls in type(error).__mro__}
    is_oom_type = bool(names & {"torch.OutOfMemoryError", "torch.cuda.OutOfMemoryError"})
    if not is_oom_type and not isinstance(error, RuntimeError):
        return None
    text = str(error)
    if is_oom_type or _OUT_OF_MEMORY.search(text):
        return CUDAOutOfMemoryException()
    if _NO_GPU_HERE.search(text):
        return None
    if _GPU_WORDS.search(text):
        return GPUException()
    return None


Fault = Literal["out_of_memory", "sticky", "broken_card"]
_MOST_CAUSES = 20


def fault_of(error: BaseException) -> tuple[Fault, str] | None:
    """What ``error`` says of the GPU, and the words that say it: sticky ones wherever they are among its causes."""
    for cause in _causes(error):
        if (found := fault_in(_text(cause))) is not None:
            return found
    if isinstance(failure := classify(error), CUDAOutOfMemoryException):
        return "out_of_memory", _text(error) or failure.message
    return None


def fault_in(text: str) -> tuple[Fault, str] | None:
    """The sticky error that a text names, and the line that does."""
    if (found := _STICKY.search(text)) is None:
        return None
    line = text[text.rfind("\n", 0, found.start()) + 1 :].partition("\n")[0]
    return "broken_card" if _BROKEN_CARD.search(found[0]) else "sticky", line.strip()[:500]


def _causes(error: BaseException) -> list[BaseException]:
    """``error`` and what it was raised from or in the middle of, groups taken apart."""
    found = [error]
    for one in found:  # grows while it is walked
        inner = (one.__cause__, one.__context__, *getattr(one, "exceptions", ()))
        found += [each for each in inner if isinstance(each, BaseException) and not any(each is old for old in found)]
        if len(found) > _MOST_CAUSES:
            break
    return found


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - an exception of user code need not be printable
        return ""


@contextmanager
def catch_gpu_exceptions() -> Iterator[None]:
    """Turn what looks like a GPU failure into ``GPUException``. Context manager and decorator.

    Raises:
        GPUException: for anything inside that ``classify`` recognises; other errors pass unchanged.
    """
    try:
        yield
    except RuntimeError as error:
        failure = classify(error)
        if failure is None:
            raise
        raise failure from error
