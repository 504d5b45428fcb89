"""Parameters of an address: reading them, and saying what is wrong with them."""

from itertools import islice

from quart import request

from mflux_api.errors import InvalidParameter
from mflux_api.http.security.tokens import SECRET_PARAMETERS
from mflux_api.jobs.unknown_fields import MAX_NAMES, FieldName, explain


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
