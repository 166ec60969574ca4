"""Protobuf messages → plain values for JSON output: every field present, enums as lower-case words."""

from __future__ import annotations

from typing import Any


def plain(message: Any) -> dict[str, Any]:
    """A message as a dictionary, in the order of its proto."""
    return {field.name: _value(field, getattr(message, field.name)) for field in message.DESCRIPTOR.fields}


def word(message: Any, field_name: str) -> str:
    """An enum field's value as a word: ENDPOINT_ROLE_PRIMARY is "primary"."""
    field = message.DESCRIPTOR.fields_by_name[field_name]
    return _word(field, getattr(message, field_name))


def _value(field: Any, value: Any) -> Any:
    if field.is_repeated:
        return [_single(field, item) for item in value]
    return _single(field, value)


def _single(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return plain(value)
    if field.enum_type is not None:
        return _word(field, value)
    return value


def _word(field: Any, number: int) -> str:
    if number == 0:
        return "unknown"  # "unspecified" is protobuf's word, not an operator's
    known = field.enum_type.values_by_number.get(number)
    if known is None:
        return str(number)
    # ENDPOINT_ROLE_UNSPECIFIED tells how long the prefix is that all members share.
    prefix = len(field.enum_type.values_by_number[0].name) - len("UNSPECIFIED")
    return str(known.name)[prefix:].lower()
