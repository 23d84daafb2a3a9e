"""An app that the Python helpers call in every way that they know."""

import os
import time
from collections.abc import Iterator

import fal
from fal.exceptions import FieldException
from pydantic import BaseModel
from starlette.responses import StreamingResponse


class Input(BaseModel):
    text: str = ""
    seconds: float = 0.0


class SpokenTo(fal.App, keep_alive=120, max_concurrency=1):
    machine_type = "XS"

    @fal.endpoint("/")
    def say(self, request: Input) -> dict[str, str]:
        print(f"asked to say {request.text}", flush=True)
        time.sleep(request.seconds)
        return {"said": request.text}

    @fal.endpoint("/refuse")
    def refuse(self, request: Input) -> dict[str, str]:
        raise FieldException("text", "not that word")

    @fal.endpoint("/letters/stream")
    def spell(self, request: Input) -> StreamingResponse:
        def events() -> Iterator[str]:
            for letter in request.text:
                yield f"data: {letter}\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    @fal.realtime("/realtime")
    def shout(self, request: Input) -> dict[str, str]:
        if not request.text:
            raise ValueError("nothing to shout")
        return {"said": request.text.upper()}


class Asking(fal.App, keep_alive=120, max_concurrency=1):
    """Answers what another app of its platform says."""

    machine_type = "XS"
    requirements = ["httpx"]

    @fal.endpoint("/")
    def ask(self, request: Input) -> dict[str, object]:
        return {"heard": fal.apps.run("tester/spoken-to", {"text": request.text})}

    @fal.endpoint("/whose")
    def whose(self) -> dict[str, str]:
        return {"key_id": os.environ["FAL_KEY"].partition(":")[0]}
