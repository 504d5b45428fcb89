"""Comparing the engine's images with diffusers' ``Flux2KleinPipeline``: same checkpoint, same noise, float32.

MLX and torch need not share an environment, so there are two sides and a folder between them. From the repository:

    python -m tests.parity.diffusers_parity generate FOLDER
    python -m venv TORCH && TORCH/bin/pip install torch diffusers transformers accelerate safetensors numpy pillow
    TORCH/bin/python -m tests.parity.diffusers_parity compare FOLDER

``generate`` runs in the project's environment, with ``--fast-path`` as the service does by default and else with
mflux's own modules. It writes random checkpoints, distilled and base (or takes one with ``--checkpoint``, for instance
a downloaded Klein), then each case's noise and the engine's image. ``compare`` loads the same checkpoints with
diffusers in float32 on the CPU, prints a PSNR per case and exits with 1 below 60 dB.

diffusers takes no negative prompt as text: it is given as embeddings, made by its own ``encode_prompt``.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.parity.comparison import (
    MIN_DECIBELS,
    Size,
    comparison,
    generate_case,
    open_engine,
    psnr,
    reference,
    run_side,
)

# (checkpoint, prompt, negative prompt, width, height, steps, guidance, sizes of the reference images)
CASES: tuple[tuple[str, str, str | None, int, int, int, float, tuple[Size, ...]], ...] = (
    ("distilled", "a red cat at night", None, 128, 128, 4, 1.0, ()),
    ("distilled", "ein altes Haus am See, 猫, Straßenbahn", None, 256, 256, 4, 1.0, ()),
    (
        "distilled",
        "the sea, a very long prompt that is cut at the end of the sequence " * 3,
        None,
        128,
        128,
        8,
        1.0,
        (),
    ),
    ("distilled", "a blue tree in the city", None, 256, 128, 4, 1.0, ()),
    ("distilled", "a blue tree in the city", None, 112, 272, 8, 1.0, ()),
    ("distilled", "x", None, 128, 128, 1, 1.0, ()),
    ("base", "a portrait of a dog", "night", 128, 128, 4, 4.0, ()),
    ("base", "a portrait of a dog", " ", 256, 256, 8, 4.0, ()),
    ("base", "a portrait of a dog", "", 128, 256, 4, 4.0, ()),
    ("base", "a portrait of a dog", None, 128, 128, 4, 1.0, ()),
    ("distilled", "make it night", None, 128, 128, 4, 1.0, ((128, 128),)),
    ("distilled", "turn this into a watercolor painting", None, 256, 128, 4, 1.0, ((192, 256),)),
    ("distilled", "the house of the first in the style of the second", None, 128, 256, 8, 1.0, ((256, 128), (96, 64))),
    ("distilled", "add snow", None, 128, 128, 4, 1.0, ((64, 64), (128, 64), (64, 128), (112, 80))),
    ("base", "make the house blue", "night", 128, 128, 4, 4.0, ((128, 160), (64, 64))),
)


def _kind_of(checkpoint: Path) -> str:
    index = json.loads((checkpoint / "model_index.json").read_text("utf-8"))
    return "distilled" if index.get("is_distilled") else "base"


def generate(folder: Path, checkpoint: Path | None, fast_path: bool) -> None:
    """Write the engine's side into ``folder``: checkpoints, noise and images."""
    device = open_engine(fast_path)
    import attrs

    from mflux_api.engine.demo.random_checkpoint import CheckpointShape, write_random_checkpoint
    from mflux_api.engine.sampling.pipeline import Pipeline
    from mflux_api.engine.weights.components import load_components

    folder.mkdir(parents=True, exist_ok=True)
    pipelines: dict[str, Pipeline] = {}
    cases = []
    own = None if checkpoint is None else _kind_of(checkpoint)
    for number, (kind, prompt, negative, width, height, steps, guidance, sizes) in enumerate(CASES):
        # diffusers ignores guidance on a distilled checkpoint; our catalog, not the checkpoint, decides that here.
        if own == "distilled" and kind != own:
            continue
        if checkpoint is None:
            shape = attrs.evolve(CheckpointShape(), is_distilled=kind == "distilled")
            path = write_random_checkpoint(folder / kind, shape, dtype="float32")
        else:
            path = checkpoint
        if kind not in pipelines:
            pipelines[kind] = Pipeline(load_components(path), device)
        generate_case(
            pipelines[kind],
            folder,
            number,
            prompt=prompt,
            negative_prompt=negative,
            width=width,
            height=height,
            steps=steps,
            guidance=guidance,
            references=sizes,
        )
        cases.append(
            {
                "number": number,
                "checkpoint": str(path),
                "prompt": prompt,
                "negative": negative,
                "width": width,
                "height": height,
                "steps": steps,
                "guidance": guidance,
                "references": sizes,
            }
        )
    (folder / "cases.json").write_text(json.dumps(cases, indent=2))


def compare(folder: Path) -> bool:
    """Run diffusers' side and print a line per case; return whether all reach the bound."""
    worst = math.inf
    pipelines: dict[str, Any] = {}
    for case in json.loads((folder / "cases.json").read_text()):
        number, path = case["number"], case["checkpoint"]
        if path not in pipelines:
            pipelines[path] = _load_diffusers(path)
        theirs = _diffusers_image(pipelines[path], path, case, np.load(folder / f"{number}.noise.npy"))
        ours = np.load(folder / f"{number}.pixels.npy")
        worst = min(worst, psnr(ours, theirs))
        print(comparison(case, ours, theirs))  # noqa: T201 - a script's result
    return worst >= MIN_DECIBELS


def _load_diffusers(path: str) -> Any:
    import torch  # type: ignore[import-not-found, unused-ignore]
    from diffusers import Flux2KleinPipeline  # type: ignore[import-not-found, unused-ignore]

    pipeline = Flux2KleinPipeline.from_pretrained(path, dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _diffusers_image(
    pipeline: Any, path: str, case: dict[str, Any], noise: npt.NDArray[np.float32]
) -> npt.NDArray[np.uint8]:
    import torch
    from PIL import Image

    index = json.loads((Path(path) / "model_index.json").read_text())
    # Literals: this side's environment need not have the engine's requirements.
    text = {
        "text_encoder_out_layers": tuple(index.get("text_encoder_out_layers", (9, 18, 27))),
        "max_sequence_length": index.get("max_sequence_length", 512),
    }
    negative = {}
    if case["negative"] is not None:
        negative["negative_prompt_embeds"] = pipeline.encode_prompt(case["negative"], **text)[0]
    images = [Image.fromarray(reference(width, height, i)) for i, (width, height) in enumerate(case["references"])]
    image = pipeline(
        image=images or None,
        prompt=case["prompt"],
        height=case["height"],
        width=case["width"],
        num_inference_steps=case["steps"],
        guidance_scale=case["guidance"],
        latents=torch.from_numpy(noise),
        output_type="np",
        **text,
        **negative,
    ).images[0]
    pixels: npt.NDArray[np.uint8] = (image * 255).round().astype(np.uint8)
    return pixels


if __name__ == "__main__":
    sys.exit(run_side("Compare the engine's images with diffusers'.", generate, compare))
