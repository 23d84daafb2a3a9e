"""The parts of the tiny pipeline, untrained: the same classes as SDXL's, a thousandth of the size.

Owns every width and depth. Training lives in the learn_*.py files, files on disk in export.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from shapes import SIZE
from tokens import MAX_TOKENS

LATENT_CHANNELS = 4
LATENT_SIDE = SIZE // 8  # four autoencoder blocks halve the side three times
TEXT_WIDTH = 64
NOISE: dict[str, Any] = {
    # Almost no signal is left at the last step, and the model predicts velocity: with SDXL's own schedule the
    # background's mean colour shines through all the noise in training, and pictures then come out in wrong colours.
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "v_prediction",
    "num_train_timesteps": 1000,
}


def new_autoencoder() -> AutoencoderKL:
    """Pictures to latents of an eighth of their side and back. Attention is kept out, so crops teach it wholes."""
    model = AutoencoderKL(
        block_out_channels=(16, 32, 48, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=SIZE,
        scaling_factor=1.0,
        force_upcast=False,
    )
    for part in (model.encoder, model.decoder):
        attention = part.mid_block.attentions[0]  # old releases cannot leave it out: it adds zero instead
        torch.nn.init.zeros_(attention.to_out[0].weight)
        torch.nn.init.zeros_(attention.to_out[0].bias)
        attention.requires_grad_(False)
    return model


def new_text_encoders(tokenizer: CLIPTokenizer) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """SDXL's pair of text encoders, two layers each."""

    def config(activation: str) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=TEXT_WIDTH,
            hidden_act=activation,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )

    return CLIPTextModel(config("quick_gelu")), CLIPTextModelWithProjection(config("gelu"))


def new_denoiser() -> UNet2DConditionModel:
    """The UNet, conditioned as SDXL's: cross-attention on the words, pooled text and picture sizes beside the time."""
    time_ids_width = 32
    return UNet2DConditionModel(
        sample_size=LATENT_SIDE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 1),
        use_linear_projection=True,
        norm_num_groups=8,
        cross_attention_dim=2 * TEXT_WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=time_ids_width,
        projection_class_embeddings_input_dim=6 * time_ids_width + TEXT_WIDTH,
    )


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(folder)


def encode_text(
    first: CLIPTextModel, second: CLIPTextModelWithProjection, tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What SDXL's pipeline takes from its encoders: both next-to-last layers side by side, and the pooled text."""
    words = first(tokens, output_hidden_states=True).hidden_states[-2]
    output = second(tokens, output_hidden_states=True)
    return torch.cat([words, output.hidden_states[-2]], dim=-1), output.text_embeds
