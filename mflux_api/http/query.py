"""Parameters of an address: reading them, and saying what is wrong with them."""

from itertools import islice

from quart import request

from mflux_api.errors import InvalidParameter
from mflux_api.http.security.tokens import SECRET_PARAMETERS
from mflux_api.jobs.unknown_fields import MAX_NAMES, FieldName, explain

MAX_DIGITS = 9


def unknown_parameters(*known: str) -> tuple[str, ...]:
    """Return what is said of parameters in the current address that neither a route nor the check before it knows."""
    names = [
        FieldName(name)
        for name in islice(request.args, MAX_NAMES)
        if name not in known and name not in SECRET_PARAMETERS
    ]
    return explain(names, {"": known})


def invalid_parameter(field: str, value: str, limit: str) -> InvalidParameter:
    """Return the error for a parameter that is not what was expected."""
    return InvalidParameter.for_field(field, f"is invalid: expected {limit}", value=value[:64], limit=limit)


def number(text: str) -> int | None:
    """Return the whole number in a text; ``None`` for none, or a larger one than any that means something."""
    # Measured first: int() itself refuses thousands of digits, with an error of its own.
    return int(text) if text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS else None


def number_parameter(name: str, least: int, most: int) -> int | None:
    """Return a parameter of the current address as a number; ``None`` where it is not there.

    Raises:
        InvalidParameter: it is no whole number, or out of its range.
    """
    text = request.args.get(name)
    if text is None:
        return None
    found = number(text)
    if found is None or not least <= found <= most:
        raise invalid_parameter(name, text, f"{least} to {most}")
    return found
