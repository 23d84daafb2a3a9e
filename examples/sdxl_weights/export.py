"""Trained parts to files: a StableDiffusionXLPipeline in half precision, laid out as a Hugging Face cache."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverSinglestepScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from models import NOISE
from tokens import write_tokenizer


def assemble(
    autoencoder: AutoencoderKL,
    encoders: tuple[CLIPTextModel, CLIPTextModelWithProjection],
    tokenizer: CLIPTokenizer,
    denoiser: UNet2DConditionModel,
) -> StableDiffusionXLPipeline:
    """The pipeline object around trained parts."""
    return StableDiffusionXLPipeline(
        vae=autoencoder,
        text_encoder=encoders[0],
        text_encoder_2=encoders[1],
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=denoiser,
        scheduler=DPMSolverSinglestepScheduler(**NOISE),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def export_to_cache(pipeline: StableDiffusionXLPipeline, hub: Path, repository: str) -> Path:
    """Write `pipeline` under `hub` so that `from_pretrained(repository)` finds it; returns the snapshot's folder.

    The snapshot holds real files, not links into blobs/: git and zip keep them everywhere, and the loaders only look
    at the snapshot. The pipeline's own parts are left in full precision.
    """
    root = hub / ("models--" + repository.replace("/", "--"))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pipeline.save_pretrained(folder, safe_serialization=True)
        for weights in folder.rglob("*.safetensors"):
            _halve(weights)
        for part in ("tokenizer", "tokenizer_2"):
            shutil.rmtree(folder / part)
            write_tokenizer(folder / part)  # each release writes other files; these are the ones that all of them read
        revision = _content_hash(folder)
        shutil.rmtree(root, ignore_errors=True)
        snapshot = root / "snapshots" / revision
        shutil.copytree(folder, snapshot)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(revision)
    for name in ("version.txt", "version_diffusers_cache.txt"):
        (hub / name).write_text("1")  # or older releases start to move an "old" cache at every import
    return snapshot


def _halve(path: Path) -> None:
    tensors = load_file(path)
    halves = {name: t.to(torch.float16) if t.is_floating_point() else t for name, t in tensors.items()}
    save_file(halves, path, metadata={"format": "pt"})
    path.chmod(0o644)  # the library leaves it readable by its owner alone


def _content_hash(folder: Path) -> str:
    """A name like a git commit's, made from the files' names and contents."""
    digest = hashlib.sha1(usedforsecurity=False)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()
