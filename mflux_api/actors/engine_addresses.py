"""The two actors of one engine, as other actors know them."""

import attrs

from mflux_api.actors import messages as m
from mflux_api.actors.mailbox import Address


@attrs.frozen(kw_only=True)
class EngineAddresses:
    """Where to ask for a model, and where to run."""

    loader: Address[m.LoaderMessage]
    generator: Address[m.GeneratorMessage]
