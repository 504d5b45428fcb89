"""Device facts, numeric precision and memory care over ``mlx.core``; imported only in the engine child."""

import gc
import os
from typing import Literal, get_args

import attrs
import mlx.core as mx
from mflux.models.common.config.model_config import ModelConfig

from mflux_api import machine
from mflux_api.machine import DEVICES_VARIABLE, Devices

_GIB = 1 << 30
_MIN_CACHE_BYTES = _GIB // 2
_CACHE_SHARE = 16
# In the texts of MLX's RuntimeErrors on Metal, CUDA and a CPU; C++'s own is std::bad_alloc.
_OUT_OF_MEMORY = ("Insufficient Memory", "Unable to allocate", "Resource limit", "out of memory", "bad_alloc")
LIBRARY_ERRORS = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)
"""What a library raises over a file that it cannot read, beside want of memory."""


@attrs.frozen
class Device:
    """What MLX computes on in this process."""

    kind: Literal["cpu", "metal", "cuda"]
    name: str
    """The chip's name as its maker writes it, for people."""
    fast_path: bool = False
    """Whether the project's own ways of computing are used where they are faster; else it is mflux's, to the bit."""

    @property
    def is_gpu(self) -> bool:
        """True on Metal and CUDA."""
        return self.kind != "cpu"

    @property
    def precision(self) -> Literal["float32", "bfloat16"]:
        """What is computed in: MLX's CPU backend has no fast bfloat16 product, float32 through BLAS is 40 × faster."""
        return "bfloat16" if self.is_gpu else "float32"


class NoSuchDevice(Exception):
    """What was asked for is not here; the text says what to do, and holds no path."""


def devices_to_use(asked: Devices) -> Devices:
    """Return what is asked for; where that is nothing in particular, what the environment names.

    Raises:
        NoSuchDevice: it names a kind that does not exist.
    """
    named = asked if asked != "auto" else os.environ.get(DEVICES_VARIABLE) or "auto"
    found: Devices | None = next((kind for kind in get_args(Devices) if kind == named), None)
    if found is None:
        raise NoSuchDevice(f"{DEVICES_VARIABLE} is '{named[:20]}': set it to auto, cpu or gpu")
    return found


def select(devices: Devices, *, fast_path: bool = False) -> Device:
    """Make MLX compute on the device of that kind from now on, and set this process up for it.

    Args:
        devices: the kind.
        fast_path: see :class:`Device`.

    Raises:
        NoSuchDevice: MLX has no GPU here.
    """
    if devices == "gpu" and not mx.is_available(mx.gpu):
        raise NoSuchDevice('MLX has no GPU here: set engine.devices = "auto", or install MLX with its GPU backend')
    if devices != "auto":
        mx.set_default_device(mx.cpu if devices == "cpu" else mx.gpu)
    device = attrs.evolve(detect_device(), fast_path=fast_path)
    configure(device)
    return device


def detect_device() -> Device:
    """Return the device that MLX uses by default."""
    name = str(mx.device_info().get("device_name", "unknown"))
    if mx.default_device().type != mx.gpu:
        return Device(kind="cpu", name=name)
    return Device(kind="metal" if mx.metal.is_available() else "cuda", name=name)


def configure(device: Device) -> None:
    """Set mflux's precision and a limit for MLX's cache of freed buffers; on a CPU also switch MLX's compiler off.

    Call it before any component is built: mflux reads the precision while it builds and while it runs.
    """
    ModelConfig.precision = mx.bfloat16 if device.precision == "bfloat16" else mx.float32
    if not device.is_gpu:
        # There it would call the system's C++ compiler: seconds at the first step, other rounding where none is
        # installed, and libraries loaded from a folder in /tmp that any user could have made.
        mx.disable_compile()
    # Without a limit the cache grows until the machine swaps (a 9B model locked up a 64 GB Mac).
    mx.set_cache_limit(max(_MIN_CACHE_BYTES, _device_bytes() // _CACHE_SHARE))


def memory_bytes(device: Device) -> int:
    """Return how many bytes the device has for models and images."""
    info = mx.device_info()
    if device.kind == "metal":
        # Beyond it Metal begins to swap, or fails.
        return int(info.get("max_recommended_working_set_size") or _device_bytes())
    return _device_bytes() if device.kind == "cuda" else machine.total_bytes()


def settle() -> None:
    """Keep the garbage collector from looking at what was imported; call it before there is a model.

    It is 100,000 objects, which took 100 ms of each image: :func:`release` collects after each.
    """
    gc.collect()
    gc.freeze()


def release() -> None:
    """Drop unreachable arrays and give MLX's cached buffers back to the system."""
    gc.collect()
    mx.clear_cache()


def active_bytes() -> int:
    """Return the bytes of live MLX arrays."""
    return mx.get_active_memory()


def peak_bytes() -> int:
    """Return the most bytes of live MLX arrays since the process started."""
    return mx.get_peak_memory()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory has run out, in MLX or in Python."""
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in _OUT_OF_MEMORY)


def _device_bytes() -> int:
    info = mx.device_info()
    # The key differs between MLX's backends; a CPU reports none, and the minimum is right there.
    return int(info.get("memory_size") or info.get("total_memory") or 0)
