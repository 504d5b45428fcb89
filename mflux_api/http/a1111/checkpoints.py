"""Checkpoints as A1111's clients name them: by title, file name or hash; here a title is the alias of a model."""

import re
from collections.abc import Iterable
from contextlib import suppress

import attrs

from mflux_api.catalog import Model
from mflux_api.catalog.lookup import find_model, not_downloaded
from mflux_api.catalog.names import is_flux1
from mflux_api.errors import InvalidModel, shorten_value
from mflux_api.gateway.gateway import Gateway
from mflux_api.storage.checkpoints import CheckpointState

_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".gguf")
_HASH_BEHIND = re.compile(r"\[[0-9a-fA-F]{6,64}\]$")
_HASH = re.compile(r"[0-9a-f]{8,64}")


@attrs.frozen
class Checkpoint:
    """A model that generates, and its files."""

    model: Model
    state: CheckpointState

    @property
    def title(self) -> str:
        """What clients show and send back: it is the same whether the files are on disk or not."""
        return self.model.alias


async def usable(gateway: Gateway) -> tuple[Checkpoint, ...]:
    """Return the models that a request may name here: those on disk first, the default before all others."""
    downloads, default = gateway.settings.models.auto_download, gateway.settings.models.default

    def read() -> tuple[Checkpoint, ...]:
        models = (model for model in gateway.catalog if not model.upscales)
        found = (Checkpoint(model, gateway.checkpoints.state(model)) for model in models)
        # A path that is not there cannot be downloaded either.
        return tuple(each for each in found if each.state.downloaded or (downloads and each.model.remote))

    found = await gateway.read_models(read)
    return tuple(sorted(found, key=lambda each: (each.title != default, not each.state.downloaded)))


async def find(gateway: Gateway, name: str) -> Model:
    """Return the model that a client means by a title, an alias, a file's name or a hash.

    Raises:
        InvalidModel: it means none.
        ModelNotFound: it is a Flux1 model's name.
    """
    plain = plain_name(name, gateway.catalog.aliases())
    model = gateway.catalog.get(plain)
    if model is not None:
        return model
    digest = plain.lower()
    if _HASH.fullmatch(digest):
        for each in await usable(gateway):
            if (each.state.sha256 or "").startswith(digest):
                return each.model
    if is_flux1(plain):
        return find_model(plain, gateway.catalog)
    raise InvalidModel(
        "No checkpoint has this title; GET /sdapi/v1/sd-models lists them",
        {"model": shorten_value(name), "available_models": gateway.catalog.aliases()},
    )


async def check_usable(gateway: Gateway, model: Model) -> None:
    """Check that calls may name a model, as they may each of :func:`usable`.

    Raises:
        ModelNotDownloaded: it is not on disk, and is not downloaded on its first use.
    """
    if gateway.settings.models.auto_download and model.remote:
        return
    state = await gateway.read_models(gateway.checkpoints.state, model)
    if not state.downloaded:
        raise not_downloaded(model)


async def alias_of(gateway: Gateway, name: str) -> str:
    """Return the alias that a client's name of a checkpoint means; what means none stays as it is."""
    plain = plain_name(name, gateway.catalog.aliases())
    if gateway.catalog.get(plain) is None and _HASH.fullmatch(plain.lower()):
        with suppress(InvalidModel):
            return (await find(gateway, plain)).alias
    return plain


def plain_name(name: str, aliases: Iterable[str]) -> str:
    """Return a client's name of a checkpoint without what A1111 puts behind it, where that makes an alias of it."""
    known = {alias.lower(): alias for alias in aliases}
    short = _HASH_BEHIND.sub("", name.strip()).rstrip()
    for each in (short, *(short.removesuffix(suffix) for suffix in _SUFFIXES)):
        if each.lower() in known:
            return known[each.lower()]
    return name
