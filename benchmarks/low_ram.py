"""The memory of one picture with ``low_ram`` and without, and how far the pictures are apart.

Each is painted by a fresh process on the same random checkpoint. Peak: live MLX arrays, and the whole process.

Run: ``uv run python -m benchmarks.low_ram [pixels]``
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.checkpoints import BALANCED, measured, write


def paint(source: Path, target: Path, side: int, *, low_ram: bool) -> None:
    """Paint one picture and print what it took; the pixels go to ``target``."""
    from mflux_api.engine import blas

    blas.preload()
    import numpy as np

    from mflux_api.engine import device as memory
    from mflux_api.engine.sampling.pipeline import ImageEvent, Pipeline, PipelineRequest
    from mflux_api.engine.weights.components import load_components

    device = memory.detect_device()
    memory.configure(device)
    before = process_peak()
    started = time.perf_counter()
    pipeline = Pipeline(load_components(source, staged=low_ram), device)
    request = PipelineRequest(
        prompt="a lighthouse at dusk", seeds=(7,), width=side, height=side, steps=4, low_ram=low_ram
    )
    for event in pipeline.run(request, lambda: False):
        if isinstance(event, ImageEvent):
            np.save(target, event.pixels)
    grown = process_peak() - before
    seconds = time.perf_counter() - started
    print(json.dumps({"arrays": memory.peak_bytes() / 1e9, "process": grown / 1e9, "seconds": seconds}))


def process_peak() -> int:
    """The most bytes that this process ever held."""
    status = Path("/proc/self/status")
    if status.is_file():
        # What getrusage says on Linux is inherited from the process that started this one.
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Print both peaks, their ratio and the largest difference of two pixels."""
    import numpy as np

    side = int(sys.argv[1]) if len(sys.argv) > 1 else 256
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model"
        size = write(source, BALANCED)
        runs = {
            name: measured("benchmarks.low_ram", ["--paint", source, Path(folder) / f"{name}.npy", side, name])
            for name in ("whole", "low_ram")
        }
        whole, low = (np.load(Path(folder) / f"{name}.npy").astype(int) for name in ("whole", "low_ram"))
    print(f"{size:.2f} GB checkpoint, {side}×{side}, 4 steps")
    print(f"{'':<10}{'peak, arrays':>14}{'peak, process':>15}{'loading and painting':>22}")
    for name, run in runs.items():
        print(f"{name:<10}{run['arrays']:>11.2f} GB{run['process']:>12.2f} GB{run['seconds']:>20.1f} s")
    ratio = runs["low_ram"]["arrays"] / runs["whole"]["arrays"]
    print(f"low_ram / whole: {ratio:.2f}; largest difference of two pixels: {abs(whole - low).max()} of 255")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--paint"]:
        paint(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), low_ram=sys.argv[5] == "low_ram")
    else:
        main()
