"""Stage two: the text encoders learn what a caption says, before any picture.

They are trained to name shape, colour and background from each of the three outputs that the denoiser is given. With
that done it meets clear conditions from its first step; learning both at once mixes the two colours up for very long.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as functional
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from clock import Stage
from models import TEXT_WIDTH, encode_text
from shapes import COLOURS, SHAPES, Said, random_caption, random_noise_caption, random_scene
from tokens import MAX_TOKENS

_CLASSES = (len(SHAPES) + 1, len(COLOURS) + 1, len(COLOURS) + 1)  # one more each for "left open"


def tokenise(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Token ids, padded to the encoders' length as the pipeline does."""
    encoded = tokenizer(texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
    return encoded.input_ids


def train_text_encoders(
    first: CLIPTextModel,
    second: CLIPTextModelWithProjection,
    tokenizer: CLIPTokenizer,
    seconds: float,
    rng: random.Random,
    checkpoint: Path,
) -> None:
    """Train both encoders with throw-away classifiers on their word states and on the pooled text."""
    heads = torch.nn.ModuleList(torch.nn.Linear(width, sum(_CLASSES)) for width in (TEXT_WIDTH, TEXT_WIDTH, TEXT_WIDTH))
    trained = torch.nn.ModuleList([first, second, heads])
    stage = Stage("words", trained, seconds, 2e-3, checkpoint, weight_decay=1e-3)
    while stage.progress < 1:
        said = [_random_said(rng) for _ in range(128)]
        tokens = tokenise(tokenizer, [one.text for one in said])
        words, pooled = encode_text(first, second, tokens)
        # The states from the end token on have seen the whole caption; their mean stands for it.
        after_end = (tokens == tokenizer.eos_token_id).float()[..., None]
        summary = (words * after_end).sum(dim=1) / after_end.sum(dim=1)
        outputs = (summary[:, :TEXT_WIDTH], summary[:, TEXT_WIDTH:], pooled)
        labels = torch.tensor([_labels(one) for one in said])
        scores = [head(output).split(_CLASSES, dim=-1) for head, output in zip(heads, outputs, strict=True)]
        losses = [functional.cross_entropy(part, labels[:, i]) for parts in scores for i, part in enumerate(parts)]
        # Keep the outputs at the scale of one, where the denoiser's first layers expect them.
        loss = sum(losses) / len(losses) + 0.01 * sum((o.std() - 1) ** 2 for o in outputs)
        stage.learn(loss)
        stage.save_now_and_then()


def _random_said(rng: random.Random) -> Said:
    return random_noise_caption(rng) if rng.random() < 0.05 else random_caption(random_scene(rng), rng)


def _labels(said: Said) -> tuple[int, int, int]:
    names = list(COLOURS)
    return (
        SHAPES.index(said.shape) if said.shape else len(SHAPES),
        names.index(said.colour) if said.colour else len(names),
        names.index(said.background) if said.background else len(names),
    )
