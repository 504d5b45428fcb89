"""Random checkpoints large enough to measure, and a process of its own for each measurement."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from mflux_api.engine.demo.layout import CheckpointShape
from mflux_api.engine.demo.random_checkpoint import write_random_checkpoint

MEDIUM = CheckpointShape(
    double_blocks=2,
    single_blocks=4,
    heads=12,
    text_width=512,
    text_heads=8,
    text_key_value_heads=4,
    text_mlp_width=1536,
    text_layers=8,
    text_out_layers=(2, 4, 6),
)
"""About 90 million parameters."""

BALANCED = attrs.evolve(
    MEDIUM,
    double_blocks=5,
    single_blocks=12,
    text_width=1024,
    text_mlp_width=4096,
    text_layers=12,
    text_out_layers=(4, 8, 11),
)
"""A text encoder nearly as large as the transformer, as in FLUX.2 Klein; 0.7 GB on disk."""

LARGE = attrs.evolve(MEDIUM, double_blocks=8, single_blocks=19, heads=16, text_width=1024, text_mlp_width=3072)
"""More than 1 GB on disk."""


def write(folder: Path, shape: CheckpointShape, seed: int = 0) -> float:
    """Write a checkpoint in bfloat16 and return its size in GB."""
    write_random_checkpoint(folder, shape, seed=seed)
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e9


def measure(module: str, arguments: Sequence[object]) -> dict[str, Any]:
    """Run ``python -m module`` with arguments, in a fresh process, and return the JSON object on its last line."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
