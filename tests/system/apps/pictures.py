"""An app that answers with a file."""

import fal
from fal.toolkit import File
from pydantic import BaseModel


class Input(BaseModel):
    text: str


class Output(BaseModel):
    file: File


class Pictures(fal.App, keep_alive=60):
    machine_type = "XS"

    @fal.endpoint("/")
    def run(self, request: Input) -> Output:
        return Output(file=File.from_bytes(request.text.encode(), content_type="text/plain", file_name="text.txt"))
