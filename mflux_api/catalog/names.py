"""Other names of the models: the spellings that mflux takes, and the Flux1 names that no release takes any more."""

from collections.abc import Mapping

SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "flux2-klein-4b": ("flux2-klein-4B", "flux2-klein", "klein-4b", "klein-4B"),
    "flux2-klein-9b": ("flux2-klein-9B", "klein-9b", "klein-9B"),
    "flux2-klein-9b-kv": ("flux2-klein-9B-kv", "flux2-klein-9b-KV", "klein-9b-kv", "klein-9B-kv"),
    "flux2-klein-base-4b": (
        "flux2-klein-base-4B",
        "flux2-base-4b",
        "flux2-base-4B",
        "klein-base-4b",
        "klein-base-4B",
    ),
    "flux2-klein-base-9b": (
        "flux2-klein-base-9B",
        "flux2-base-9b",
        "flux2-base-9B",
        "klein-base-9b",
        "klein-base-9B",
    ),
    "seedvr2": ("seedvr2-3b",),
}
"""Alias here → what mflux also calls it. A repository's name is a spelling too; see :class:`Catalog`."""

_FLUX1_NAMES = frozenset({"schnell", "dev", "krea-dev", "dev-krea", "dev-kontext", "kontext"})
_FLUX1_PREFIXES = ("flux1-", "dev-", "schnell-")


def is_flux1(name: str) -> bool:
    """Whether a name belongs to the Flux1 models, which this service does not have."""
    return name in _FLUX1_NAMES or name.startswith(_FLUX1_PREFIXES)
