"""Stage one: the autoencoder learns to draw flat colours and sharp edges from few numbers."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from diffusers import AutoencoderKL

from clock import Stage
from shapes import SIZE, Scene, draw, random_scene

_POOL = 6000  # pictures drawn once and seen again and again
_CROP = 64
_CROPS_UNTIL = 0.5  # share of the time


def as_tensor(scenes: list[Scene]) -> torch.Tensor:
    """The scenes' pictures as bytes, channels first."""
    return torch.from_numpy(np.stack([np.asarray(draw(scene)) for scene in scenes])).permute(0, 3, 1, 2).contiguous()


def as_floats(pictures: torch.Tensor) -> torch.Tensor:
    """Bytes to the -1..1 that the autoencoder sees."""
    return pictures.float() / 127.5 - 1


def train_autoencoder(model: AutoencoderKL, seconds: float, rng: random.Random, checkpoint: Path) -> None:
    """Train on crops first, which are cheap (the model is convolutional), then on whole pictures.

    The latents get a little noise, so that near is alike.
    """
    pool = as_tensor([random_scene(rng) for _ in range(_POOL)])
    stage = Stage("pictures", model, seconds, 2e-3, checkpoint)
    while stage.progress < 1:
        if stage.progress < _CROPS_UNTIL:
            top, left = (8 * rng.randrange((SIZE - _CROP) // 8 + 1) for _ in range(2))
            pictures = as_floats(_some(pool, 16)[:, :, top : top + _CROP, left : left + _CROP])
        else:
            pictures = as_floats(_some(pool, 7))
        with torch.autocast("cpu", torch.bfloat16):
            mean = model.encode(pictures).latent_dist.mean
            noisy = mean + 0.05 * mean.detach().std() * torch.randn_like(mean)
            drawn = model.decode(noisy).sample.float()
        stage.learn(_drawing_error(drawn, pictures) + 1e-4 * mean.float().square().mean())
        stage.save_now_and_then()


def polish_decoder(model: AutoencoderKL, seconds: float, rng: random.Random, checkpoint: Path) -> None:
    """Teach the decoder alone to draw from latents as a denoiser makes them: noisy, shifted and stretched a little.

    The encoder stays as it is, so a denoiser trained on its latents still fits.
    """
    pool = as_tensor([random_scene(rng) for _ in range(_POOL)])
    latents = encode(model, pool)
    decoding = torch.nn.ModuleList([model.post_quant_conv, model.decoder]).requires_grad_(True)
    model.decoder.mid_block.attentions.requires_grad_(False)
    stage = Stage("polish", decoding, seconds, 1e-3, checkpoint)
    while stage.progress < 1:
        picked = torch.randint(0, len(pool), (8,))
        clean, pictures = latents[picked], as_floats(pool[picked])
        stretch = 1 + 0.1 * torch.randn(len(clean), 1, 1, 1)
        shift = 0.15 * torch.randn(*clean.shape[:2], 1, 1)
        made = clean * stretch + shift + 0.15 * torch.randn_like(clean)
        with torch.autocast("cpu", torch.bfloat16):
            drawn = model.decode(made).sample.float()
        stage.learn(_drawing_error(drawn, pictures))
        stage.save_now_and_then()


def _drawing_error(drawn: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
    """Error of each pixel, and of each 8x8 block's mean: eyes forgive a soft edge sooner than a wrong colour."""
    error = drawn - pictures
    return error.abs().mean() + error.square().mean() + 4 * functional.avg_pool2d(error, 8).square().mean()


def _some(pool: torch.Tensor, count: int) -> torch.Tensor:
    return pool[torch.randint(0, len(pool), (count,))]


@torch.inference_mode()
def encode(model: AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    """Latents of pictures given as bytes, without sampling."""
    batches = [model.encode(as_floats(batch)).latent_dist.mean for batch in pictures.split(50)]
    return torch.cat(batches).clone()


@torch.no_grad()
def normalise_latents(model: AutoencoderKL, rng: random.Random) -> None:
    """Fold each latent channel's mean and spread into the 1x1 convolutions around it.

    The denoiser then sees zero mean and unit spread in every channel, and the pipeline's scaling factor stays 1.
    """
    latents = encode(model, as_tensor([random_scene(rng) for _ in range(400)]))
    mean, spread = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    channels = len(mean)
    into, out_of = model.quant_conv, model.post_quant_conv
    into.weight[:channels] /= spread[:, None, None, None]
    into.bias[:channels] = (into.bias[:channels] - mean) / spread
    out_of.bias += (out_of.weight[:, :, 0, 0] * mean[None, :]).sum(dim=1)
    out_of.weight *= spread[None, :, None, None]


@torch.inference_mode()
def picture_error(model: AutoencoderKL, rng: random.Random) -> float:
    """Mean absolute error of whole pictures through the autoencoder, in colour steps of 255."""
    pictures = as_tensor([random_scene(rng) for _ in range(50)])
    drawn = model.decode(encode(model, pictures)).sample
    return float(functional.l1_loss(drawn, as_floats(pictures))) * 127.5
