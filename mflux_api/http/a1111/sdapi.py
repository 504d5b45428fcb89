"""Everything of A1111's API, as the app and ``/openapi.json`` take it: a new module of routes is named here."""

from collections.abc import Mapping

from quart import Blueprint

from mflux_api.gateway.gateway import Gateway
from mflux_api.http.a1111 import discovery, extras, generation, login, options, png_info, progress, residency, styles
from mflux_api.http.a1111.client_options import ClientOptions
from mflux_api.http.browser_files import BrowserFile
from mflux_api.http.client_calls import ClientCalls
from mflux_api.http.render import Renderer
from mflux_api.http.waits import Waits

OPERATIONS = (
    *generation.OPERATIONS,
    *extras.OPERATIONS,
    *options.OPERATIONS,
    *discovery.OPERATIONS,
    *residency.OPERATIONS,
    *login.OPERATIONS,
    *progress.OPERATIONS,
    *png_info.OPERATIONS,
    *styles.OPERATIONS,
)


def blueprints(
    gateway: Gateway, renderer: Renderer, calls: ClientCalls, waits: Waits, pages: Mapping[str, BrowserFile]
) -> tuple[Blueprint, ...]:
    """Build the routes of every module."""
    chosen, styled = ClientOptions(), styles.StyledPrompts(gateway)
    return (
        generation.blueprint(gateway, renderer, chosen, calls, waits, styled),
        extras.blueprint(gateway, calls),
        options.blueprint(gateway, chosen),
        discovery.blueprint(gateway, chosen, pages),
        residency.blueprint(gateway, chosen),
        login.blueprint(),
        progress.blueprint(calls),
        png_info.blueprint(gateway),
        styles.blueprint(styled),
    )
