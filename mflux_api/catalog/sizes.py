"""How large the models are: all components, in 10^9 bytes."""

from collections.abc import Mapping

from mflux_api.catalog.model import SizeSource

Sizes = Mapping[int | None, float]
"""Bits (``None``: not quantized) → size."""

KLEIN_4B: Sizes = {None: 15.96, 8: 8.56, 6: 6.58, 4: 4.61, 3: 3.62}
KLEIN_9B: Sizes = {None: 33.46, 8: 17.85, 6: 13.69, 4: 9.53, 3: 7.45}
# The text encoder's share follows from Mistral Small 3.2's published shapes.
DEV: Sizes = {None: 112.64, 8: 59.45, 4: 31.55}
SEEDVR2: Sizes = {None: 7.28}


def source(repo: str, sizes: Sizes) -> SizeSource:
    """Return where a size comes from: only Klein's own checkpoints, and what mflux made of them, were weighed."""
    weighed = repo.startswith("black-forest-labs/FLUX.2-klein") and not repo.endswith("-kv")
    return "measured" if weighed and sizes is not DEV else "computed"
