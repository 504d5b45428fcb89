"""``/sdapi/v1/options``: what a client has chosen, for itself alone."""

from quart import Blueprint, Response

from mflux_api.access.keys import Scope
from mflux_api.catalog import Model
from mflux_api.errors import InvalidModel, InvalidParameter, ModelNotDownloaded, ModelNotFound
from mflux_api.gateway.gateway import Gateway
from mflux_api.http.a1111 import checkpoints, no_effect
from mflux_api.http.a1111.client_options import ClientOptions
from mflux_api.http.a1111.discovery_schemas import OptionsChanged, OptionsRequest, OptionsResponse
from mflux_api.http.body import json_object
from mflux_api.http.client_ids import address_id, client_id, cookie_id, hand_out_cookie
from mflux_api.http.operations import BODY_ERRORS, Operation
from mflux_api.http.responses import json_response
from mflux_api.http.security.guard import caller, from_foreign_page
from mflux_api.jobs.json_fields import Fields, Value

PATH = "/sdapi/v1/options"

OPERATIONS = (
    Operation(
        method="get",
        path=PATH,
        summary="What this client has chosen",
        scope=Scope.READ,
        response=OptionsResponse,
    ),
    Operation(
        method="post",
        path=PATH,
        summary="Choose the model of this client's calls; a part of the options, or all of them",
        scope=Scope.GENERATE,
        body=OptionsRequest,
        response=OptionsChanged,
        errors=(*BODY_ERRORS, InvalidModel, ModelNotDownloaded, ModelNotFound),
    ),
)

_FIELDS = Fields.of(OptionsRequest).with_fields(no_effect.SETTINGS_READ)


def blueprint(gateway: Gateway, options: ClientOptions) -> Blueprint:
    """Build the routes."""
    routes = Blueprint("options", __name__)

    @routes.get(PATH)
    async def get_options() -> Response:
        model = gateway.catalog.get(chosen_model(options) or gateway.settings.models.default)
        state = None if model is None else await gateway.read_models(gateway.checkpoints.state, model)
        alias = gateway.settings.models.default if model is None else model.alias
        return json_response(
            OptionsResponse(sd_model_checkpoint=alias, sd_checkpoint_hash="" if state is None else state.sha256 or "")
        )

    @routes.post(PATH)
    async def set_options() -> Response:
        read = await json_object(_FIELDS)
        told = (*no_effect.explain_settings(read.values), *read.warnings)
        response = json_response(OptionsChanged(warnings=told))
        name = read.values.get("sd_model_checkpoint")
        if name not in (None, ""):
            model = await _choosable(gateway, name)
            source = client_id() if caller().key is not None else address_id()
            for client in _set_for(response):
                options.choose(client, model.alias, source=source)
        return response

    return routes


async def _choosable(gateway: Gateway, name: Value) -> Model:
    if not isinstance(name, str):
        raise InvalidParameter.for_field("sd_model_checkpoint", "is invalid: expected a title", limit="a title")
    model = await checkpoints.find(gateway, name)
    if model.upscales:
        raise InvalidModel(
            f"'{model.alias}' upscales images; POST /sdapi/v1/extra-single-image uses it",
            {"model": model.alias, "available_models": gateway.catalog.aliases()},
        )
    await checkpoints.check_usable(gateway, model)
    return model


def chosen_model(options: ClientOptions) -> str | None:
    """Return the model that the current request's client has chosen."""
    if caller().key is not None:
        return options.model_of(client_id())
    return options.model_of(cookie_id(), address_id())


def _set_for(response: Response) -> tuple[str, ...]:
    """Return for whom the current request chooses; a client without a cookie gets one, and need not keep it.

    A page of another origin gets none: it would take the place of the one that this server's own pages have.
    """
    client = client_id()
    if caller().key is not None or cookie_id() is not None or from_foreign_page():
        return (client,)
    return client, hand_out_cookie(response)
