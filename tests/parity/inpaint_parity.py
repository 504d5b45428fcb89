"""Comparing inpainted images with diffusers' ``Flux2KleinInpaintPipeline``: same checkpoint, same noise, float32.

The two sides and the folder between them are those of :mod:`tests.parity.diffusers_parity`:

    python -m tests.parity.inpaint_parity generate FOLDER
    TORCH/bin/python -m tests.parity.inpaint_parity compare FOLDER      # diffusers 0.42 or newer

Without a crop diffusers composites nothing: our blurred mask is white there, so that all that is decoded is compared.
With one both composite through the mask. Two things of diffusers are replaced. It takes given latents for pure noise
at every strength: so the noise is put where it draws its own. And its ``Flux2ImageProcessor`` cuts the middle out of
the generated image where the crop's place is smaller (0.42.1, ``_resize_and_crop`` scales nothing): so the overlay is
applied by the class that it is derived from, as the other inpainting pipelines do.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from tests.parity.comparison import MIN_DECIBELS, Size, comparison, open_engine, psnr, reference, run_side, write_case

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels."""


class Case(NamedTuple):
    """One image of both sides; no class of attrs, which diffusers' side need not have."""

    prompt: str
    strength: float
    white: tuple[Box, ...]
    """What of the mask is white."""
    kind: str = "distilled"
    width: int = 128
    height: int = 128
    steps: int = 4
    guidance: float = 1.0
    soft: int = 0
    """Pixels over which its edges become black."""
    reference: Size | None = None
    """Size of a second reference; the source is the first."""
    padding: int | None = None
    """With a crop: how many pixels around the mask come with it."""
    box: Box | None = None
    """With a crop: its place, as diffusers chooses it."""


CASES = (
    Case(prompt="a red cat at night", strength=1.0, white=((32, 32, 96, 96),)),
    Case(prompt="the sea", strength=0.5, white=((64, 0, 128, 128),)),
    Case(
        prompt="a blue tree in the city", width=256, steps=8, strength=0.75, white=((10, 20, 77, 90), (150, 3, 201, 99))
    ),
    Case(prompt="a portrait of a dog", height=256, strength=0.75, white=((0, 100, 128, 203),), reference=(192, 256)),
    Case(prompt="a house in the style of the second", strength=1.0, white=((40, 8, 120, 88),), reference=(96, 64)),
    Case(prompt="x", steps=1, strength=1.0, white=((7, 7, 57, 121),)),
    Case(kind="base", prompt="a dog", steps=8, guidance=4.0, strength=0.8, white=((32, 32, 96, 96),), soft=16),
    Case(kind="base", prompt="snow", guidance=4.0, strength=0.5, white=((0, 0, 128, 64),), reference=(64, 64)),
    Case(
        prompt="a red cat",
        width=256,
        height=256,
        strength=0.75,
        white=((100, 80, 140, 120),),
        padding=12,
        box=(88, 68, 152, 132),
    ),
    Case(
        prompt="a red cat",
        width=256,
        height=128,
        strength=1.0,
        white=((30, 30, 90, 70),),
        soft=8,
        padding=8,
        reference=(128, 64),
        box=(0, 14, 144, 86),
    ),
)


def mask_of(case: Case) -> npt.NDArray[np.uint8]:
    """Return a case's mask, one byte a pixel."""
    rows, columns = np.mgrid[0 : case.height, 0 : case.width]
    levels = np.zeros((case.height, case.width))
    for left, top, right, bottom in case.white:
        outside = np.maximum.reduce([left - columns, columns - right + 1, top - rows, rows - bottom + 1, 0 * rows])
        levels = np.maximum(levels, np.clip(255 * (1 - outside / (case.soft + 1)), 0, 255))
    return levels.round().astype(np.uint8)


def generate(folder: Path, checkpoint: Path | None, fast_path: bool) -> None:
    """Write the engine's side into ``folder``: checkpoints, noise and images."""
    device = open_engine(fast_path)
    import attrs

    from mflux_api.engine.demo.random_checkpoint import CheckpointShape, write_random_checkpoint
    from mflux_api.engine.sampling.pipeline import Pipeline
    from mflux_api.engine.weights.components import load_components

    folder.mkdir(parents=True, exist_ok=True)
    pipelines: dict[str, Pipeline] = {}
    paths: dict[str, str] = {}
    for number, case in enumerate(CASES):
        if case.kind not in pipelines:
            shape = attrs.evolve(CheckpointShape(), is_distilled=case.kind == "distilled")
            path = checkpoint or write_random_checkpoint(folder / case.kind, shape, dtype="float32")
            pipelines[case.kind], paths[case.kind] = Pipeline(load_components(path), device), str(path)
        _generate_case(pipelines[case.kind], folder, number, case)
    (folder / "checkpoints.json").write_text(json.dumps(paths, indent=2))


def _generate_case(pipeline: Any, folder: Path, number: int, case: Case) -> None:
    from mflux_api.images.inpainting import InpaintingInputs
    from mflux_api.images.rgb import RGBImage

    def rgb(image: Image.Image) -> RGBImage:
        return RGBImage(*image.size, image.tobytes())

    source, mask = Image.fromarray(reference(case.width, case.height, 0)), Image.fromarray(mask_of(case))
    left, top, right, bottom = case.box or (0, 0, *source.size)
    start, latent_mask = (
        image.crop((left, top, right, bottom)).resize(source.size, Image.Resampling.LANCZOS) for image in (source, mask)
    )
    second = [] if case.reference is None else [Image.fromarray(reference(*case.reference, 1))]
    write_case(
        pipeline,
        folder,
        number,
        prompt=case.prompt,
        negative_prompt="",
        width=case.width,
        height=case.height,
        steps=case.steps,
        guidance=case.guidance,
        references=tuple(rgb(image) for image in (start, *second)),
        start=rgb(start),
        strength=case.strength,
        inpainting=InpaintingInputs(
            mask=latent_mask.tobytes(),
            overlay=rgb(source),
            blurred_mask=b"\xff" * (case.width * case.height) if case.padding is None else mask.tobytes(),
            box=(left, top, right - left, bottom - top),
        ),
    )


def compare(folder: Path) -> bool:
    """Run diffusers' side and print a line per case; return whether all reach the bound."""
    worst = math.inf
    paths = json.loads((folder / "checkpoints.json").read_text())
    pipelines: dict[str, Any] = {}
    for number, case in enumerate(CASES):
        if case.kind not in pipelines:
            pipelines[case.kind] = _load_diffusers(paths[case.kind])
        noise, ours = np.load(folder / f"{number}.noise.npy"), np.load(folder / f"{number}.pixels.npy")
        theirs = _diffusers_image(pipelines[case.kind], paths[case.kind], case, noise)
        worst = min(worst, psnr(ours, theirs))
        shown = case._asdict() | {"references": [None] if case.reference is None else [None, case.reference]}
        kind = f"strength {case.strength}" + ("" if case.padding is None else ", crop")
        print(f"{comparison(shown, ours, theirs)}, {kind}")  # noqa: T201 - a script's result
    return worst >= MIN_DECIBELS


def _load_diffusers(path: str) -> Any:
    import torch  # type: ignore[import-not-found, unused-ignore]
    from diffusers import (  # type: ignore[import-not-found, unused-ignore]
        Flux2KleinInpaintPipeline,
        Flux2KleinPipeline,
    )

    loaded = Flux2KleinPipeline.from_pretrained(path, dtype=torch.float32, local_files_only=True)
    pipeline = Flux2KleinInpaintPipeline(**loaded.components, is_distilled=loaded.config.is_distilled)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _diffusers_image(pipeline: Any, path: str, case: Case, noise: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    import torch
    from diffusers.image_processor import VaeImageProcessor  # type: ignore[import-not-found, unused-ignore]
    from diffusers.pipelines.flux2 import (  # type: ignore[import-not-found, unused-ignore]
        pipeline_flux2_klein_inpaint as module,
    )

    index = json.loads((Path(path) / "model_index.json").read_text())
    mask = Image.fromarray(mask_of(case))
    if case.padding is not None:
        box = pipeline.mask_processor.get_crop_region(mask, case.width, case.height, pad=case.padding)
        if box != case.box:
            raise SystemExit(f"diffusers crops at {box}")
    module.randn_tensor = lambda *_, **__: torch.from_numpy(noise)
    pipeline.image_processor.apply_overlay = VaeImageProcessor(vae_scale_factor=16).apply_overlay
    second = None if case.reference is None else Image.fromarray(reference(*case.reference, 1))
    image = pipeline(
        image=Image.fromarray(reference(case.width, case.height, 0)),
        mask_image=mask,
        image_reference=second,
        prompt=case.prompt,
        strength=case.strength,
        padding_mask_crop=case.padding,
        num_inference_steps=case.steps,
        guidance_scale=case.guidance,
        output_type="pil",
        text_encoder_out_layers=tuple(index.get("text_encoder_out_layers", (9, 18, 27))),
        max_sequence_length=index.get("max_sequence_length", 512),
    ).images[0]
    return np.asarray(image)


if __name__ == "__main__":
    sys.exit(run_side("Compare the engine's inpainted images with diffusers'.", generate, compare))
