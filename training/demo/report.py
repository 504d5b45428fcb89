"""What a training run shows of itself: a contact sheet of the averaged weights, and how often the measures hold."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tests.semantic.prompts import CASES
from training.demo.contact import contact_sheet
from training.demo.data import Scenes
from training.demo.distillation import copy_shipped_models
from training.demo.measures import judge, shuffled_rates
from training.demo.sampler import generate
from training.demo.tokenizer import PromptTokenizer
from training.demo.train_state import TrainState
from training.demo.vae import Autoencoder
from training.demo.world.render import render

PROMPTS = (
    "a beautiful sunset over mountains",
    "sunset over mountains, vibrant colors",
    "a futuristic city at night",
    "a beautiful landscape with mountains and lakes",
    "abstract geometric patterns, colorful",
    "a peaceful forest scene",
    "an alien landscape",
    "a cyberpunk street scene",
    "a bustling city street",
    "astronaut riding a horse on mars",
    "a red house on the left",
    "the moon on the right above the sea at night",
    "a watercolor of a lake at sunrise",
    "pixel art of a castle on a hill",
    "a storm over the sea with lightning",
    "snowy mountains, a blue balloon on the left",
)
# (height, width, steps, guidance)
RUNS = (
    (256, 256, 4, 1.0),
    (256, 384, 4, 1.0),
    (384, 256, 4, 1.0),
    (512, 512, 4, 1.0),
    (256, 256, 20, 1.0),
    (256, 256, 20, 2.5),
)


def to_pixels(images: Tensor) -> list[npt.NDArray[np.uint8]]:
    """Turn images [n, 3, H, W] in 0..1 into n 8-bit images [H, W, 3]."""
    bytes_ = (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return list(bytes_)


def report(
    state: TrainState,
    stage: str,
    out: Path,
    device: torch.device,
    scenes: Scenes,
    generator: torch.Generator,
    log: Callable[[str], None],
    *,
    tiny: bool,
) -> dict[str, Any]:
    """Write the contact sheets of a stage, and measure what its images show.

    Args:
        state: What was trained; its averaged weights are used, rounded to bfloat16.
        stage: Begins the sheets' names; of ``vae`` only reconstructions are shown.
        out: Where the sheets are written.
        device: Where to generate.
        scenes: The source of scenes to reconstruct.
        generator: Of the renderer's random numbers.
        log: Prints a line.
        tiny: Whether to generate few and small images, to try everything out.

    Returns:
        Figures for metrics.json.
    """
    if stage == "vae":
        _show_vae(state.vae, out, scenes, generator, tiny)
        return {}
    text, transformer = copy_shipped_models(state)
    tokenizer = PromptTokenizer()

    def generate_all(
        prompts: list[str], height: int, width: int, steps: int, guidance: float, seed: int
    ) -> list[npt.NDArray[np.uint8]]:
        found = []
        negative = torch.from_numpy(tokenizer([" "])).long().to(device)
        for start in range(0, len(prompts), 16):
            tokens = torch.from_numpy(tokenizer(prompts[start : start + 16])).long().to(device)
            found += to_pixels(
                generate(
                    text,
                    transformer,
                    state.vae,
                    tokens,
                    height,
                    width,
                    steps=steps,
                    seed=seed + start,
                    guidance=guidance,
                    negative=negative.expand(tokens.shape[0], -1),
                )
            )
        return found

    begun = time.perf_counter()
    images, captions = [], []
    for height, width, steps, guidance in ((64, 64, 2, 1.0), (64, 96, 2, 4.0)) if tiny else RUNS:
        images += generate_all(list(PROMPTS), height, width, steps, guidance, 11)
        captions += [f"{width}x{height}, {steps} steps: {prompt}" for prompt in PROMPTS]
    contact_sheet(images, captions, 8, 224).save(out / f"{stage}-sheet.webp", quality=88)
    log(f"sheet in {time.perf_counter() - begun:.0f} s")
    side = 64 if tiny else 256
    seeds = (1,) if tiny else (1, 2)
    cases = [case for case in CASES for _ in seeds]
    generated: list[npt.NDArray[np.uint8]] = []
    by_seed = [generate_all([case.prompt for case in CASES], side, side, 4, 1.0, 100 * seed) for seed in seeds]
    for group in zip(*by_seed, strict=True):
        generated += group
    verdicts = [judge(case.checks, image) for case, image in zip(cases, generated, strict=True)]
    failed = [not verdict.holds for verdict in verdicts]
    labels = [
        case.prompt + (f" [{verdict}]" if not verdict.holds else "")
        for case, verdict in zip(cases, verdicts, strict=True)
    ]
    contact_sheet(generated, labels, 12, 160, failed).save(out / f"{stage}-measures.webp", quality=85)
    rate, each = shuffled_rates(cases, generated)
    held = 1 - sum(failed) / len(failed)
    log(f"measures hold in {held:.1%}, on shuffled prompts in {rate:.1%}")
    return {
        "measures_hold": round(held, 4),
        "shuffled_hold": round(rate, 4),
        "shuffled_each": each,
        "failed": sorted({case.prompt for case, bad in zip(cases, failed, strict=True) if bad}),
    }


def _show_vae(vae: Autoencoder, out: Path, scenes: Scenes, generator: torch.Generator, tiny: bool) -> None:
    side = 64 if tiny else 256
    images = render(scenes.take(16)[0], side, side, generator)
    with torch.no_grad():
        decoded = vae.decode(vae.encode(images * 2 - 1)[0]) / 2 + 0.5
    both = [image for pair in zip(to_pixels(images), to_pixels(decoded), strict=True) for image in pair]
    contact_sheet(both, ["rendered", "decoded"] * 16, 8, 224).save(out / "vae-sheet.webp", quality=90)
