"""How well do the weights follow their prompts? Renders some as the example app does and judges the pixels.

    python examples/sdxl_weights/check.py [--prompts 90] [--sheet /tmp/sheet.png]

Needs the packages that train.py needs; loads ../weights through from_pretrained, without a network.
"""

from __future__ import annotations

import argparse
import os
import random
from pathlib import Path

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=90)
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="a Hugging Face cache (HF_HOME)")
    parser.add_argument("--sheet", type=Path, help="write all pictures onto one")
    options = parser.parse_args()
    os.environ |= {"HF_HOME": str(options.weights.resolve()), "HF_HUB_OFFLINE": "1"}  # read when diffusers is imported

    import torch
    from diffusers import DPMSolverSinglestepScheduler, StableDiffusionXLPipeline
    from PIL import Image

    from judge import look
    from shapes import COLOURS, SHAPES, SIZE

    pipe = StableDiffusionXLPipeline.from_pretrained("sd-community/sdxl-flash", torch_dtype=torch.float32)
    pipe.scheduler = DPMSolverSinglestepScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    pipe.set_progress_bar_config(disable=True)

    rng = random.Random(1)
    right = {"shape": 0, "colour": 0, "background": 0, "all": 0}
    sheet = Image.new("RGB", (10 * SIZE, -(-options.prompts // 10) * SIZE))
    for number in range(options.prompts):
        shape = SHAPES[number % len(SHAPES)]
        colour, background = rng.sample(list(COLOURS), 2)
        prompt = f"a {colour} {shape} on a {background} background"
        noise = torch.Generator().manual_seed(number)
        picture = pipe(prompt, num_inference_steps=7, guidance_scale=3, generator=noise).images[0]
        sheet.paste(picture, (number % 10 * SIZE, number // 10 * SIZE))
        seen = look(picture)
        hits = {
            "shape": seen.shape == shape,
            "colour": seen.colour == colour,
            "background": seen.background == background,
        }
        for name, hit in hits.items():
            right[name] += hit
        right["all"] += all(hits.values())
        if not all(hits.values()):
            print(f"{prompt}: shows a {seen.colour} {seen.shape} on {seen.background}")
    if options.sheet:
        sheet.save(options.sheet)
    print(", ".join(f"{name} right in {count} of {options.prompts}" for name, count in right.items()))


if __name__ == "__main__":
    main()
