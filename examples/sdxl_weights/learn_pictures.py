"""Stage one: the autoencoder learns to draw flat colours and sharp edges from few numbers."""

from __future__ import annotations

import random

import numpy as np
import torch
import torch.nn.functional as functional
from diffusers import AutoencoderKL

from clock import Stage
from shapes import SIZE, Scene, draw, random_scene

_POOL = 4000  # pictures drawn once and cropped again and again
_CROP = 64


def as_tensor(scenes: list[Scene]) -> torch.Tensor:
    """The scenes' pictures as bytes, channels first."""
    return torch.from_numpy(np.stack([np.asarray(draw(scene)) for scene in scenes])).permute(0, 3, 1, 2).contiguous()


def as_floats(pictures: torch.Tensor) -> torch.Tensor:
    """Bytes to the -1..1 that the autoencoder sees."""
    return pictures.float() / 127.5 - 1


def train_autoencoder(model: AutoencoderKL, seconds: float, rng: random.Random) -> None:
    """Train on crops (the model is fully convolutional), with a little noise on the latents so that near is alike."""
    pool = as_tensor([random_scene(rng) for _ in range(_POOL)])
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], weight_decay=0.0)
    stage = Stage("pictures", seconds)
    while stage.progress < 1:
        for group in optimiser.param_groups:
            group["lr"] = stage.learning_rate(2e-3)
        top, left = (8 * rng.randrange((SIZE - _CROP) // 8 + 1) for _ in range(2))
        picked = torch.randint(0, _POOL, (16,))
        pictures = as_floats(pool[picked, :, top : top + _CROP, left : left + _CROP])
        with torch.autocast("cpu", torch.bfloat16):
            mean = model.encode(pictures).latent_dist.mean
            noisy = mean + 0.05 * mean.detach().std() * torch.randn_like(mean)
            drawn = model.decode(noisy).sample.float()
        error = drawn - pictures
        loss = error.abs().mean() + error.square().mean() + 1e-4 * mean.float().square().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        stage.stepped(loss.item())


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
