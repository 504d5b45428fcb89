"""Names of models that OpenAI's clients have built in: they stand for the default model, where the settings say so."""

import logging
import re

from mflux_api.catalog import Catalog, Model
from mflux_api.config import Settings
from mflux_api.errors import ModelNotFound

logger = logging.getLogger("mflux_api")

_DALL_E = re.compile(r"dall-e-[a-z0-9.-]{1,60}")
_BUILT_IN = re.compile(r"(dall-e|gpt-image|chatgpt-image)-[a-z0-9.-]{1,60}")


def is_dall_e(name: str | None) -> bool:
    """Return whether OpenAI itself would answer a call of this model with URLs; no name is DALL-E 2 there."""
    return not name or _DALL_E.fullmatch(name) is not None


class ModelNames:
    """Reads the names of models; one app's."""

    def __init__(self, settings: Settings) -> None:
        self._default = settings.models.default
        self._aliases = settings.openai.aliases
        self._told = False

    def find(self, name: str | None, catalog: Catalog) -> Model:
        """Return the model that a client means.

        Raises:
            ModelNotFound: there is none of that name that makes images.
        """
        model = catalog.get(self.alias_of(name))
        if model is None or model.upscales:
            shown = (name or "")[:64]
            raise ModelNotFound(f"The model '{shown}' does not exist; GET /v1/models lists them", {"model": shown})
        return model

    def alias_of(self, name: str | None) -> str:
        """Return the model that a client means; a name that is not known stays as it is."""
        if not name:
            return self._default
        if not self._aliases or not _BUILT_IN.fullmatch(name):
            return name
        if not self._told:
            self._told = True
            logger.warning(
                "a client asks for OpenAI's model '%s' and gets '%s' (models.default); openai.aliases = false makes "
                "such names an error",
                name,
                self._default,
            )
        return self._default
