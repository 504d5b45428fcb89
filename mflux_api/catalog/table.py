"""The table as one service sees it: the built-in rows with a user's own laid over them."""

from collections.abc import Iterable, Iterator

import attrs

from mflux_api.catalog.entries import BUILT_IN
from mflux_api.catalog.model import Model
from mflux_api.catalog.names import SPELLINGS


class Catalog:
    """The models one service knows: the built-in table with the custom entries laid over it."""

    def __init__(self, custom: Iterable[Model] = ()) -> None:
        self._models = {model.alias: model for model in BUILT_IN}
        self._spellings = {spelling: alias for alias, spellings in SPELLINGS.items() for spelling in spellings}
        self._spellings |= {
            model.repo: model.alias for model in BUILT_IN if model.remote and model.quantization != "runtime"
        }
        for entry in custom:
            self._models[entry.alias] = entry
            for built_in in BUILT_IN:
                # A replaced base takes its runtime-quantized aliases along; stored ones are other repositories.
                if built_in.base == entry.alias and built_in.quantization == "runtime":
                    self._models[built_in.alias] = attrs.evolve(
                        entry,
                        alias=built_in.alias,
                        base=entry.alias,
                        description=f"{entry.description}, quantized to {built_in.bits} bits on this machine",
                        quantization="runtime",
                        bits=built_in.bits,
                    )

    def get(self, name: str) -> Model | None:
        """Return the entry for an alias, or for a spelling of it that mflux takes; else ``None``."""
        return self._models.get(name) or self._models.get(self._spellings.get(name, ""))

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def __len__(self) -> int:
        return len(self._models)

    def aliases(self) -> list[str]:
        """All aliases, in the order of the table."""
        return list(self._models)
