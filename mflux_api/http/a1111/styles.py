"""``/sdapi/v1/prompt-styles``, and what a call's ``styles`` make of its prompts."""

from collections.abc import Sequence
from typing import Any

import attrs
from quart import Blueprint, Response

from mflux_api.access.keys import Scope
from mflux_api.errors import InvalidParameter
from mflux_api.gateway.gateway import Gateway
from mflux_api.http.operations import Operation
from mflux_api.http.responses import json_response
from mflux_api.ipc.printable import printable
from mflux_api.jobs.json_fields import OMITTED
from mflux_api.jobs.request import MAX_PROMPT
from mflux_api.storage.prompt_styles import PromptStyle, PromptStyles, PromptTooLong, apply_style

PATH = "/sdapi/v1/prompt-styles"
MAX_NAMED = 32
_MAX_NAME_SHOWN = 48
_MOST_TOLD = 3


@attrs.frozen(kw_only=True)
class StyleItem:
    """One of ``GET /sdapi/v1/prompt-styles``."""

    name: str
    """What ``styles`` of a call takes."""
    prompt: str
    negative_prompt: str


OPERATIONS = (
    Operation(
        method="get",
        path=PATH,
        summary="The prompt styles of generation.styles_file",
        scope=Scope.READ,
        response=StyleItem,
        is_list=True,
    ),
)


class StyledPrompts:
    """Applies the styles of one app."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._styles = PromptStyles(gateway.settings.generation.styles_file)

    async def all(self) -> tuple[PromptStyle, ...]:
        """Return the styles that there are now."""
        return await self._gateway.read_images(self._styles.read)

    async def apply(self, fields: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Put a call's styles into its prompts; return their names, and what is to be said of those that are none.

        Raises:
            InvalidParameter: the styles are not names, or too many, or make a prompt too long.
        """
        names = _names(fields.get("styles"))
        if not names:
            return (), ()
        known = {style.name: style for style in await self.all()}
        used = [known[name] for name in names if name in known]
        for field in ("prompt", "negative_prompt"):
            text = fields.get(field)
            if text is None or isinstance(text, str):
                styled = text or ""
                for style in used:
                    styled = _apply(style, styled, field)
                fields[field] = styled or text
        missing = [printable(name, _MAX_NAME_SHOWN) for name in names if name not in known]
        told = [f"'styles': there is no style '{name}'; GET {PATH} lists them" for name in missing[:_MOST_TOLD]]
        if len(missing) > _MOST_TOLD:
            told.append(f"'styles': {len(missing) - _MOST_TOLD} more are not there")
        return tuple(style.name for style in used), tuple(told)


def blueprint(styled: StyledPrompts) -> Blueprint:
    """Build the route."""
    routes = Blueprint("styles", __name__)

    @routes.get(PATH)
    async def prompt_styles() -> Response:
        styles = await styled.all()
        items = (StyleItem(name=each.name, prompt=each.prompt, negative_prompt=each.negative_prompt) for each in styles)
        return json_response(tuple(items))

    return routes


def _apply(style: PromptStyle, text: str, field: str) -> str:
    # A prompt that is too long without styles is left for an error of its own.
    if len(text) > MAX_PROMPT:
        return text
    try:
        return apply_style(text, getattr(style, field), most=MAX_PROMPT)
    except PromptTooLong:
        limit = f"a '{field}' of at most {MAX_PROMPT} characters with them"
        raise InvalidParameter.for_field("styles", f"is invalid: expected {limit}", limit=limit) from None


def _names(value: Any) -> Sequence[str]:
    if isinstance(value, str) and value != OMITTED:
        value = [value]
    if value in (None, {}):
        return ()
    if not isinstance(value, list) or not all(isinstance(name, str | None) for name in value):
        limit = "a list of names"
        raise InvalidParameter.for_field("styles", f"is invalid: expected {limit}", limit=limit)
    # What A1111's page sends for "no style".
    names = [name for name in value if name is not None and name.strip() not in ("", "None")]
    if len(names) > MAX_NAMED:
        limit = f"at most {MAX_NAMED} names"
        raise InvalidParameter.for_field("styles", f"is invalid: expected {limit}", value=len(names), limit=limit)
    return names
