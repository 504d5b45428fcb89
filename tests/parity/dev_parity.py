"""Comparing the engine's FLUX.2-dev with diffusers' ``Flux2Pipeline``: same checkpoint, same noise, float32.

The two sides and their environments are those of :mod:`tests.parity.diffusers_parity`:

    python -m tests.parity.dev_parity generate FOLDER
    TORCH/bin/pip install torchvision    # of the same build as torch: its PixtralProcessor asks for it
    TORCH/bin/python -m tests.parity.dev_parity compare FOLDER

``generate`` writes a random checkpoint in FLUX.2-dev's layout, small in every dimension; then, for each case, the
noise, the prompt's embedding and the image. ``compare`` prints for each the PSNR of both and exits with 1 below 60 dB.
"""

import argparse
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
    add_fast_path,
    comparison,
    generate_case,
    open_engine,
    psnr,
    reference,
)

# (prompt, width, height, steps, guidance, sizes of the reference images)
CASES: tuple[tuple[str, int, int, int, float, tuple[Size, ...]], ...] = (
    ("a red cat at night", 128, 128, 50, 4.0, ()),
    ("ein altes Haus am See, 猫, Straßenbahn", 256, 256, 4, 4.0, ()),
    ("the sea, a very long prompt that is cut at the end of the sequence " * 4, 128, 128, 8, 3.5, ()),
    ("a [IMG] in the city", 112, 272, 8, 2.5, ()),
    ("x", 128, 128, 4, 1.0, ()),
    ("x", 128, 128, 4, 0.0, ()),
    ("make it night", 128, 128, 8, 4.0, ((128, 128),)),
    ("the house of the first in the style of the second", 128, 256, 8, 4.0, ((256, 128), (96, 64))),
)


def generate(folder: Path, fast_path: bool) -> None:
    """Write the engine's side into ``folder``: the checkpoint, noise, embeddings and images."""
    device = open_engine(fast_path)
    from mflux_api.engine.sampling.pipeline import Pipeline
    from mflux_api.engine.weights.components import load_components
    from tests.support.dev_checkpoint import write_dev_checkpoint

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "dev"
    if not path.is_dir():
        write_dev_checkpoint(path)
    pipeline = Pipeline(load_components(path), device)
    cases = []
    for number, (prompt, width, height, steps, guidance, sizes) in enumerate(CASES):
        generate_case(
            pipeline,
            folder,
            number,
            prompt=prompt,
            width=width,
            height=height,
            steps=steps,
            guidance=guidance,
            references=sizes,
        )
        np.save(folder / f"{number}.embedding.npy", np.array(pipeline.prompt_cache.get(prompt)))
        cases.append(
            {
                "prompt": prompt,
                "width": width,
                "height": height,
                "steps": steps,
                "guidance": guidance,
                "references": sizes,
            }
        )
    (folder / "cases.json").write_text(json.dumps({"checkpoint": str(path), "cases": cases}, indent=2))


def compare(folder: Path) -> bool:
    """Run diffusers' side and print a line per case; return whether all reach the bound."""
    import torch  # type: ignore[import-not-found, unused-ignore]
    from PIL import Image

    written = json.loads((folder / "cases.json").read_text())
    path = Path(written["checkpoint"])
    pipeline = _load_diffusers(path)
    index = json.loads((path / "model_index.json").read_text())
    text = {
        "text_encoder_out_layers": tuple(index["text_encoder_out_layers"]),
        "max_sequence_length": index["max_sequence_length"],
    }
    worst = math.inf
    for number, case in enumerate(written["cases"]):
        embedding, _ = pipeline.encode_prompt(case["prompt"], **text)
        images = [Image.fromarray(reference(width, height, i)) for i, (width, height) in enumerate(case["references"])]
        image = pipeline(
            image=images or None,
            prompt=case["prompt"],
            height=case["height"],
            width=case["width"],
            num_inference_steps=case["steps"],
            guidance_scale=case["guidance"],
            latents=torch.from_numpy(np.load(folder / f"{number}.noise.npy")),
            output_type="np",
            **text,
        ).images[0]
        theirs: npt.NDArray[np.uint8] = (image * 255).round().astype(np.uint8)
        ours = np.load(folder / f"{number}.pixels.npy")
        of_text = _signal(np.load(folder / f"{number}.embedding.npy"), embedding.detach().numpy())
        worst = min(worst, psnr(ours, theirs), of_text)
        print(f"{comparison(case, ours, theirs)}; text {of_text:6.1f} dB")  # noqa: T201 - a script's result
    return worst >= MIN_DECIBELS


def _signal(ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32]) -> float:
    """Return the embedding's signal over the difference, in dB."""
    error = float(np.mean((ours.astype(np.float64) - theirs) ** 2))
    return math.inf if error == 0 else 10 * math.log10(float(np.mean(theirs.astype(np.float64) ** 2)) / error)


def _load_diffusers(path: Path) -> Any:
    import torch
    from diffusers import Flux2Pipeline  # type: ignore[import-not-found, unused-ignore]

    pipeline = Flux2Pipeline.from_pretrained(str(path), dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def main() -> int:
    """Run one side; return the exit status."""
    parser = argparse.ArgumentParser(description="Compare the engine's FLUX.2-dev with diffusers'.")
    parser.add_argument("side", choices=["generate", "compare"])
    parser.add_argument("folder", type=Path)
    add_fast_path(parser)
    arguments = parser.parse_args()
    if arguments.side == "generate":
        generate(arguments.folder.resolve(), arguments.fast_path)
        return 0
    return 0 if compare(arguments.folder) else 1


if __name__ == "__main__":
    sys.exit(main())
