"""Write the exact version of every dependency into pyproject.toml and requirements.txt.

Run it after changing a dependency: ``uv lock --upgrade && python -m tools.pin``. The lock file itself is not
committed, because it names the package index of the machine that made it.
"""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Pinned by the override and by the groups; a constraint would contradict the CPU/CUDA switch.
NOT_CONSTRAINED = ("mlx==", "mlx-cpu==", "mlx-cuda-13==", "torch")
# uv repeats tool.uv.environments in every marker, in one of two forms; they say nothing about one package.
CPYTHON = " and platform_python_implementation == 'CPython'"
EVERYWHERE = (
    " ; platform_machine == 'arm64' and sys_platform == 'darwin' or "
    "(platform_machine == 'aarch64' or platform_machine == 'x86_64') and sys_platform == 'linux'"
)
EVERYWHERE_SPLIT = (
    " and ((platform_machine == 'arm64' and sys_platform == 'darwin') or "
    "(platform_machine == 'aarch64' and sys_platform == 'linux') or "
    "(platform_machine == 'x86_64' and sys_platform == 'linux'))"
)


def export(*options: str) -> list[str]:
    """Return uv's export of the lock file, without the markers that every line has."""
    command = ["uv", "export", "--quiet", "--no-emit-project", "--no-annotate", "--no-header", *options]
    text = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for everywhere in (CPYTHON, EVERYWHERE, EVERYWHERE_SPLIT):
        text = text.replace(everywhere, "")
    return [line for line in text.splitlines() if line.strip()]


def write_constraints(pins: list[str]) -> None:
    """Put the pins into pyproject.toml.

    Raises:
        SystemExit: There is not exactly one list of constraints.
    """
    path = ROOT / "pyproject.toml"
    listed = "".join(f'    "{pin}",\n' for pin in pins)
    pattern = re.compile(r"constraint-dependencies = \[\n.*?\]\n", re.DOTALL)
    text, count = pattern.subn(lambda _: f"constraint-dependencies = [\n{listed}]\n", path.read_text("utf-8"))
    if count != 1:
        raise SystemExit("pyproject.toml: expected exactly one constraint-dependencies list")
    path.write_text(text, "utf-8")


def main() -> None:
    """Write pyproject.toml and requirements.txt."""
    everything = export("--no-hashes", "--all-groups", "--no-group", "cuda13")
    pins = [line for line in everything if not line.startswith(NOT_CONSTRAINED)]
    write_constraints(pins)
    requirements = export("--no-default-groups", "--group", "cpu")
    header = "# Written by tools/pin.py. Install with: pip install --no-deps -r requirements.txt\n"
    (ROOT / "requirements.txt").write_text(header + "\n".join(requirements) + "\n", "utf-8")
    print(f"{len(pins)} constraints, {sum('==' in line for line in requirements)} requirements")


if __name__ == "__main__":
    main()
