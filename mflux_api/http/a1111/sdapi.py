"""Everything under ``/sdapi/v1``, as the app and ``/openapi.json`` take it: a new module of routes is named here."""

from quart import Blueprint

from mflux_api.gateway.gateway import Gateway
from mflux_api.http.a1111 import extras, generation
from mflux_api.http.render import Renderer

OPERATIONS = (*generation.OPERATIONS, *extras.OPERATIONS)


def blueprints(gateway: Gateway, renderer: Renderer) -> tuple[Blueprint, ...]:
    """Build the routes of every module."""
    return generation.blueprint(gateway, renderer), extras.blueprint(gateway)
