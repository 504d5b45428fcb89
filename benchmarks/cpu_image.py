"""What the fast path of a CPU saves on whole images of the demo model, and where the rest of the time goes.

Both ways take turns on the same model in one run; the figures are medians. The prompt is cached, as from the second
image on. The shares are those of one core that does all the work alone.

Run: ``uv run --group dev python -m benchmarks.cpu_image [--rounds N] [--sides 256 512]``
"""

import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.report import Report, Table, options_parser

if TYPE_CHECKING:
    from mflux_api.engine.sampling.pipeline import Pipeline, PipelineRequest

STEPS = 4
# OpenBLAS's threads look for work that long after a product, and would take the other way's cores.
_PAUSE_SECONDS = 0.1


def generate(pipeline: "Pipeline", request: "PipelineRequest") -> tuple[float, float, float, Any]:
    """Return the seconds of denoising, of decoding and of the whole, and the image."""
    from mflux_api.engine.sampling.pipeline import DoneEvent, ImageEvent

    time.sleep(_PAUSE_SECONDS)
    begun, denoise, decode, pixels = time.perf_counter(), 0.0, 0.0, None
    for event in pipeline.run(request, lambda: False):
        match event:
            case ImageEvent():
                pixels = event.pixels
            case DoneEvent():
                denoise, decode = event.denoise_s, event.decode_s
    return denoise, decode, time.perf_counter() - begun, pixels


@contextmanager
def timed_products() -> Iterator[list[float]]:
    """Yield the seconds and the GFLOP of numpy's matrix products so far."""
    import numpy as np

    matmul, spent = np.matmul, [0.0, 0.0]

    def timed(one: Any, other: Any, **options: Any) -> Any:
        begun = time.perf_counter()
        product = matmul(one, other, **options)
        spent[0] += time.perf_counter() - begun
        spent[1] += 2 * one.shape[0] * one.shape[1] * other.shape[1] / 1e9
        return product

    np.matmul = timed  # type: ignore[assignment]
    try:
        yield spent
    finally:
        np.matmul = matmul


def product_speed() -> float:
    """Return how many GFLOP/s one core does in a product of 1024 x 1024 matrices."""
    import numpy as np

    square = np.ones((1024, 1024), np.float32)
    seconds = []
    for _ in range(9):
        begun = time.perf_counter()
        np.matmul(square, square)
        seconds.append(time.perf_counter() - begun)
    return 2 * 1.024**3 / min(seconds)


def compare(side: int, rounds: int, components: Any, exact: "Pipeline", fast: "Pipeline") -> dict[str, Any]:
    """Return the figures of one size."""
    import numpy as np

    from mflux_api.engine.kernels.cpu_threads import Threads
    from mflux_api.engine.sampling.pipeline import PipelineRequest

    request = PipelineRequest(prompt="a red house", seeds=(1,), width=side, height=side, steps=STEPS)
    images = [generate(pipeline, request)[3].astype(np.int16) for pipeline in (exact, fast)]
    laps = [(generate(exact, request)[:3], generate(fast, request)[:3]) for _ in range(rounds)]
    before, after = (
        dict(zip(("denoise", "decode", "total"), map(statistics.median, zip(*each, strict=True)), strict=True))
        for each in zip(*laps, strict=True)
    )
    ratios = [one[2] / other[2] for one, other in laps]
    fast._threads = fast._transformer._threads = Threads(1)
    fast._transformer.plain = fast._transformer._compile()
    with timed_products() as spent:
        alone = generate(fast, request)[2]
    fast._threads = fast._transformer._threads = Threads()
    fast._transformer.plain = fast._transformer._compile()
    return {
        "side": side,
        "before": before,
        "after": after,
        "ratio": statistics.median(ratios),
        "ratio_of_rounds": [round(ratio, 2) for ratio in ratios],
        "levels": int(np.abs(images[0] - images[1]).max()),
        "pixels_that_differ": float((images[0] != images[1]).mean()),
        "one_core": {"seconds": alone, "products_seconds": spent[0], "gflop": spent[1]},
    }


def tables(rows: list[dict[str, Any]]) -> tuple[Table, Table]:
    """Return the figures as tables."""
    ways, alone = [], []
    for row in rows:
        size = f"{row['side']} × {row['side']}"
        for name in ("before", "after"):
            times = (f"{1000 * row[name][key]:.0f} ms" for key in ("denoise", "decode", "total"))
            ratio = f"{row['ratio']:.1f} ×" if name == "after" else ""
            levels = f"{row['levels']} level, {row['pixels_that_differ']:.4%}" if name == "after" else ""
            ways.append((size, name, *times, ratio, levels))
        seconds, products, work = (row["one_core"][key] for key in ("seconds", "products_seconds", "gflop"))
        shares = (f"{1000 * seconds:.0f} ms", f"{products / seconds:.0%}", f"{work:.0f}", f"{work / products:.0f}")
        alone.append((size, *shares))
    return (
        Table((f"{STEPS} steps", "", "denoise", "decode", "whole", "ratio", "differs"), ways),
        Table(("one core", "whole", "in matrix products", "GFLOP", "GFLOP/s in them"), alone),
    )


def main() -> None:
    """Print the tables."""
    parser = options_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 512])
    options = parser.parse_args()
    os.environ.setdefault("MLX_DISABLE_COMPILE", "1")
    from mflux_api.engine import blas

    # Before anything imports mlx.
    mlx_blas = blas.preload().name
    import attrs

    from mflux_api.engine import demo
    from mflux_api.engine.device import select
    from mflux_api.engine.sampling.pipeline import Pipeline
    from mflux_api.engine.weights.components import load_components

    device = select("cpu")
    components = load_components(Path(demo.__file__).parent / "weights")
    exact, fast = Pipeline(components, device), Pipeline(components, attrs.evolve(device, fast_path=True))
    report = Report("cpu_image", options, mlx_blas=mlx_blas, product_gflops=product_speed())
    rows = [compare(side, options.rounds, components, exact, fast) for side in options.sides]
    note = f"MLX with {mlx_blas}; numpy's products {report.machine['product_gflops']:.0f} GFLOP/s a core"
    report.publish({"sizes": rows}, *tables(rows), notes=[note])


if __name__ == "__main__":
    main()
