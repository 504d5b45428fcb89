"""One image as others generate it: stock mflux, a model for each request, diffusers; and this service over HTTP.

All have the same weights, size and steps, and a new prompt for each image; an image counts when it is a PNG file, and
the service's when its client has it. Each way has a process of its own, one after the other in one run. On a CPU the
model is the demo, and mflux has what suits it there: float32, the BLAS that the service chooses, no compiler. With
``--klein FOLDER`` it is random weights in the shapes of FLUX.2 Klein 4B on a GPU (written where the folder has none),
and diffusers takes part where torch and diffusers are installed.

Run: ``uv run --group dev python -m benchmarks.peers [--klein FOLDER] [--sides 256 512]``
"""

import gc
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.client import PROMPT, STEPS
from benchmarks.report import Report, Table, options_parser
from benchmarks.server import demo_config, klein_config, serving

SAMPLES = 5
LOADING_SAMPLES = 3
"""Of the way that loads the model each time."""
SERVICE, MFLUX, MODEL_PER_REQUEST = "this service, over HTTP", "stock mflux", "a model per request"
DIFFUSERS, DIFFUSERS_COMPILED = "diffusers, eager", "diffusers, compiled"
Generate = Callable[[str, int, Path], None]
"""Writes the image of a prompt, of so many pixels a side, to a file."""


def measure(generate: Generate, sides: Sequence[int], samples: int) -> dict[str, Any]:
    """Return the seconds of images of each size, the first ones apart."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for side in sides:
            seconds = list[float]()
            for number in range(samples + 1):
                begun = time.perf_counter()
                generate(f"{PROMPT}, number {number}", side, Path(folder) / f"{number}.png")
                seconds.append(time.perf_counter() - begun)
            first, *others = seconds
            found[str(side)] = {"first": first, "seconds": statistics.median(others), "samples": samples}
    return found


def measure_mflux(folder: Path, sides: Sequence[int], *, gpu: bool, keep: bool) -> dict[str, Any]:
    """Return the figures of stock mflux, whose model is kept or loaded for each image. In a process of its own."""
    from mflux_api.engine import blas

    blas.preload()
    import mlx.core as mx

    from benchmarks import stock_mflux
    from mflux_api.engine.device import select

    select("gpu" if gpu else "cpu")
    kept: Any = stock_mflux.load(folder) if keep else None

    def generate(prompt: str, side: int, file: Path) -> None:
        model = kept or stock_mflux.load(folder)
        image = model.generate_image(seed=1, prompt=prompt, num_inference_steps=STEPS, width=side, height=side)
        image.image.save(file)
        del model, image
        if not keep:
            gc.collect()
            mx.clear_cache()

    return measure(generate, sides, SAMPLES if keep else LOADING_SAMPLES)


def measure_diffusers(folder: Path, sides: Sequence[int], *, compiled: bool) -> dict[str, Any]:
    """Return the figures of diffusers' pipeline on a GPU. In a process of its own."""
    import torch  # type: ignore[import-not-found, unused-ignore]
    from diffusers import Flux2KleinPipeline  # type: ignore[import-not-found, unused-ignore]

    pipeline: Any = Flux2KleinPipeline.from_pretrained(str(folder), dtype=torch.bfloat16, local_files_only=True)
    pipeline.to("cuda")
    pipeline.set_progress_bar_config(disable=True)
    if compiled:
        pipeline.transformer = torch.compile(pipeline.transformer)
        pipeline.vae.decode = torch.compile(pipeline.vae.decode)

    def generate(prompt: str, side: int, file: Path) -> None:
        size = {"width": side, "height": side, "num_inference_steps": STEPS, "guidance_scale": 1.0}
        pipeline(prompt=prompt, **size).images[0].save(file)

    return measure(generate, sides, SAMPLES)


def measure_service(folder: Path, sides: Sequence[int], config: str, model: str) -> dict[str, Any]:
    """Return the figures of a server with this model."""
    with serving(folder, config, model) as client:

        def generate(prompt: str, side: int, file: Path) -> None:
            client.image(prompt=prompt, width=side, height=side)

        return measure(generate, sides, SAMPLES)


def ways(folder: Path, sides: Sequence[int], *, gpu: bool) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return what measures each way that runs in a process of its own, by its name."""
    found: dict[str, Callable[[], dict[str, Any]]] = {
        MFLUX: partial(measure_mflux, folder, sides, gpu=gpu, keep=True),
        MODEL_PER_REQUEST: partial(measure_mflux, folder, sides, gpu=gpu, keep=False),
    }
    if gpu and all(importlib.util.find_spec(name) for name in ("torch", "diffusers")):
        found[DIFFUSERS] = partial(measure_diffusers, folder, sides, compiled=False)
        found[DIFFUSERS_COMPILED] = partial(measure_diffusers, folder, sides, compiled=True)
    return found


def apart(name: str, folder: Path, sides: Sequence[int], *, gpu: bool) -> dict[str, Any] | None:
    """Return the figures of one way out of a process of its own; ``None`` where it fails, which it says itself."""
    task = json.dumps({"name": name, "folder": str(folder), "sides": list(sides), "gpu": gpu})
    command = [sys.executable, "-m", "benchmarks.peers", "--task", task]
    # Bars would be all there is to see.
    environment = os.environ | {"TQDM_DISABLE": "1"} | ({} if gpu else {"MLX_DISABLE_COMPILE": "1"})
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    found: dict[str, Any] | None = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None
    return found


def table(found: dict[str, Any]) -> Table:
    """Return the figures as a table; a ratio is to this service."""
    sides = [str(side) for side in found["sides"]]
    rows = []
    for name, row in found["ways"].items():
        cells = [name]
        for side in sides:
            own = found["ways"][SERVICE][side]["seconds"]
            cells += [f"{row[side]['seconds']:.2f} s", f"{row[side]['seconds'] / own:.1f} ×"] if row else ["failed", ""]
        rows.append(cells)
    return Table(("", *(head for side in sides for head in (f"{side}²", "ratio"))), rows)


def main() -> None:
    """Print the table."""
    parser = options_parser(__doc__)
    parser.add_argument("--klein", type=Path, help="on a GPU: the folder of the weights")
    parser.add_argument("--sides", type=int, nargs="+", help="256 and 512; on a GPU 512 and 1024")
    options = parser.parse_args()
    report, gpu = Report("peers", options), options.klein is not None
    sides = options.sides or ((512, 1024) if gpu else (256, 512))
    if gpu:
        weights, config, model = options.klein.resolve(), klein_config(options.klein), "klein"
        if not (weights / "model_index.json").is_file():
            # In a process of its own, whose memory the others need.
            write = f"from pathlib import Path; from benchmarks.klein_4b import write; write(Path({str(weights)!r}))"
            subprocess.run([sys.executable, "-c", write], check=True)
    else:
        from mflux_api.storage.checkpoints import EMBEDDED

        weights, config, model = EMBEDDED, demo_config(), "demo"
    found: dict[str, Any] = {"model": model, "steps_each": STEPS, "sides": list(sides), "ways": {}}
    with tempfile.TemporaryDirectory() as temporary:
        found["ways"][SERVICE] = measure_service(Path(temporary), sides, config, model)
    for name in ways(weights, sides, gpu=gpu):
        print(name, file=sys.stderr, flush=True)
        found["ways"][name] = apart(name, weights, sides, gpu=gpu)
        report.save(found)
    report.publish(found, table(found))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--task"]:
        task = json.loads(sys.argv[2])
        print(json.dumps(ways(Path(task["folder"]), task["sides"], gpu=task["gpu"])[task["name"]]()))
    else:
        main()
