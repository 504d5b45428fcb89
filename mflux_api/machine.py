"""This machine: which device MLX is to use, its cores and its memory, and how often the system killed for that."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import psutil

Devices = Literal["auto", "cpu", "gpu"]
"""``auto`` is the GPU where MLX has one, else the CPU."""

DEVICES_VARIABLE = "MFLUX_API_DEVICES"
"""The environment variable that says what ``auto`` means."""

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
# A cgroup without a limit says "max", or in version 1 a number near 2**63.
_NO_LIMIT = 1 << 60


def usable_cores() -> int:
    """How many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def total_bytes() -> int:
    """Memory that this process may come to use: the machine's, or its container's limit if that is less."""
    return min([psutil.virtual_memory().total, *(limit for limit, _ in _limits())])


def available_bytes() -> int:
    """Memory that is left now, on the machine or up to the container's limit; caches count as free."""
    return min([psutil.virtual_memory().available, *(max(0, limit - used) for limit, used in _limits())])


def oom_kills() -> int:
    """How often the system killed a process of this container (or, outside of one, of this machine) for memory."""
    # The sum: it grows with each of them, whichever groups count their children's.
    counts = [
        int(count)
        for folder in _folders()
        for file in ("memory.events", "memory.oom_control")
        if (count := _fields(folder / file).get("oom_kill", "")).isdigit()
    ]
    if counts:
        return sum(counts)
    count = _fields(Path("/proc/vmstat")).get("oom_kill", "0")
    return int(count) if count.isdigit() else 0


def _limits() -> Iterator[tuple[int, int]]:
    """Limit and use, in bytes, of each control group with a limit that this process is in."""
    for folder in _folders():
        for limit_file, used_file, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit = _number(folder / limit_file)
            used = _number(folder / used_file)
            if limit is not None and used is not None and limit < _NO_LIMIT:
                freed_first = _fields(folder / "memory.stat").get(cache, "0")
                yield limit, used - (int(freed_first) if freed_first.isdigit() else 0)


def _folders() -> Iterator[Path]:
    """The memory control groups of this process, from its own up to the root; inside a container the root is its own.

    Nothing on systems without control groups.
    """
    for line in _text(_MEMBERSHIP).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        root = _CGROUPS / "memory" if controllers else _CGROUPS
        folder = root / path.lstrip("/")
        while folder.is_relative_to(root):
            yield folder
            folder = folder.parent


def _number(file: Path) -> int | None:
    text = _text(file).strip()
    return int(text) if text.isdigit() else None


def _fields(file: Path) -> dict[str, str]:
    return dict(line.split(None, 1) for line in _text(file).splitlines() if len(line.split(None, 1)) == 2)


def _text(file: Path) -> str:
    try:
        return file.read_text("ascii")
    except (OSError, UnicodeDecodeError):
        return ""
