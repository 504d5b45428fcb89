"""A JSON object becomes a request: one conversion, text checked, and errors that name the client's own field."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import attrs
import msgspec
from msgspec import Meta

from mflux_api.errors import InvalidParameter, shorten_value
from mflux_api.jobs.ignored import asked_twice, asks, of_other_kind
from mflux_api.jobs.request import NOT_OF_UPSCALERS, ONLY_OF_UPSCALERS, GenerateRequest
from mflux_api.jobs.whole_numbers import with_integers

T = TypeVar("T")


def convert(
    body: Mapping[str, Any], target: type[T], *, strict: bool = True, names: Mapping[str, str] | None = None
) -> T:
    """Convert a JSON object to a request class; nulls are absent, unknown fields are ignored, ``64.0`` is an integer.

    Args:
        body: the decoded JSON object.
        target: a frozen attrs class whose annotations carry the limits.
        strict: ``False`` also takes numbers written as strings, which A1111's clients send.
        names: what the client calls a field, where it has a name of its own; errors use it.

    Raises:
        InvalidParameter: a field is missing, of the wrong type or outside its limits.
    """
    known = {field.name for field in attrs.fields(target)}  # type: ignore[arg-type]
    cleaned = {name: _clean(name, value) for name, value in body.items() if name in known and value is not None}
    for name in ("prompt", "negative_prompt"):
        if isinstance(text := cleaned.get(name), str) and not _is_unicode(text):
            raise InvalidParameter.for_field(
                name, "is invalid: expected Unicode text without lone surrogates", value="…", limit="Unicode text"
            )
    cleaned = with_integers(cleaned, target, strict)
    try:
        return msgspec.convert(cleaned, target, strict=strict)
    except msgspec.ValidationError as error:
        raise _invalid(str(error), cleaned, target, names or {}) from None


@attrs.frozen(kw_only=True)
class Asked:
    """A request as a client wrote it."""

    request: GenerateRequest
    names: Mapping[str, str] = attrs.field(factory=dict)
    """What the client calls our fields, where it has a name of its own."""
    warnings: tuple[str, ...] = ()
    """Sentences about fields that were left out."""


def from_body(
    body: Mapping[str, Any],
    *,
    upscales: Callable[[Any], bool],
    strict: bool = True,
    aliases: Mapping[str, str],
) -> Asked:
    """Read a generation request from a JSON object; a field that is not there is looked for under its other name.

    Args:
        body: the decoded JSON object.
        upscales: whether what ``model`` holds, if anything, names an upscaler.
        strict: see :func:`convert`.
        aliases: our fields' other names.

    Raises:
        InvalidParameter: a field is missing, of the wrong type or outside its limits.
    """
    fields = dict(body)
    names: dict[str, str] = {}
    twice = list[str]()
    for ours, theirs in aliases.items():
        if fields.get(ours) in (None, ""):
            fields[ours] = fields.get(theirs)
            names[ours] = theirs
        elif fields.get(theirs) not in (None, "", fields[ours]):
            twice.append(asked_twice(theirs, ours))
    upscaler = upscales(fields.get("model"))
    values = {name: fields.pop(name, None) for name in (NOT_OF_UPSCALERS if upscaler else ONLY_OF_UPSCALERS)}
    without = [names.get(name, name) for name, value in values.items() if asks(value)]
    request = convert(fields, GenerateRequest, strict=strict, names=names)
    return Asked(request=request, names=names, warnings=(*twice, *of_other_kind(without, upscales=upscaler)))


def _clean(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        # A null is an absent field there, too.
        return {inner: each for inner, each in value.items() if each is not None}
    return value.strip() if name == "prompt" and isinstance(value, str) else value


def _invalid(message: str, body: Mapping[str, Any], target: type[Any], names: Mapping[str, str]) -> InvalidParameter:
    # Such as "Expected `int` <= 200 - at `$.steps`", or "Object missing required field `image`".
    _, is_missing, missing = message.partition("missing required field `")
    if is_missing:
        name, _, place = missing.partition("`")
        within = place.partition("`$.")[2].partition("`")[0]
        if within and "[" not in within:
            return InvalidParameter.for_field(within, f"is invalid: expected '{name}' in it", limit=f"'{name}'")
        return InvalidParameter.for_field(name, "is required", limit="required")
    reason, _, path = message.partition(" - at `$.")
    field = path.partition("`")[0].partition("[")[0].partition(".")[0] or "body"
    reason = reason.replace("`", "").replace(" | null", "").removeprefix("Expected ")
    if reason.startswith("Invalid enum value"):
        reason = "one of " + ", ".join(_choices(target, field))
    inner = path.partition("`")[0].removeprefix(field).removeprefix(".")
    held = body.get(field)
    if isinstance(held, Mapping) and inner in held:
        held = held[inner]
    # A webhook's address may hold a secret of its receiver's.
    value = "…" if "prompt" in field or field == "webhook" else shorten_value(held)
    if isinstance(value, float) and reason == "int, got float":
        reason = f"a whole number, got {value!r}"
    shown = names.get(field, field)
    return InvalidParameter.for_field(
        shown,
        f"is invalid: expected {reason}" + (f" in '{inner}'" if isinstance(body.get(field), Mapping) and inner else ""),
        value=value,
        limit=reason.partition(", got")[0],
        **_bounds(target, field),
    )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parts(target: type[Any], field: str) -> tuple[Any, ...]:
    """Return a field's type, and what it is a union of."""
    hint = get_type_hints(target, include_extras=True).get(field)
    return (hint, *getattr(hint, "__args__", ()))


def _choices(target: type[Any], field: str) -> list[str]:
    return [str(name) for part in _parts(target, field) if get_origin(part) is Literal for name in get_args(part)]


def _bounds(target: type[Any], field: str) -> dict[str, Any]:
    metas = (meta for candidate in _parts(target, field) for meta in getattr(candidate, "__metadata__", ()))
    names = {"ge": "minimum", "le": "maximum", "multiple_of": "multiple_of", "max_length": "max_length"}
    return {
        label: getattr(meta, name)
        for meta in metas
        if isinstance(meta, Meta)
        for name, label in names.items()
        if getattr(meta, name) is not None
    }


def validate(request: GenerateRequest) -> GenerateRequest:
    """Check a request made in Python against the same limits as one that came over HTTP, field by field.

    Raises:
        InvalidParameter: a field is of the wrong type or outside its limits.
    """
    return convert(attrs.asdict(request, filter=lambda _, value: value is not None), GenerateRequest)
