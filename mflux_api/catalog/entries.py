"""The rows of the built-in model table: the 30 aliases of the API document, and a few more."""

from collections.abc import Iterable, Mapping

import attrs

from mflux_api.catalog import sizes
from mflux_api.catalog.model import Family, Model
from mflux_api.catalog.revisions import PINNED
from mflux_api.catalog.sizes import Sizes

_FLUX_NON_COMMERCIAL = "FLUX non-commercial"


@attrs.frozen(kw_only=True)
class _Base:
    alias: str
    repo: str
    label: str
    sizes: Sizes
    stored: tuple[tuple[int, str], ...] = ()
    """Bits and repository of the copies that are quantized already."""
    kept: Mapping[int, float] = attrs.field(factory=dict)
    """Bits that this service quantizes to → size of what it keeps."""
    family: Family = "flux2-klein"
    distilled: bool = True
    licence: str = "Apache-2.0"
    gated: bool = False
    kv_cache: bool = False


_BASES = (
    _Base(
        alias="flux2-klein-4b",
        repo="black-forest-labs/FLUX.2-klein-4B",
        label="Distilled 4B",
        sizes=sizes.KLEIN_4B,
        kept=sizes.KLEIN_4B_KEPT,
        stored=((4, "AITRADER/FLUX2-klein-4B-mlx-4bit"), (8, "AITRADER/FLUX2-klein-4B-mlx-8bit")),
    ),
    _Base(
        alias="flux2-klein-9b",
        repo="black-forest-labs/FLUX.2-klein-9B",
        label="Distilled 9B",
        sizes=sizes.KLEIN_9B,
        kept=sizes.KLEIN_9B_KEPT,
        stored=((4, "AITRADER/FLUX2-klein-9B-mlx-4bit"), (8, "AITRADER/FLUX2-klein-9B-mlx-8bit")),
        licence=_FLUX_NON_COMMERCIAL,
        gated=True,
    ),
    _Base(
        alias="flux2-klein-base-4b",
        repo="black-forest-labs/FLUX.2-klein-base-4B",
        label="Base 4B",
        sizes=sizes.KLEIN_4B,
        kept=sizes.KLEIN_4B_KEPT,
        stored=((4, "AITRADER/FLUX2-klein-base-4B-mlx-4bit"), (8, "AITRADER/FLUX2-klein-base-4B-mlx-8bit")),
        distilled=False,
    ),
    _Base(
        alias="flux2-klein-base-9b",
        repo="black-forest-labs/FLUX.2-klein-base-9B",
        label="Base 9B",
        sizes=sizes.KLEIN_9B,
        kept=sizes.KLEIN_9B_KEPT,
        distilled=False,
        licence=_FLUX_NON_COMMERCIAL,
        gated=True,
    ),
    _Base(
        alias="flux2-dev",
        repo="black-forest-labs/FLUX.2-dev",
        label="Experimental FLUX.2-dev",
        sizes=sizes.DEV,
        kept=sizes.DEV_KEPT,
        family="flux2-dev",
        distilled=False,
        licence=_FLUX_NON_COMMERCIAL,
        gated=True,
    ),
    _Base(
        alias="seedvr2",
        repo="numz/SeedVR2_comfyUI",
        label="Experimental upscaler",
        sizes=sizes.SEEDVR2,
        family="seedvr2",
    ),
    _Base(
        alias="flux2-klein-9b-kv",
        repo="black-forest-labs/FLUX.2-klein-9b-kv",
        label="Distilled 9B for edits with cached references",
        sizes=sizes.KLEIN_9B,
        licence=_FLUX_NON_COMMERCIAL,
        gated=True,
        kv_cache=True,
    ),
)


def _entries(base: _Base) -> Iterable[Model]:
    plain = Model(
        alias=base.alias,
        repo=base.repo,
        base=base.alias,
        description=f"{base.label} model" if base.family != "seedvr2" else base.label,
        family=base.family,
        distilled=base.distilled,
        size_gb=base.sizes.get(None),
        size_source=sizes.source(base.repo),
        licence=base.licence,
        gated=base.gated,
        revision=PINNED.get(base.repo),
        kv_cache=base.kv_cache,
    )
    yield plain
    for bits, repo in base.stored:
        yield attrs.evolve(
            plain,
            alias=f"{base.alias}-mlx-{bits}bit",
            repo=repo,
            description=f"{base.label}, stored in {bits} bits",
            quantization="stored",
            bits=bits,
            size_gb=base.sizes.get(bits),
            size_source=sizes.source(repo),
            gated=False,
            revision=PINNED.get(repo),
        )
    for bits in sorted(base.kept):
        yield attrs.evolve(
            plain,
            alias=f"{base.alias}-{bits}-bit",
            description=f"{base.label}, quantized to {bits} bits on this machine",
            quantization="runtime",
            bits=bits,
            size_gb=base.kept[bits],
            size_source="computed",
        )


_DEMO = Model(
    alias="demo",
    repo="",
    base="demo",
    description="Miniature of the same architecture that comes with the package; nothing to download",
    size_gb=0.04,
    size_source="measured",
    native_size=(256, 256),
    embedded=True,
)

BUILT_IN: tuple[Model, ...] = (
    *(model for base in _BASES for model in _entries(base)),
    _DEMO,
    attrs.evolve(
        _DEMO,
        alias="demo-base",
        base="demo-base",
        description="The same weights with guidance and negative prompts",
        distilled=False,
    ),
)
"""The 30 aliases of the API document, ``flux2-klein-9b-kv``, ``demo`` and ``demo-base``."""
