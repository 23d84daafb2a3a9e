"""Train the tiny SDXL pipeline of the examples from nothing, on drawn shapes; an hour and a quarter of one CPU core.

    uv venv && uv pip install torch "diffusers>=0.42,<0.43" "transformers>=5,<6" accelerate pillow
    python examples/sdxl_weights/train.py --work /tmp/sdxl-weights

Each stage takes its minutes of CPU time; a second call with the same --work goes on where the first was interrupted.
Writes ../weights (a Hugging Face cache); look at the result with check.py.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch

from export import assemble, export_to_cache
from learn_denoising import Average, Examples, train_denoiser
from learn_pictures import normalise_latents, picture_error, polish_decoder, train_autoencoder
from learn_words import train_text_encoders
from models import load_tokenizer, new_autoencoder, new_denoiser, new_text_encoders
from tokens import write_tokenizer

REPOSITORY = "sd-community/sdxl-flash"  # the name that the example app asks for; the weights are not that model's
HUB = Path(__file__).resolve().parent.parent / "weights" / "hub"


def main() -> None:
    options = _options()
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    rng = random.Random(options.seed)

    autoencoder = new_autoencoder()
    if not _loaded(work / "pictures.pt", autoencoder):
        train_autoencoder(autoencoder, 60 * options.pictures_minutes, rng, work / "pictures.checkpoint")
        normalise_latents(autoencoder.eval(), rng)
        print(f"pictures: mean error {picture_error(autoencoder, rng):.1f} of 255", flush=True)
        torch.save(autoencoder.state_dict(), work / "pictures.pt")
    autoencoder.eval().requires_grad_(False)

    write_tokenizer(work / "tokenizer")
    tokenizer = load_tokenizer(work / "tokenizer")
    encoders = new_text_encoders(tokenizer)
    both = torch.nn.ModuleList(encoders)
    if not _loaded(work / "words.pt", both):
        train_text_encoders(*encoders, tokenizer, 60 * options.words_minutes, rng, work / "words.checkpoint")
        torch.save(both.state_dict(), work / "words.pt")
    both.eval().requires_grad_(False)

    denoiser = new_denoiser()

    def export(average: Average) -> None:
        exported = new_denoiser()
        average.copy_to(exported)
        export_to_cache(assemble(autoencoder, encoders, tokenizer, exported), options.hub, REPOSITORY)

    examples = Examples.make(autoencoder, encoders, tokenizer, rng, work / "examples.pt")
    average = train_denoiser(denoiser, examples, 60 * options.denoising_minutes, work / "denoising.checkpoint", export)

    polish_decoder(autoencoder, 60 * options.polish_minutes, rng, work / "polish.checkpoint")
    export(average)


def _loaded(path: Path, module: torch.nn.Module) -> bool:
    """Load a finished stage's weights, if they are there."""
    if not path.exists():
        return False
    module.load_state_dict(torch.load(path, weights_only=True))
    return True


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for finished stages and checkpoints")
    parser.add_argument("--hub", type=Path, default=HUB, help="Hugging Face cache to write (default: %(default)s)")
    parser.add_argument("--pictures-minutes", type=float, default=20)
    parser.add_argument("--words-minutes", type=float, default=2)
    parser.add_argument("--denoising-minutes", type=float, default=46)
    parser.add_argument("--polish-minutes", type=float, default=7)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
