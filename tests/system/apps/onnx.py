"""An app that runs a model with onnxruntime after the toolkit has told it how many threads to use."""

import fal
from fal.toolkit.utils.setup_utils import patch_onnx_runtime


def _field(number: int, value: bytes | int) -> bytes:
    """One field of a protobuf message, short enough for one byte of length."""
    return bytes([number << 3, value]) if isinstance(value, int) else bytes([number << 3 | 2, len(value)]) + value


def _identity() -> bytes:
    """The smallest ONNX model: y = x, one float."""
    tensor = _field(1, 1) + _field(2, _field(1, _field(1, 1)))

    def edge(name: bytes) -> bytes:
        return _field(1, name) + _field(2, _field(1, tensor))

    node = _field(1, b"x") + _field(2, b"y") + _field(4, b"Identity")
    graph = _field(1, node) + _field(2, b"g") + _field(11, edge(b"x")) + _field(12, edge(b"y"))
    return _field(1, 8) + _field(7, graph) + _field(8, _field(2, 13))


class Onnx(fal.App, keep_alive=60):
    machine_type = "XS"
    requirements = ["onnxruntime==1.23.2", "numpy"]

    def setup(self) -> None:
        patch_onnx_runtime(inter_op_num_threads=1, intra_op_num_threads=2, omp_num_threads=3)
        import onnxruntime

        own = onnxruntime.SessionOptions()
        own.intra_op_num_threads = 5
        self.sessions = [
            onnxruntime.InferenceSession(_identity()),
            onnxruntime.InferenceSession(_identity(), own, providers=["CPUExecutionProvider"]),
        ]

    @fal.endpoint("/")
    def run(self) -> dict[str, object]:
        import os

        import numpy

        options = [session.get_session_options() for session in self.sessions]
        (answer,) = self.sessions[0].run(None, {"x": numpy.array([7.0], "float32")})
        return {
            "answer": float(answer[0]),
            "threads": [[o.inter_op_num_threads, o.intra_op_num_threads] for o in options],
            "omp": os.environ["OMP_NUM_THREADS"],
        }
