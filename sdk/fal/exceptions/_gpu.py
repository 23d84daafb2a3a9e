"""GPU failures: how they are recognised, without importing torch.

A failed CUDA context stays in the process and fails every later request, so these answer 503, which tells the platform
to replace the runner.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

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
