"""Loading kept quantized weights, compared with quantizing them at every start, for a checkpoint of over 1 GB.

Every figure is from a process of its own, with the files in the system's cache. The digests show that all of them end
with the same bits.

Run: ``uv run --group dev python -m benchmarks.quantized_load [bits]``
"""

import hashlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.checkpoints import LARGE, measure, write
from benchmarks.report import Report, Table, options_parser

ROUNDS = 3


def load(how: str, source: Path, entry: Path, bits: int) -> None:
    """Load once and print the seconds and a digest of every array."""
    from mflux_api.engine import blas

    blas.preload()
    import mlx.core as mx
    import numpy as np

    from mflux_api.catalog.files import COMPONENTS
    from mflux_api.engine import device as memory
    from mflux_api.engine.weights.components import load_components
    from mflux_api.engine.weights.parameters import named_arrays
    from mflux_api.engine.weights.quantized_cache import load_quantized

    memory.configure(memory.detect_device())
    started = time.perf_counter()
    components = load_components(source, bits=bits) if how == "anew" else load_quantized(source, bits, entry)
    seconds = time.perf_counter() - started
    digest = hashlib.sha256()
    for component in COMPONENTS:
        for name, array in named_arrays(getattr(components, component)):
            digest.update(name.encode())
            digest.update(np.array(array.view(mx.uint8)).tobytes())
    print(json.dumps({"seconds": seconds, "digest": digest.hexdigest(), "peak": memory.peak_bytes() / 1e9}))


def main() -> None:
    """Print seconds, ratios and whether the bits agree."""
    parser = options_parser(__doc__)
    parser.add_argument("bits", type=int, nargs="?", default=4)
    options = parser.parse_args()
    report, bits = Report("quantized_load", options), options.bits
    module = "benchmarks.quantized_load"
    with tempfile.TemporaryDirectory() as folder:
        source, entry = Path(folder) / "model", Path(folder) / "kept"
        size = write(source, LARGE)
        first = measure(module, ["--load", "kept", source, entry, bits])
        kept_size = sum(file.stat().st_size for file in entry.rglob("*") if file.is_file()) / 1e9
        anew = [measure(module, ["--load", "anew", source, entry, bits]) for _ in range(ROUNDS)]
        kept = [measure(module, ["--load", "kept", source, entry, bits]) for _ in range(ROUNDS)]
    slow = statistics.median(run["seconds"] for run in anew)
    fast = statistics.median(run["seconds"] for run in kept)
    same = len({run["digest"] for run in (first, *anew, *kept)}) == 1
    rows = (
        ("quantized and kept, the first time", f"{first['seconds']:.2f} s", f"{first['peak']:.2f} GB"),
        ("quantized anew", f"{slow:.2f} s", f"{anew[0]['peak']:.2f} GB"),
        ("loaded from what is kept", f"{fast:.2f} s, {slow / fast:.1f} × faster", f"{kept[0]['peak']:.2f} GB"),
    )
    title = f"{size:.2f} GB checkpoint, {bits} bits, {kept_size:.2f} GB kept:"
    figures = {"checkpoint_gb": size, "bits": bits, "kept_gb": kept_size, "first": first, "anew": anew, "kept": kept}
    note = f"same bits in all: {'yes' if same else 'NO'}"
    report.publish(figures | {"same_bits": same}, Table(("", "seconds", "peak"), rows, title), notes=[note])
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--load"]:
        load(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]))
    else:
        main()
