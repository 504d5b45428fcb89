"""One row of the model table: its fields, and the rules that follow (steps, guidance, which files)."""

from typing import Literal

import attrs

from mflux_api.catalog.files import MODEL_INDEX, UPSCALER_FILES

Quantization = Literal["none", "stored", "runtime"]
"""Where the weights are quantized: nowhere, already in the repository, or here when they are loaded."""

Family = Literal["flux2-klein", "flux2-dev", "seedvr2"]

SizeSource = Literal["measured", "computed"]
"""Whether the size is that of the released files, or follows from the shapes of the parameters."""


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
    """Size on disk of all components in 10^9 bytes; ``None`` where nothing is known."""
    size_source: SizeSource | None = None
    licence: str = "Apache-2.0"
    gated: bool = False
    """Whether the hub gives it only to accounts that accepted the licence."""
    native_size: tuple[int, int] = (1024, 1024)
    """Width and height the model was made for."""
    embedded: bool = False
    """True for the checkpoint that comes with the package."""
    path: str | None = None
    """Folder of a custom checkpoint."""
    revision: str | None = None
    """Commit, branch or tag of the repository; ``None`` is its main branch."""
    kv_cache: bool = False
    """Made for edits that keep the reference images' keys and values."""

    @property
    def upscales(self) -> bool:
        """Whether it upscales images and generates none."""
        return self.family == "seedvr2"

    @property
    def takes_negative_prompts(self) -> bool:
        """Whether a negative prompt has an effect, at a guidance above 1.0; FLUX.2-dev has no second branch for it."""
        return self.supports_guidance and self.family != "flux2-dev"

    @property
    def supports_guidance(self) -> bool:
        """Whether a guidance above 1.0 has an effect."""
        return not self.distilled and not self.upscales

    @property
    def default_steps(self) -> int | None:
        """Steps when a request names none; ``None`` means ``generation.default_steps``."""
        if self.upscales:
            return 1
        return None if self.distilled else 50

    @property
    def default_guidance(self) -> float:
        """Guidance when a request names none."""
        return 1.0 if self.distilled else 4.0

    @property
    def remote(self) -> bool:
        """Whether its files come from the model hub."""
        return bool(self.repo) and not self.embedded and self.path is None

    @property
    def files(self) -> tuple[str, ...]:
        """Patterns of the repository's files that are needed; everything else is not downloaded."""
        return _FILES[self.family]


_DIFFUSERS_LAYOUT = (
    MODEL_INDEX,
    "scheduler/*.json",
    "vae/*.safetensors",
    "vae/*.json",
    "transformer/*.safetensors",
    "transformer/*.json",
    "text_encoder/*.safetensors",
    "text_encoder/*.json",
    "tokenizer/*",
    "added_tokens.json",
    "chat_template.jinja",
)

_FILES: dict[Family, tuple[str, ...]] = {
    "flux2-klein": _DIFFUSERS_LAYOUT,
    "flux2-dev": _DIFFUSERS_LAYOUT,
    "seedvr2": tuple(UPSCALER_FILES.values()),
}
