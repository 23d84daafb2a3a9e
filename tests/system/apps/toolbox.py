"""The rest of the toolkit, a path for each part of it."""

import importlib
import os
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Any

import fal
from fal.toolkit import (
    FAL_MODEL_WEIGHTS_DIR,
    FAL_PERSISTENT_DIR,
    FAL_REPOSITORY_DIR,
    Audio,
    AudioField,
    CompressedFile,
    DownloadError,
    FalBaseModel,
    FalTookitException,
    File,
    FileData,
    FileField,
    FileRepository,
    FileUploadException,
    Hidden,
    Image,
    ImageField,
    ImageSizeField,
    ImageSizeInput,
    KVStoreException,
    Video,
    VideoField,
    clone_repository,
    get_gpu_type,
    get_image_size,
    synchronized_inductor_cache,
)
from fal.toolkit.image import filter_by, preprocess_image, read_image_from_url
from fal.toolkit.optimize import optimize
from fal.toolkit.pydantic import Field
from fal.toolkit.types import DataUri, HttpsUrl, ImageInput
from fal.toolkit.utils.retry import retry
from fal.toolkit.utils.setup_utils import patch_onnx_runtime
from pydantic import BaseModel


class Media(BaseModel):
    video: Video
    audio: Audio
    archive: CompressedFile
    saved: str
    size: int


class Archive(BaseModel):
    archive: CompressedFile


class Size(BaseModel):
    size: ImageSizeInput


class Fields(FalBaseModel):
    FIELD_ORDERS = ["picture", "prompt"]
    SCHEMA_IGNORES = {"internal"}

    prompt: str = ""
    internal: int = 1
    picture: ImageInput | None = ImageField(default=None)
    document: str = FileField(default="")
    sound: str = AudioField(default="")
    clip: str = VideoField(default="", constraints={"max_seconds": 3})
    size: ImageSizeInput = ImageSizeField(default="square")
    seed: int = Hidden(Field(default=3))
    link: HttpsUrl | None = None
    inline: DataUri | None = None


class Url(BaseModel):
    address: str


class Shelf(FileRepository):
    def save(self, data: FileData, **options: Any) -> str:
        if options.get("broken"):
            raise OSError("the shelf is full")
        return f"shelf:{data.file_name}"


class Toolbox(fal.App, keep_alive=120, max_concurrency=1):
    machine_type = "XS"

    @fal.endpoint("/media")
    def media(self) -> Media:
        made = File.from_bytes(b"abc", content_type="text/plain", file_name="a.txt")
        folder = Path(tempfile.mkdtemp())
        return Media(
            video=Video.from_bytes(b"v", content_type="video/mp4", file_name="v.mp4"),
            audio=Audio.from_bytes(b"a", content_type="audio/wav", file_name="a.wav"),
            archive=CompressedFile.from_bytes(b"PK\5\6" + bytes(18), content_type="application/zip"),
            saved=made.save(folder / "copy.txt").read_text(),
            size=len(made.as_bytes()),
        )

    @fal.endpoint("/archive")
    def archive(self, request: Archive) -> dict[str, list[str]]:
        texts = [path.name for path in request.archive.glob("*.txt")]
        return {"all": sorted(path.name for path in request.archive), "texts": texts}

    @fal.endpoint("/size")
    def size(self, request: Size) -> list[int]:
        found = get_image_size(request.size)
        return [found.width, found.height]

    @fal.endpoint("/fields")
    def fields(self, request: Fields) -> dict[str, Any]:
        return {"seed": request.seed, "prompt": request.prompt}

    @fal.endpoint("/repositories")
    def repositories(self) -> dict[str, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            names = ("fal_v3", "fal", "fal_v2", "cdn", "in_memory")
            urls = {name: File.from_bytes(b"x", "text/plain", "x.txt", name).url for name in names}
        own = File.from_bytes(b"x", file_name="x.txt", repository=Shelf()).url
        fallen = File.from_bytes(
            b"x", file_name="x.txt", repository=Shelf(), fallback_repository=["in_memory"], save_kwargs={"broken": True}
        ).url
        try:
            File.from_bytes(b"x", repository=Shelf(), fallback_repository=None, save_kwargs={"broken": True})
        except FileUploadException as error:
            failed = str(error)
        return {"urls": urls, "own": own, "fallen": fallen, "failed": failed}

    @fal.endpoint("/places")
    def places(self) -> list[str]:
        return [str(path) for path in (FAL_PERSISTENT_DIR, FAL_MODEL_WEIGHTS_DIR, FAL_REPOSITORY_DIR)]

    @fal.endpoint("/clone")
    def clone(self) -> dict[str, Any]:
        """The https address is led to a folder, so that no network is needed."""
        origin = Path(tempfile.mkdtemp()) / "origin.git"
        git = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-C", str(origin)]
        origin.mkdir()
        (origin / "cloned_module.py").write_text("WORD = 'cloned'\n")
        for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
            subprocess.run([*git, *command], check=True)
        os.environ |= {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"url.{origin.as_uri()}.insteadOf",
            "GIT_CONFIG_VALUE_0": "https://git.example/origin.git",
        }
        head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
        path = clone_repository("https://git.example/origin.git", commit_hash=head, include_to_path=True)
        word = importlib.import_module("cloned_module").WORD

        try:
            clone_repository("https://git.example/origin.git", commit_hash="abc")
        except ValueError as error:
            refused = str(error)
        return {"path": str(path), "word": word, "refused": refused}

    @fal.endpoint("/gpu")
    def gpu(self) -> dict[str, Any]:
        with synchronized_inductor_cache("table/v1"):
            folder = os.environ["TORCHINDUCTOR_CACHE_DIR"]
            Path(folder, "compiled.bin").write_text("x")
        kept = [path.name for path in Path("/data/inductor-caches").rglob("*") if path.is_file()]
        return {"gpu": get_gpu_type(), "kept": kept}

    @fal.endpoint("/retry")
    def retry(self) -> int:
        tries: list[int] = []

        @retry(max_retries=3, base_delay=0.01)
        def unlucky() -> int:
            tries.append(1)
            if len(tries) < 3:
                raise OSError("not yet")
            return len(tries)

        return unlucky()

    @fal.endpoint("/picture")
    def picture(self, request: Url) -> dict[str, Any]:
        read = read_image_from_url(request.address, True, True, 4)
        kept, black = filter_by([False, True], [read, read])
        return {
            "read": [read.mode, *read.size],
            "prepared": preprocess_image(read).mode,
            "kept": kept is read,
            "black": black.getpixel((0, 0)),
        }

    @fal.endpoint("/make-picture")
    def make_picture(self) -> Image:
        from PIL import Image as Pillow

        return Image.from_pil(Pillow.new("RGBA", (8, 4), "red"), format="png")

    @fal.endpoint("/old")
    def old(self) -> dict[str, Any]:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            same = optimize("a module") == "a module"
        errors = (DownloadError, FileUploadException, KVStoreException)
        try:
            patch_onnx_runtime()
        except ImportError as error:
            onnx = str(error)
        return {
            "same": same,
            "said": str(said[0].message),
            "errors": all(issubclass(error, FalTookitException) for error in errors),
            "onnx": onnx,
        }
