"""The smallest app: no model, no requirements, starts in well under a second.

    fal run examples/hello.py::Hello
    curl -X POST URL_THAT_IT_PRINTS -H "Content-Type: application/json" -d '{"name": "Ada"}'

The first call starts a worker, which then stays for 300 seconds after its last call.
"""

import fal
from pydantic import BaseModel


class Input(BaseModel):
    name: str = "world"


class Output(BaseModel):
    greeting: str
    calls: int


class Hello(fal.App, keep_alive=300, max_concurrency=1):
    machine_type = "XS"

    def setup(self) -> None:
        """Runs once per worker; what it leaves on self stays in memory until the worker goes away."""
        self.calls = 0
        print("hello: ready")

    @fal.endpoint("/")
    def greet(self, request: Input) -> Output:
        self.calls += 1
        print(f"hello: call {self.calls}, from {request.name}")
        return Output(greeting=f"Hello, {request.name}!", calls=self.calls)
