"""Stage three: the denoiser learns to make latents from noise and words. Takes most of the time; resumable."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as functional
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from clock import Stage
from learn_pictures import as_tensor, encode
from learn_words import tokenise
from models import NOISE, encode_text
from shapes import SIZE, random_caption, random_noise_caption, random_scene

_EXAMPLES = 20_000
_BATCH = 32
_WITHOUT_WORDS = 0.1  # share of examples seen with no text at all, for classifier-free guidance
# The example app asks for a guidance of 3, at which so small a model overshoots its colours; about 1.5 suits it. So in
# the last part of the time the answer to words is taught to lie only so far from the answer to none that 3 does what
# that would have done.
_ASKED_GUIDANCE, _BEST_GUIDANCE = 3.0, 1.4
_TAME_FROM = 0.65  # share of the time


class Examples:
    """Latents and their captions' encodings, made once: both encoders are finished before this stage."""

    def __init__(self, latents: torch.Tensor, words: torch.Tensor, pooled: torch.Tensor) -> None:
        self.latents, self.words, self.pooled = latents, words, pooled

    @classmethod
    @torch.inference_mode()
    def make(
        cls,
        autoencoder: AutoencoderKL,
        encoders: tuple[CLIPTextModel, CLIPTextModelWithProjection],
        tokenizer: CLIPTokenizer,
        rng: random.Random,
        kept: Path,
    ) -> Examples:
        """Draw and encode them, or read those that an earlier call left in `kept`: it takes minutes."""
        if kept.exists():
            return cls(*torch.load(kept, weights_only=True))
        scenes = [random_scene(rng) for _ in range(_EXAMPLES)]
        captions = [
            random_noise_caption(rng).text if rng.random() < 0.02 else random_caption(scene, rng).text
            for scene in scenes
        ]
        chunks = range(0, _EXAMPLES, 500)
        latents = torch.cat([encode(autoencoder, as_tensor(scenes[i : i + 500])) for i in chunks])
        encoded = [encode_text(*encoders, tokenise(tokenizer, captions[i : i + 500])) for i in chunks]
        words = torch.cat([words.to(torch.bfloat16) for words, _ in encoded])
        pooled = torch.cat([pooled for _, pooled in encoded])
        torch.save((latents, words, pooled), kept)
        return cls(latents, words, pooled)

    def batch(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents, words, pooled text, and which were told their words: the others got the zeros of "no prompt"."""
        picked = torch.randint(0, len(self.latents), (_BATCH,))
        told = (torch.rand(_BATCH) >= _WITHOUT_WORDS).float()
        words = self.words[picked].float() * told[:, None, None]
        return self.latents[picked], words, self.pooled[picked] * told[:, None], told


class Average:
    """A running average of the weights, which draws better than the weights of any one step."""

    def __init__(self, model: torch.nn.Module, values: list[torch.Tensor] | None = None) -> None:
        self._weights = [p.detach() for p in model.parameters()]
        self.values = values or [weight.clone() for weight in self._weights]

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Move towards the current weights; faster in the first steps, which are worth forgetting."""
        keep = min(0.998, (step + 1) / (step + 10))
        torch._foreach_mul_(self.values, keep)
        torch._foreach_add_(self.values, self._weights, alpha=1 - keep)

    @torch.no_grad()
    def copy_to(self, model: torch.nn.Module) -> None:
        for parameter, value in zip(model.parameters(), self.values, strict=True):
            parameter.copy_(value)


def train_denoiser(
    model: UNet2DConditionModel,
    examples: Examples,
    seconds: float,
    checkpoint: Path,
    export: Callable[[Average], None],
) -> Average:
    """Train until the time is up and return the weights to use; export them whenever a checkpoint is saved."""
    stage = Stage("denoising", model, seconds, 1e-3, checkpoint, weight_decay=1e-4)
    average = Average(model, stage.extra.get("average"))
    stage.extra["average"] = average.values
    noise = DDPMScheduler(**NOISE)
    while stage.progress < 1:
        latents, words, pooled, told = examples.batch()
        times = torch.randint(0, 1000, (_BATCH,))
        added = torch.randn_like(latents)
        target = noise.get_velocity(latents, added, times)
        noisy = noise.add_noise(latents, added, times)
        if stage.progress > _TAME_FROM:
            with torch.no_grad():
                wordless = _predict(model, noisy, times, torch.zeros_like(words), torch.zeros_like(pooled))
            weight = 1 - (1 - _BEST_GUIDANCE / _ASKED_GUIDANCE) * told[:, None, None, None]
            target = weight * target + (1 - weight) * wordless
        predicted = _predict(model, noisy, times, words, pooled)
        stage.learn(functional.mse_loss(predicted, target))
        average.follow(stage.steps)
        if stage.save_now_and_then():
            export(average)
    return average


def _predict(
    model: UNet2DConditionModel, noisy: torch.Tensor, times: torch.Tensor, words: torch.Tensor, pooled: torch.Tensor
) -> torch.Tensor:
    """The model's velocity for noisy latents, conditioned as the pipeline does."""
    time_ids = torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]] * len(noisy), dtype=torch.float32)
    conditions = {"text_embeds": pooled, "time_ids": time_ids}
    with torch.autocast("cpu", torch.bfloat16):
        predicted = model(noisy, times, encoder_hidden_states=words, added_cond_kwargs=conditions).sample
    return predicted.float()
