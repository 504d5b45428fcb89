"""A JSON object read by the fields that its reader knows; whatever else it holds is skipped and becomes no objects.

Strangers choose what is in a body. The decoder makes an object of every ``[]`` in it unless it is told what to expect:
63 MB of them cost 16 s and 1.6 GB, and 0.13 s and nothing when they are skipped (two cores of a Xeon, msgspec 0.22).
It holds the interpreter meanwhile, also in a thread, so a large body may be base64 and little else. Of 64 MB that takes
15 ms to skip; the texts are read in slices.
"""

from collections.abc import Iterable, Mapping
from types import UnionType
from typing import Annotated, Any, Final, TypeAlias, Union, get_args, get_origin, get_type_hints

import attrs
import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from mflux_api.errors import InvalidJSON, InvalidParameter
from mflux_api.jobs.encoded_images import LONG_TEXT_BYTES, NotASCII, check_density, read_long_text
from mflux_api.jobs.json_text import as_utf8, explain, half_of_a_character, has_halves, replace_halves
from mflux_api.jobs.request import LARGE
from mflux_api.jobs.unknown_fields import JSONBytes, Unknown, byte_count

Value: TypeAlias = "bool | int | float | str | list[Value] | dict[str, Value] | None"
Object: TypeAlias = "dict[str, Value]"

MAX_FIELD_BYTES: Final = 256 * 1024
"""JSON of one field that holds no image."""
MAX_ITEMS: Final = 64
"""Items of a list whose type names no smaller number."""
OMITTED: Final = "…"
"""Stands for a value that is not read."""


class Fields:
    """The fields that a reader knows, and what it wants of each."""

    def __init__(self, fields: "Mapping[str, Field]") -> None:
        self._fields = dict(fields)
        self._strict = msgspec.json.Decoder(_all_optional(self._fields, forbid_unknown_fields=True))
        self._decoder = msgspec.json.Decoder(_all_optional(self._fields))

    @classmethod
    def of(cls, target: type[Any]) -> "Fields":
        """Return the fields of an attrs class: each limit is that of its annotation."""
        return cls({name: _field(hint) for name, hint in get_type_hints(target, include_extras=True).items()})

    def with_fields(self, more: "Mapping[str, Field]") -> "Fields":
        """Return these and others."""
        return Fields({**self._fields, **more})

    def without(self, *names: str) -> "Fields":
        """Return these without some: they are unknown then."""
        return Fields({name: field for name, field in self._fields.items() if name not in names})

    @property
    def takes_images(self) -> bool:
        """Whether a body of these may be large."""
        return any(field.large for field in self._fields.values())

    def split(self, data: JSONBytes, unknown: Unknown | None = None, *, within: str = "") -> dict[str, Raw]:
        """Return the JSON of each field that is there; of several with one name the last.

        Args:
            data: the JSON of an object.
            unknown: gets what else is in it.
            within: the name of the field that it is the value of.

        Raises:
            InvalidJSON: it is not JSON, or not an object.
        """
        try:
            found, others = self._decode(data)
        except msgspec.ValidationError:
            raise InvalidJSON("The body must be a JSON object") from None
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise explain(error, memoryview(data)) from None
        values = ((name, getattr(found, name)) for name in self._fields)
        parts = {name: value for name, value in values if value is not UNSET}
        if others and unknown is not None:
            unknown.note(data, self.names(), parts, within)
        return parts

    def _decode(self, data: JSONBytes) -> tuple[Any, bool]:
        """Return what was found, and whether there is more."""
        try:
            return self._strict.decode(data), False
        except (msgspec.ValidationError, UnicodeDecodeError):
            return self._decoder.decode(data), True

    def read(self, parts: Mapping[str, Raw], within: str = "", unknown: Unknown | None = None) -> Object:
        """Return the values of the fields whose JSON was found; those that only count as present are ``None``.

        What a field cannot be is not read: a list or an object where neither is expected comes out empty.

        Args:
            parts: what :meth:`split` found.
            within: the name of the field that these are inside of.
            unknown: gets what else is in the objects among the values.

        Raises:
            InvalidJSON: a value is not JSON.
            InvalidParameter: a value is too large, or has too many items.
        """
        unknown = unknown or Unknown()
        return {name: self._fields[name].read(part, within or name, unknown) for name, part in parts.items()}

    def refuse_halves(self, parts: Mapping[str, Raw]) -> None:
        """Refuse the first field with an escape of half a character, unless what it holds has no effect.

        Raises:
            InvalidJSON: there is one.
        """
        for name, part in parts.items():
            field = self._fields[name]
            if not field.only_presence and field.brief is None and has_halves(memoryview(part)):
                raise half_of_a_character(name)

    def field(self, name: str) -> "Field | None":
        """Return what is wanted of a field; ``None`` for one that is not known."""
        return self._fields.get(name)

    def names(self) -> frozenset[str]:
        """Return the names of all."""
        return frozenset(self._fields)


@attrs.frozen(kw_only=True)
class Field:
    """What is wanted of one field."""

    large: bool = False
    """Whether it may be as large as the body: images."""
    most_items: int | None = None
    """For a list: how many it may have; ``None``: it is not a list."""
    fields: Fields | None = None
    """For an object, or a list of objects: what is wanted of it."""
    or_text: bool = False
    """Whether a text may stand in place of the object, as it does in a form."""
    only_presence: bool = False
    """Whether it is enough to know that it is there."""
    brief: int | None = None
    """Bytes up to which any value is read as it stands. A larger one is read by ``fields``; without, it is
    :data:`OMITTED`."""

    @property
    def is_json(self) -> bool:
        """Whether a form has it as JSON, too."""
        return self.fields is not None and not self.or_text

    def read(self, part: Raw, name: str, unknown: Unknown) -> Value:
        """Return the value.

        Args:
            part: its JSON.
            name: what the client calls it, for errors.
            unknown: gets what else is in it, where it is an object.

        Raises:
            InvalidJSON: it is not JSON.
            InvalidParameter: it is too large, or has too many items.
        """
        if self.only_presence:
            return None
        if self.brief is not None and (self.fields is None or byte_count(part) <= self.brief):
            return _brief(part, self.brief)
        size = byte_count(part)
        if size > MAX_FIELD_BYTES and not self.large:
            limit = f"at most {MAX_FIELD_BYTES // 1024} KB of JSON"
            raise InvalidParameter.for_field(name, f"is invalid: expected {limit}", value="…", limit=limit, bytes=size)
        if self.most_items is not None and _begins_with(part, b"["):
            return [self._item(item, name, unknown) for item in _items(part, name, self.most_items)]
        return self._item(part, name, unknown)

    def _item(self, part: Raw, name: str, unknown: Unknown) -> Value:
        if _begins_with(part, b"["):
            return []
        if _begins_with(part, b"{"):
            if self.fields is None:
                return {}
            return self.fields.read(self.fields.split(part, unknown, within=name), name, unknown)
        try:
            if byte_count(part) > LONG_TEXT_BYTES and _begins_with(part, b'"'):
                return read_long_text(memoryview(part)[1:-1])
            scalar: Value = msgspec.json.decode(part)
        except NotASCII:
            limit = "base64 or a data URL"
            raise InvalidParameter.for_field(name, f"is invalid: expected {limit}", value="…", limit=limit) from None
        except msgspec.ValidationError:
            limit = "a number within the range of its type"
            raise InvalidParameter.for_field(name, f"is invalid: expected {limit}", value="…", limit=limit) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise explain(error, memoryview(part), name) from None
        return scalar


SCALAR: Final = Field()
PRESENCE: Final = Field(only_presence=True)


@attrs.frozen
class JSONObject:
    """What was read of a body."""

    values: Object
    """The known fields that are there, by the client's name for them."""
    warnings: tuple[str, ...] = ()
    """Sentences about the fields that are not known, where there are any."""
    texts: bool = False
    """Whether it came as a form, so that numbers and flags are texts."""


def read_object(data: bytes | bytearray, fields: Fields) -> JSONObject:
    """Read the known fields of a body, in UTF-8, UTF-16 or UTF-32, and say which others it has.

    Raises:
        InvalidJSON: it is not JSON, or not an object.
        InvalidParameter: a value is too large, or has too many items.
        BodyTooLarge: it is large and not for its images.
    """
    text, unknown = as_utf8(data), Unknown()
    check_density(text)
    try:
        parts = fields.split(text, unknown)
    except InvalidJSON:
        mended = replace_halves(text)
        if mended is None:
            raise
        # What is not known may hold them, as it may hold anything.
        unknown = Unknown()
        parts = fields.split(mended, unknown)
        fields.refuse_halves(parts)
    return JSONObject(fields.read(parts, unknown=unknown), unknown.warnings())


def _items(part: Raw, name: str, most: int) -> list[Raw]:
    """Count a list's items first: what is beyond the limit is not read."""
    places = _PLACES.decode(part)
    found = [item for item in (getattr(places, place) for place in places.__struct_fields__) if item is not UNSET]
    if len(found) > most:
        count: Value = len(found) if len(found) <= MAX_ITEMS else f"more than {MAX_ITEMS}"
        raise InvalidParameter.for_field(name, f"is invalid: expected at most {most} entries", value=count, limit=most)
    return found


def _all_optional(names: Iterable[str], *, array: bool = False, forbid_unknown_fields: bool = False) -> type[Any]:
    fields: list[tuple[str, Any, Any]] = [(name, Raw | UnsetType, UNSET) for name in names]
    return msgspec.defstruct("Parts", fields, array_like=array, gc=False, forbid_unknown_fields=forbid_unknown_fields)


_PLACES: Final = msgspec.json.Decoder(_all_optional([f"item{index}" for index in range(MAX_ITEMS + 1)], array=True))


def _field(hint: Any) -> Field:
    """Return what is wanted of a value of a type: the parts of a union and of an annotation are looked at together."""
    if get_origin(hint) is Annotated:
        inner, *metas = get_args(hint)
        field, found = _field(inner), [meta for meta in metas if isinstance(meta, Meta)]
        if field.most_items is not None:
            most = [meta.max_length for meta in found if meta.max_length is not None]
            return attrs.evolve(field, most_items=min([*most, MAX_ITEMS]))
        return attrs.evolve(field, large=field.large or LARGE in found)
    if get_origin(hint) in (Union, UnionType):
        kinds = [_field(part) for part in get_args(hint)]
        first = next((kind for kind in kinds if kind != SCALAR), SCALAR)
        plain = [get_args(part)[0] if get_origin(part) is Annotated else part for part in get_args(hint)]
        return attrs.evolve(first, or_text=first.fields is not None and str in plain)
    if get_origin(hint) is tuple:
        return attrs.evolve(_field(get_args(hint)[0]), most_items=MAX_ITEMS)
    if attrs.has(hint):
        fields = Fields.of(hint)
        return Field(fields=fields, large=fields.takes_images)
    return SCALAR


def _brief(part: Raw, most: int) -> Value:
    if byte_count(part) > most:
        return OMITTED
    try:
        value: Value = msgspec.json.decode(part)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return OMITTED
    return value


def _begins_with(part: Raw, mark: bytes) -> bool:
    return memoryview(part)[:1] == mark
