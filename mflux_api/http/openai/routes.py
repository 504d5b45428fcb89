"""Everything under ``/v1``, as the app and ``/openapi.json`` take it: a new module of routes is named here."""

from quart import Blueprint

from mflux_api.gateway.gateway import Gateway
from mflux_api.http.client_calls import ClientCalls
from mflux_api.http.openai import images, models
from mflux_api.http.openai.names import ModelNames
from mflux_api.http.render import Renderer

OPERATIONS = (*models.OPERATIONS, *images.OPERATIONS)


def blueprints(gateway: Gateway, renderer: Renderer, calls: ClientCalls) -> tuple[Blueprint, ...]:
    """Build the routes of every module."""
    names = ModelNames(gateway.settings)
    return models.blueprint(gateway, names), images.blueprint(gateway, renderer, names, calls)
