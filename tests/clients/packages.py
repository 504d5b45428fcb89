"""Packages of npm, installed once a session."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

INSTALLED = "MFLUX_NODE_CLIENTS"
"""Names a folder in which packages are kept, where they are not to be installed anew each time."""
SECONDS = 900


def installed(source: Path, temporary: pytest.TempPathFactory) -> Path:
    """Install the packages of a folder, and return the folder that has them beside copies of its files."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("THE CLIENTS FOR NODE DID NOT RUN: install Node 20 or newer, with npm")
    kept = os.environ.get(INSTALLED)
    place = Path(kept) / source.name if kept else temporary.mktemp(source.name)
    place.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.is_file():
            shutil.copy(file, place / file.name)
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"]
    subprocess.run(command, cwd=place, check=True, timeout=SECONDS)
    return place
