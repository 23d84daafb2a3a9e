"""What apps call at the start of ``setup()``."""

from __future__ import annotations

import functools
import os
from typing import Any

from fal._needed import needed


def patch_onnx_runtime(
    inter_op_num_threads: int = 16, intra_op_num_threads: int = 16, omp_num_threads: int = 16
) -> None:
    """Give every onnxruntime session that is made from now on these numbers of threads, unless it chose its own.

    Left alone, onnxruntime counts the host's cores, and pins its threads to ones that the worker may not use.

    Raises:
        ImportError: onnxruntime is not installed; names the requirement.
    """
    os.environ["OMP_NUM_THREADS"] = str(omp_num_threads)
    onnxruntime = needed("onnxruntime", "patch_onnx_runtime()", "onnxruntime")
    session = onnxruntime.InferenceSession
    original = getattr(session.__init__, "__wrapped__", session.__init__)

    @functools.wraps(original)
    def with_threads(self: Any, model: Any, sess_options: Any = None, *args: Any, **kwargs: Any) -> None:
        options = onnxruntime.SessionOptions() if sess_options is None else sess_options
        options.inter_op_num_threads = options.inter_op_num_threads or inter_op_num_threads
        options.intra_op_num_threads = options.intra_op_num_threads or intra_op_num_threads
        original(self, model, options, *args, **kwargs)

    session.__init__ = with_threads
