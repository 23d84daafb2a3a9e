"""The toolkit's two judges of pictures, over tiny models with random weights that lie where the real ones would."""

from pathlib import Path

import fal
from fal.toolkit import Image
from fal.toolkit.image import safety_checker
from fal.toolkit.image.nsfw_filter import NSFWImageDetectionInput, inference, run_nsfw_estimation
from pydantic import BaseModel


class Pictures(BaseModel):
    images: list[Image]
    check: bool = True


class Judged(BaseModel):
    images: list[Image]
    has_nsfw_concepts: list[bool]
    probabilities: list[float]


class Judges(fal.App, keep_alive=60):
    app_name = "judges"
    machine_type = "M"
    requirements = ["torch==2.13.0", "diffusers>=0.42,<0.43", "transformers>=5,<6", "accelerate"]

    def setup(self) -> None:
        _make_checker(_shelf(safety_checker.CHECKER))
        _make_features(_shelf(safety_checker.FEATURES))
        _make_classifier(_shelf(inference.MODEL))

    @fal.endpoint("/")
    def judge(self, pictures: Pictures) -> Judged:
        kept = safety_checker.postprocess_images([image.to_pil() for image in pictures.images], pictures.check)
        return Judged(
            images=[Image.from_pil(image) for image in kept["images"]],
            has_nsfw_concepts=kept["has_nsfw_concepts"],
            probabilities=[
                run_nsfw_estimation(NSFWImageDetectionInput(image_url=image.url)).nsfw_probability
                for image in pictures.images
            ],
        )


def _shelf(repository: str) -> str:
    """The folder of a repository's only snapshot in the hub's cache."""
    root = Path("/data/.cache/huggingface/hub") / f"models--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / "main").write_text("made-here")
    return str(root / "snapshots" / "made-here")


def _make_checker(folder: str) -> None:
    """Objects to everything: each concept's threshold is lower than any likeness."""
    import torch
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    small = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**small, "image_size": 224, "patch_size": 112, "projection_dim": 8}
    text = {**small, "vocab_size": 10, "projection_dim": 8}
    checker = StableDiffusionSafetyChecker(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    with torch.no_grad():
        checker.concept_embeds_weights.fill_(-2.0)
    checker.save_pretrained(folder)


def _make_features(folder: str) -> None:
    from transformers import CLIPImageProcessor

    CLIPImageProcessor().save_pretrained(folder)


def _make_classifier(folder: str) -> None:
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    labels = {0: "normal", 1: "nsfw"}
    config = ViTConfig(
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        patch_size=112,
        id2label=labels,
        label2id={name: number for number, name in labels.items()},
    )
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor().save_pretrained(folder)
