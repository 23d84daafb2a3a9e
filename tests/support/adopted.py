"""A process that was born to a zygote, with the methods of ``Popen`` that tests use."""

from __future__ import annotations

import signal

from gpu_worker.child import AdoptedChild
from tests.support.waiting import wait_until


class Adopted(AdoptedChild):
    """A child of this test process; see AdoptedChild."""

    def wait(self, timeout: float = 30.0) -> int:
        wait_until(lambda: self.poll() is not None, f"process {self.pid} has ended", timeout)
        return super().wait()

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)
