"""Finding the model that a request names, and the errors where it cannot be had."""

from mflux_api.catalog.model import Model
from mflux_api.catalog.names import is_flux1
from mflux_api.catalog.table import Catalog
from mflux_api.errors import InvalidModel, ModelNotDownloaded, ModelNotFound, shorten_value


def find_model(alias: str, catalog: Catalog) -> Model:
    """Return the catalog entry that a generation request names.

    Raises:
        ModelNotFound: the name is a Flux1 model's.
        InvalidModel: no model has this name.
    """
    model = catalog.get(alias)
    if model is not None:
        return model
    if is_flux1(alias):
        raise ModelNotFound(
            f"Model '{shorten_value(alias)}' not found. Flux1 models removed. Use flux2-klein-4b or flux2-klein-9b"
        )
    raise InvalidModel(
        "Invalid model specified", {"model": shorten_value(alias), "available_models": catalog.aliases()}
    )


def not_downloaded(model: Model) -> ModelNotDownloaded:
    """Return the error for a model that is not on disk and may not be downloaded unasked."""
    return ModelNotDownloaded(
        f"Model '{model.alias}' is not on disk and models.auto_download is off; run "
        f"`mflux-api models download {model.alias}` or POST /api/v1/models/{model.alias}/download first",
        {
            "model": model.alias,
            "command": f"mflux-api models download {model.alias}",
            "endpoint": f"POST /api/v1/models/{model.alias}/download",
        },
    )
