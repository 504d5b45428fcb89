"""How large the models are: all components, in 10^9 bytes."""

from collections.abc import Mapping

from mflux_api.catalog.model import SizeSource

Sizes = Mapping[int | None, float]
"""Bits (``None``: not quantized) → size."""

KLEIN_4B: Sizes = {None: 15.96, 8: 8.56, 4: 4.61}
KLEIN_9B: Sizes = {None: 33.46, 8: 17.85, 4: 9.53}
# The text encoder's share follows from Mistral Small 3.2's published shapes.
DEV: Sizes = {None: 112.64}
SEEDVR2: Sizes = {None: 7.28}

KLEIN_4B_KEPT: Mapping[int, float] = {8: 7.59, 6: 5.84, 4: 4.10, 3: 3.22}
"""This and the next two: what this service keeps when it quantizes, without the text encoder's layers that no prompt
needs (9 of Qwen3's 36, 10 of Mistral's 40, and what sees images)."""
KLEIN_9B_KEPT: Mapping[int, float] = {8: 16.01, 6: 12.28, 4: 8.55, 3: 6.69}
DEV_KEPT: Mapping[int, float] = {8: 52.83, 4: 28.05}


def source(repo: str) -> SizeSource:
    """Return where a size comes from: only the sizes of Klein's own files were looked up."""
    weighed = repo.startswith("black-forest-labs/FLUX.2-klein") and not repo.endswith("-kv")
    return "measured" if weighed else "computed"
