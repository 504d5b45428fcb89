"""What sharing a pass saves, and what adapters, references, previews and partial images cost.

The ratios are those of one run on this device, each of the best of some rounds.

Run: ``uv run --group dev python -m benchmarks.passes``
"""

import os
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.report import Report, Table, options_parser

if TYPE_CHECKING:
    from mflux_api.engine.demo.random_checkpoint import CheckpointShape
    from mflux_api.engine.sampling.pipeline import Pipeline, PipelineRequest

ROUNDS = 8
SIDE = 128


def denoise_seconds(pipeline: "Pipeline", request: "PipelineRequest") -> float:
    """Return the seconds of the denoising stage, for all images of the request; nothing is decoded."""
    from mflux_api.engine.sampling.pipeline import StageEvent

    begun = 0.0
    run = pipeline.run(request, lambda: False)
    with closing(run):
        for event in run:
            match event:
                case StageEvent(stage="denoising"):
                    begun = time.perf_counter()
                case StageEvent(stage="decoding"):
                    break
    return time.perf_counter() - begun


def write_lora(path: Path, shape: "CheckpointShape") -> Path:
    """Write a rank-8 adapter on every attention layer."""
    import mlx.core as mx

    tensors = {}
    for block in range(shape.double_blocks):
        for layer in ("to_q", "to_k", "to_v", "to_out.0"):
            name = f"transformer.transformer_blocks.{block}.attn.{layer}"
            tensors[f"{name}.lora_A.weight"] = mx.ones((8, shape.width)) * 0.001
            tensors[f"{name}.lora_B.weight"] = mx.ones((shape.width, 8)) * 0.001
    for block in range(shape.single_blocks):
        name = f"transformer.single_transformer_blocks.{block}.attn.to_out"
        inputs = shape.width + int(shape.width * shape.mlp_ratio)
        tensors[f"{name}.lora_A.weight"] = mx.ones((8, inputs)) * 0.001
        tensors[f"{name}.lora_B.weight"] = mx.ones((shape.width, 8)) * 0.001
    mx.save_safetensors(str(path), tensors)
    return path


def main() -> None:
    """Print the table."""
    report = Report("passes", options_parser(__doc__).parse_args())
    os.environ.setdefault("MLX_DISABLE_COMPILE", "1")
    from mflux_api.engine import blas

    # Before anything imports mlx.
    blas.preload()
    import attrs
    import numpy as np

    from mflux_api.engine.demo.random_checkpoint import CheckpointShape, write_random_checkpoint
    from mflux_api.engine.device import configure, detect_device
    from mflux_api.engine.lora.applying import Lora
    from mflux_api.engine.sampling.pipeline import Pipeline, PipelineRequest
    from mflux_api.engine.weights.components import load_components
    from mflux_api.images.rgb import RGBImage

    plain = PipelineRequest(prompt="a red house", seeds=(1,), width=SIDE, height=SIDE, steps=4)
    device = detect_device()
    configure(device)
    shape = CheckpointShape()
    with tempfile.TemporaryDirectory() as folder:
        pipeline = Pipeline(load_components(write_random_checkpoint(Path(folder) / "model", shape)), device)
        lora = Lora(write_lora(Path(folder) / "lora.safetensors", shape))
        noise = np.random.default_rng(0).integers(0, 256, SIDE * SIDE * 3, np.uint8)
        reference = RGBImage(SIDE, SIDE, noise.tobytes())
        cases = {
            "one image": plain,
            "4 images, one pass": attrs.evolve(plain, seeds=(1, 2, 3, 4)),
            "guidance": attrs.evolve(plain, guidance=4.0),
            "a LoRA": attrs.evolve(plain, loras=(lora,)),
            "one reference": attrs.evolve(plain, references=(reference,)),
            "previews": attrs.evolve(plain, previews=True),
            "3 partial images": attrs.evolve(plain, partial_images=3),
        }
        seconds: dict[str, list[float]] = {name: [] for name in cases}
        for request in cases.values():
            denoise_seconds(pipeline, request)
        for _ in range(ROUNDS):
            for name, request in cases.items():
                seconds[name].append(denoise_seconds(pipeline, request))
    base = min(seconds["one image"])
    rows = [(name, f"{min(times) / base:.2f} ×") for name, times in seconds.items()]
    table = Table(("", "ratio"), rows, f"{device.name}: 4 steps at {SIDE} × {SIDE}, {base:.2f} s:")
    report.publish({"device": device.name, "side": SIDE, "seconds": seconds}, table)


if __name__ == "__main__":
    main()
