"""Write the exact version of every dependency, the build backend's too, into pyproject.toml and requirements.txt.

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


BACKEND = "hatchling"


def export(*options: str) -> list[str]:
    """Return uv's export of the lock file, without the markers that every line has."""
    command = ["uv", "export", "--quiet", "--no-emit-project", "--no-annotate", "--no-header", *options]
    text = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for everywhere in (CPYTHON, EVERYWHERE, EVERYWHERE_SPLIT):
        text = text.replace(everywhere, "")
    return [line for line in text.splitlines() if line.strip()]


def build_pins() -> list[str]:
    """Return the exact versions of the build backend and of what it needs."""
    command = ["uv", "pip", "compile", "--quiet", "--universal", "--no-annotate", "--no-header", "-"]
    text = subprocess.run(command, cwd=ROOT, input=BACKEND, check=True, capture_output=True, text=True).stdout
    return [line.partition(" ;")[0].strip() for line in text.splitlines() if "==" in line]


def write_list(name: str, pins: list[str]) -> None:
    """Put pins into a list of pyproject.toml.

    Raises:
        SystemExit: There is not exactly one list of that name.
    """
    path = ROOT / "pyproject.toml"
    listed = "".join(f'    "{pin}",\n' for pin in pins)
    pattern = re.compile(rf"^{name} = \[\n.*?\]\n", re.DOTALL | re.MULTILINE)
    text, count = pattern.subn(lambda _: f"{name} = [\n{listed}]\n", path.read_text("utf-8"))
    if count != 1:
        raise SystemExit(f"pyproject.toml: expected exactly one list {name}")
    path.write_text(text, "utf-8")


def write_backend(pins: list[str]) -> None:
    """Put the build backend's own pin where every installer reads it.

    Raises:
        SystemExit: There is not exactly one place for it.
    """
    path = ROOT / "pyproject.toml"
    (pin,) = [pin for pin in pins if pin.startswith(f"{BACKEND}==")]
    text, count = re.subn(
        rf'^requires = \["{BACKEND}[^]]*\]$', f'requires = ["{pin}"]', path.read_text("utf-8"), flags=re.M
    )
    if count != 1:
        raise SystemExit(f"pyproject.toml: expected exactly one build-system.requires with {BACKEND}")
    path.write_text(text, "utf-8")


def main() -> None:
    """Write pyproject.toml and requirements.txt."""
    everything = export("--no-hashes", "--all-groups", "--no-group", "cuda13")
    pins = [line for line in everything if not line.startswith(NOT_CONSTRAINED)]
    write_list("constraint-dependencies", pins)
    backend = build_pins()
    write_list("build-constraint-dependencies", backend)
    write_backend(backend)
    requirements = export("--no-default-groups", "--group", "cpu")
    # pip checks every file against these hashes as soon as one stands there; saying so makes it an error if none did.
    header = "# Written by tools/pin.py. Install with: pip install --no-deps --require-hashes -r requirements.txt\n"
    (ROOT / "requirements.txt").write_text(header + "\n".join(requirements) + "\n", "utf-8")
    print(f"{len(pins)} constraints, {sum('==' in line for line in requirements)} requirements")


if __name__ == "__main__":
    main()
