"""The model table: pure data. What each alias is, where it comes from and which rules it follows."""

from collections.abc import Iterable, Iterator
from typing import Literal

import attrs

Quantization = Literal["none", "stored", "runtime"]
"""Where the weights are quantized: nowhere, already in the repository, or here when they are loaded."""

Family = Literal["flux2-klein", "flux2-dev", "seedvr2"]

_FLUX1_NAMES = frozenset({"schnell", "dev", "krea-dev", "dev-krea", "dev-kontext", "kontext"})
_FLUX1_PREFIXES = ("flux1-", "dev-", "schnell-")


@attrs.frozen
class Model:
    """One entry of the table."""

    alias: str
    repo: str
    """The repository on the model hub; empty for the embedded checkpoint and for custom folders."""
    base: str
    """The alias whose architecture and rules this one shares."""
    description: str
    family: Family = "flux2-klein"
    distilled: bool = True
    """Distilled models always run at guidance 1.0."""
    quantization: Quantization = "none"
    bits: int | None = None
    size_gb: float | None = None
    """Real size on disk of all components; ``None`` where nobody measured it."""
    licence: str = "Apache-2.0"
    native_size: tuple[int, int] = (1024, 1024)
    """Width and height the model was made for."""
    embedded: bool = False
    """True for the checkpoint that comes with the package."""
    path: str | None = None
    """Folder of a custom checkpoint."""
    revision: str | None = None

    @property
    def supports_guidance(self) -> bool:
        """Whether a guidance above 1.0 has an effect."""
        return not self.distilled and self.family != "seedvr2"

    @property
    def default_steps(self) -> int | None:
        """Steps when a request names none; ``None`` means ``generation.default_steps``."""
        return None if self.distilled else 50

    @property
    def default_guidance(self) -> float:
        """Guidance when a request names none."""
        return 1.0 if self.distilled else 4.0


@attrs.frozen
class _Base:
    alias: str
    repo: str
    label: str
    sizes: dict[int | None, float]
    stored: dict[int, str]
    runtime_bits: tuple[int, ...] = (3, 4, 6, 8)
    family: Family = "flux2-klein"
    distilled: bool = True
    licence: str = "Apache-2.0"


_SIZES_4B = {None: 15.96, 8: 8.56, 6: 6.58, 4: 4.61, 3: 3.62}
_SIZES_9B = {None: 33.46, 8: 17.85, 6: 13.69, 4: 9.53, 3: 7.45}
_FLUX_NC = "FLUX non-commercial"

_BASES = (
    _Base(
        "flux2-klein-4b",
        "black-forest-labs/FLUX.2-klein-4B",
        "Distilled 4B",
        _SIZES_4B,
        {4: "AITRADER/FLUX2-klein-4B-mlx-4bit", 8: "AITRADER/FLUX2-klein-4B-mlx-8bit"},
    ),
    _Base(
        "flux2-klein-9b",
        "black-forest-labs/FLUX.2-klein-9B",
        "Distilled 9B",
        _SIZES_9B,
        {4: "AITRADER/FLUX2-klein-9B-mlx-4bit", 8: "AITRADER/FLUX2-klein-9B-mlx-8bit"},
        licence=_FLUX_NC,
    ),
    _Base(
        "flux2-klein-base-4b",
        "black-forest-labs/FLUX.2-klein-base-4B",
        "Base 4B",
        _SIZES_4B,
        {4: "AITRADER/FLUX2-klein-base-4B-mlx-4bit", 8: "AITRADER/FLUX2-klein-base-4B-mlx-8bit"},
        distilled=False,
    ),
    _Base(
        "flux2-klein-base-9b",
        "black-forest-labs/FLUX.2-klein-base-9B",
        "Base 9B",
        _SIZES_9B,
        {},
        distilled=False,
        licence=_FLUX_NC,
    ),
    _Base(
        "flux2-dev",
        "black-forest-labs/FLUX.2-dev",
        "Experimental FLUX.2-dev",
        {},
        {},
        runtime_bits=(4, 8),
        family="flux2-dev",
        distilled=False,
        licence=_FLUX_NC,
    ),
)


def _entries(base: _Base) -> Iterable[Model]:
    plain = Model(
        alias=base.alias,
        repo=base.repo,
        base=base.alias,
        description=f"{base.label} model",
        family=base.family,
        distilled=base.distilled,
        size_gb=base.sizes.get(None),
        licence=base.licence,
    )
    yield plain
    for bits, repo in base.stored.items():
        yield attrs.evolve(
            plain,
            alias=f"{base.alias}-mlx-{bits}bit",
            repo=repo,
            description=f"{base.label}, stored in {bits} bits",
            quantization="stored",
            bits=bits,
            size_gb=base.sizes.get(bits),
        )
    for bits in base.runtime_bits:
        yield attrs.evolve(
            plain,
            alias=f"{base.alias}-{bits}-bit",
            description=f"{base.label}, quantized to {bits} bits on this machine",
            quantization="runtime",
            bits=bits,
            size_gb=base.sizes.get(bits),
        )


_DEMO = Model(
    alias="demo",
    repo="",
    base="demo",
    description="Embedded miniature of the same architecture; nothing to download",
    size_gb=0.03,
    native_size=(256, 256),
    embedded=True,
)

BUILT_IN: tuple[Model, ...] = (
    *(model for base in _BASES for model in _entries(base)),
    Model(
        alias="seedvr2",
        repo="numz/SeedVR2_comfyUI",
        base="seedvr2",
        description="Experimental upscaler",
        family="seedvr2",
    ),
    _DEMO,
    attrs.evolve(
        _DEMO,
        alias="demo-base",
        base="demo-base",
        description="Embedded miniature that takes guidance and negative prompts",
        distilled=False,
    ),
)
"""The 30 aliases of the API document, then ``demo`` and ``demo-base``."""


def is_flux1(name: str) -> bool:
    """Whether a name belongs to the Flux1 models, which this service does not have."""
    return name in _FLUX1_NAMES or name.startswith(_FLUX1_PREFIXES)


class Catalog:
    """The models one service knows: the built-in table with the custom entries laid over it."""

    def __init__(self, custom: Iterable[Model] = ()) -> None:
        self._models = {model.alias: model for model in BUILT_IN}
        for entry in custom:
            self._models[entry.alias] = entry
            for alias, model in list(self._models.items()):
                # A replaced base takes its runtime-quantized aliases along; stored ones are other repositories.
                if alias != entry.alias and model.base == entry.alias and model.quantization == "runtime":
                    self._models[alias] = attrs.evolve(
                        model, repo=entry.repo, path=entry.path, revision=entry.revision, size_gb=None
                    )

    def get(self, alias: str) -> Model | None:
        """Return the entry for an alias, or ``None``."""
        return self._models.get(alias)

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def __len__(self) -> int:
        return len(self._models)

    def aliases(self) -> list[str]:
        """All aliases, in the order of the table."""
        return list(self._models)
