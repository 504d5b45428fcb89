"""Making CUDA kernels of MLX: each under a name of its own source, as MLX keeps what it compiled by the name alone."""

import sys
from collections.abc import Callable, Sequence
from functools import cache
from hashlib import sha256
from typing import Any

import attrs
import mlx.core as mx

from mflux_api.engine.device import Device

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


def usable() -> bool:
    """Whether a kernel can be compiled and run here; tried with a small one."""
    ones = mx.ones((WARP,), dtype=mx.bfloat16)
    try:
        (sums,) = kernel("probe", ("x",), ("out",), "out[threadIdx.x] = (T)((float)x[threadIdx.x] + 1.f);")(
            inputs=[ones], **launched(WARP, [ones.shape], ones.dtype, block=WARP)
        )
        return bool((sums == 2).all().item())
    except RuntimeError as error:
        print(f"no kernel can be used: {error!r}", file=sys.stderr)  # noqa: T201 - the parent's debug log
        return False


def checked(device: Device, warn: Callable[[str], None]) -> Device:
    """Return the device, without its fast path where that is kernels that cannot be used.

    Args:
        device: what a model is loaded for.
        warn: told of it.
    """
    if device.kind != "cuda" or not device.fast_path or usable():
        return device
    warn("CUDA's kernels cannot be compiled on this machine, so images are computed as mflux does, which takes longer")
    return attrs.evolve(device, fast_path=False)


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
