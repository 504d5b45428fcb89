"""Making CUDA kernels of MLX: each under a name of its own source, as MLX keeps what it compiled by the name alone."""

from collections.abc import Callable, Sequence
from functools import cache
from hashlib import sha256
from typing import Any

import mlx.core as mx

Kernel = Callable[..., list[mx.array]]
PER_THREAD = 8
"""Numbers that a thread takes: 16 bytes of bfloat16, the most that one access moves."""
WARP = 32
BLOCK = 256


@cache
def kernel(name: str, inputs: tuple[str, ...], outputs: tuple[str, ...], source: str) -> Kernel:
    """Return a kernel; it is compiled when it is first used.

    Args:
        name: what it is called in profiles.
        inputs: the names of its arrays in the source; all those of one type ``T`` must be of that type.
        outputs: as ``inputs``.
        source: the body of a function in CUDA.
    """
    digest = sha256("\0".join((*inputs, *outputs, source)).encode()).hexdigest()[:12]
    made: Any = mx.fast.cuda_kernel(
        name=f"mflux_api_{name}_{digest}", input_names=inputs, output_names=outputs, source=source
    )
    return made  # type: ignore[no-any-return]


def numbers(*values: int) -> mx.array:
    """Return sizes as a kernel reads them."""
    return mx.array(values, dtype=mx.uint32)


def launched(threads: int, outputs: Sequence[tuple[int, ...]], dtype: mx.Dtype, block: int = BLOCK) -> dict[str, Any]:
    """Return how a kernel is started whose outputs are all of one type, which is its ``T`` too."""
    return {
        "template": [("T", dtype)],
        "grid": (threads, 1, 1),
        "threadgroup": (block, 1, 1),
        "output_shapes": list(outputs),
        "output_dtypes": [dtype] * len(outputs),
    }
