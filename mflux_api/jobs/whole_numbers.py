"""Integers as clients write them: ``64.0`` and ``6.4e1`` are 64, wherever a type has an integer."""

import re
from collections.abc import Mapping
from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import attrs

_WRITTEN_NUMBER = re.compile(r"[+-]?[0-9]{1,20}(\.[0-9]{0,20})?([eE][+-]?[0-9]{1,3})?", re.ASCII)


def whole_number(value: Any, *, strict: bool = True) -> Any:
    """Return a number without a fraction as an integer, however it is written; anything else as it is.

    Args:
        value: what a field for integers holds.
        strict: ``False`` also takes a number written as a string.
    """
    if isinstance(value, str) and not strict and _WRITTEN_NUMBER.fullmatch(value.strip()):
        value = float(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def with_integers(value: Any, hint: Any, strict: bool) -> Any:
    """Return a value with :func:`whole_number` in every place where its type has an integer.

    Args:
        value: a value out of JSON.
        hint: what it is to become.
        strict: see :func:`whole_number`.
    """
    shape = _shape(hint)
    if isinstance(value, dict) and shape.fields:
        return {name: with_integers(each, shape.fields.get(name), strict) for name, each in value.items()}
    if isinstance(value, list) and shape.item is not None:
        return [with_integers(each, shape.item, strict) for each in value]
    return whole_number(value, strict=strict or shape.text) if shape.integer else value


@attrs.frozen
class _Shape:
    """Where a type has integers."""

    integer: bool
    text: bool
    """Whether a text is one here, also where numbers may be written as texts."""
    item: Any = None
    """The type of a list's items, where integers are in them."""
    fields: Mapping[str, Any] = attrs.field(factory=dict)
    """The types of an object's fields, where integers are in them."""

    @property
    def has_none(self) -> bool:
        return not self.integer and self.item is None and not self.fields


@cache
def _shape(hint: Any) -> _Shape:
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    item, fields = None, dict[str, Any]()
    for kind in kinds:
        if get_origin(kind) is tuple and not _shape(get_args(kind)[0]).has_none:
            item = get_args(kind)[0]
        elif isinstance(kind, type) and attrs.has(kind):
            fields |= {name: each for name, each in get_type_hints(kind).items() if not _shape(each).has_none}
    return _Shape(int in kinds, str in kinds, item, fields)
