"""Two apps that use what the platform keeps for them: files, values and the shared folder."""

import threading
from pathlib import Path

import fal
from fal.toolkit import File, Image, KVStore, download_file, download_model_weights
from fal.toolkit.types import FileInput, ImageInput
from PIL import Image as Pillow
from pydantic import BaseModel


class Word(BaseModel):
    word: str = ""


class Made(BaseModel):
    picture: Image
    notes: File
    later: str


class Given(BaseModel):
    picture: ImageInput
    document: FileInput


class Keeper(fal.App, keep_alive=60, max_concurrency=1):
    machine_type = "XS"

    def setup(self) -> None:
        self.go = threading.Event()
        KVStore("notes").set("setup", "was here")

    @fal.endpoint("/")
    def make(self, request: Word) -> Made:
        """Answers with three URLs; behind the last one there is nothing until ``/finish``."""
        Path("notes.txt").write_text(request.word)
        pending = File.reserve("text/plain", "later.txt")

        def finish() -> None:
            self.go.wait(60)
            pending.complete(b"better late")

        threading.Thread(target=finish).start()
        return Made(
            picture=Image.from_pil(Pillow.new("RGB", (6, 4), "red")),
            notes=File.from_path("notes.txt", "text/plain"),
            later=pending.url,
        )

    @fal.endpoint("/finish")
    def finish(self) -> dict[str, str]:
        self.go.set()
        return {}

    @fal.endpoint("/take")
    def take(self, given: Given) -> dict[str, object]:
        weights = download_model_weights(given.document)
        copy = download_file(given.document, "copies")
        with given.document.as_temp_file() as path:
            document = path.read_text()
        size = given.picture.to_pil().size
        return {"size": size, "document": document, "weights": str(weights), "copy": str(copy)}

    @fal.endpoint("/remember")
    def remember(self, request: Word) -> dict[str, str]:
        Path("/data/shared").mkdir(exist_ok=True)
        Path("/data/shared/word.txt").write_text(request.word)
        KVStore("notes").set("word", request.word, ttl=3600)
        return {}


class Reader(fal.App, keep_alive=60, max_concurrency=1):
    machine_type = "XS"

    @fal.endpoint("/")
    def recall(self) -> dict[str, str | None]:
        kv = KVStore("notes")
        return {
            "file": Path("/data/shared/word.txt").read_text(),
            "value": kv.get("word"),
            "setup": kv.get("setup"),
            "missing": kv.get("nothing"),
        }
