"""What a benchmark found, as JSON and as Markdown tables, with the machine that it ran on.

Every command takes ``--json FILE`` and ``--markdown FILE``; without the latter the tables go to standard output.
"""

import argparse
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import attrs
import psutil

from mflux_api.machine import total_bytes, usable_cores
from mflux_api.version import package_version

ROOT = Path(__file__).resolve().parent.parent


@attrs.frozen
class Table:
    """A table of a report."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    title: str = ""

    def markdown(self) -> str:
        """Return it as Markdown."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        table = "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
        return f"{self.title}\n\n{table}" if self.title else table


class Report:
    """The results of one run of a benchmark, and where they go; make it before anything is measured."""

    def __init__(self, benchmark: str, options: argparse.Namespace, **machine: object) -> None:
        self._benchmark = benchmark
        self._json: Path | None = options.json
        self._markdown: Path | None = options.markdown
        self.machine = describe_machine() | machine

    def save(self, figures: Mapping[str, Any]) -> None:
        """Write the figures so far; what is cut off leaves what it had."""
        if self._json is not None:
            found = {"benchmark": self._benchmark, "machine": self.machine, **figures}
            self._json.write_text(json.dumps(found, indent=2) + "\n", "utf-8")

    def publish(self, figures: Mapping[str, Any], *tables: Table, notes: Sequence[str] = ()) -> None:
        """Write the figures, and the machine, the tables and notes below them as Markdown."""
        self.save(figures)
        text = "\n\n".join([machine_line(self.machine), *(table.markdown() for table in tables), *notes])
        if self._markdown is not None:
            self._markdown.write_text(text + "\n", "utf-8")
        else:
            print(text, flush=True)


def options_parser(module_docstring: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark, and the first line of a module as its description."""
    parser = argparse.ArgumentParser(description=(module_docstring or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--markdown", type=Path, help="write the tables there, not to standard output")
    return parser


def describe_machine() -> dict[str, Any]:
    """Return what figures depend on: the hardware, the versions, the commit, and how busy the machine was."""
    return {
        "processor": _processor(),
        "cores": usable_cores(),
        "memory_gb": round(total_bytes() / 1e9, 1),
        "gpu": _gpu(),
        "system": _system(),
        "python": platform.python_version(),
        "mlx": _version("mlx"),
        "mflux": _version("mflux"),
        "mflux_api": package_version(),
        "commit": _commit(),
        # Of this many processes that want a core, one or so is the benchmark's.
        "load_before": round(psutil.getloadavg()[0], 1),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def machine_line(machine: Mapping[str, Any]) -> str:
    """Return a machine in one line."""
    hardware = [machine["processor"], f"{machine['cores']} cores", f"{machine['memory_gb']:.0f} GB"]
    versions = [f"Python {machine['python']}", f"MLX {machine['mlx']}", f"mflux {machine['mflux']}"]
    parts = [", ".join(hardware), machine["gpu"], machine["system"], ", ".join(versions)]
    commit = machine["commit"] and f"commit {machine['commit']}"
    return "; ".join(part for part in [*parts, commit, f"load {machine['load_before']} before"] if part)


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _system() -> str:
    if platform.system() == "Darwin":
        return f"macOS {platform.mac_ver()[0]}"
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def _gpu() -> str | None:
    """Return the names of NVIDIA's GPUs; ``None`` where the driver's command is missing or finds none."""
    found = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    return ", ".join(found.splitlines()) or None


def _commit() -> str | None:
    """Return the commit that is checked out, marked where files differ from it; ``None`` outside of a clone."""
    commit = _output("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD")
    changed = _output("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return (f"{commit}, changed" if changed else commit) or None


def _output(*command: str) -> str:
    """Return what a command prints; nothing where it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=os.environ)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
