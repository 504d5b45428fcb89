"""What to do about an engine that does not come up, where its last line says enough."""

from collections.abc import Sequence

_ADVICE: Sequence[tuple[tuple[str, ...], str]] = (
    (
        ("libmlx.so",),
        "MLX has no backend here: install mlx-cpu, or mlx-cuda-13 for an NVIDIA GPU, in the version of mlx (README, "
        "Installing)",
    ),
    (
        ("libcuda.so", "libnvidia", "no CUDA-capable device", "CUDA driver version"),
        "this is MLX's CUDA build on a machine without a working NVIDIA driver: install the driver, "
        "or MLX's CPU build (docs/install.md)",
    ),
    (
        ("libcudart", "libcublas", "libcudnn", "libnvrtc", "libcufft", "libnccl"),
        "CUDA's libraries are not all here: install the group cuda13 again, or MLX's CPU build (docs/install.md)",
    ),
    (
        ("No module named", "cannot import name", "failed to import"),
        "a dependency is missing or of another version: install the dependencies again (docs/install.md)",
    ),
    (
        ("GLIBC", "CXXABI", "SIGILL", "symbol not found in flat namespace", "incompatible architecture"),
        "MLX's build does not fit this system or its processor: docs/install.md has those that do",
    ),
    (
        ("libopenblas", "liblapack", "libgfortran", "libblas"),
        "install libopenblas0 and liblapack3, or your system's packages of these libraries",
    ),
    (("cannot open shared object file",), "a library of the system is missing: install the package that has it"),
    (
        ("killed by SIGKILL",),
        "this is how a system ends programs when memory is out (its log says so): end others, or give the container "
        "more",
    ),
    (
        ("can't start new thread", "Resource temporarily unavailable", "pthread_create"),
        "no more threads may be started: raise the limit of processes (ulimit -u, or the container's)",
    ),
    (("home directory",), "set HOME to a folder that can be written"),
    (("No space left on device",), "free some space on the disk that TMPDIR and HOME are on"),
    (("Cannot allocate memory", "MemoryError", "bad_alloc"), "there is no memory for it: end other programs"),
)
"""What a last line may say, and the advice; the first that fits."""


def with_advice(reason: str) -> str:
    """Return why an engine did not come up, followed by what to do about it where that is known."""
    advice = next((advice for signs, advice in _ADVICE if any(sign in reason for sign in signs)), "")
    return f"{reason}; {advice}" if advice else reason
