"""The files that carry a stage from one training run to the next."""

from pathlib import Path
from typing import Any

import torch


def save_checkpoint(file: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    torch.save(content, partial)
    partial.replace(file)


def load_checkpoint(file: Path, device: torch.device) -> dict[str, Any] | None:
    """Read a checkpoint onto ``device``; None where there is no such file."""
    if not file.is_file():
        return None
    content: dict[str, Any] = torch.load(file, map_location=device, weights_only=True)
    return content
