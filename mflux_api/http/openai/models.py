"""``/v1/models``: the models that OpenAI's clients may name."""

import time

from quart import Blueprint, Response

from mflux_api.access.keys import Scope
from mflux_api.catalog import Model
from mflux_api.errors import ModelNotFound
from mflux_api.gateway.gateway import Gateway
from mflux_api.http.a1111.checkpoints import usable
from mflux_api.http.openai.names import ModelNames
from mflux_api.http.openai.schemas import ModelItem, ModelsAnswer
from mflux_api.http.operations import Operation, path_parameter
from mflux_api.http.responses import json_response

OPERATIONS = (
    Operation(method="get", path="/v1/models", summary="List the models", scope=Scope.READ, response=ModelsAnswer),
    Operation(
        method="get",
        path="/v1/models/{model_id}",
        summary="One model; OpenAI's own names are the default model",
        scope=Scope.READ,
        response=ModelItem,
        parameters=(path_parameter("model_id"),),
        errors=(ModelNotFound,),
    ),
)


def blueprint(gateway: Gateway, names: ModelNames) -> Blueprint:
    """Build the routes."""
    routes = Blueprint("openai_models", __name__, url_prefix="/v1/models")
    began = int(time.time())

    @routes.get("")
    async def models() -> Response:
        found = await usable(gateway)
        return json_response(ModelsAnswer(data=tuple(_item(each.model.alias, each.model, began) for each in found)))

    @routes.get("/<model_id>")
    async def model(model_id: str) -> Response:
        return json_response(_item(model_id, names.find(model_id, gateway.catalog), began))

    return routes


def _item(name: str, model: Model, began: int) -> ModelItem:
    return ModelItem(id=name, created=began, owned_by=model.repo.partition("/")[0] if model.repo else "local")
