"""Hostile variants of valid messages: fields get values at their limits, lists are repeated, bytes are cut.

Random bytes seldom get past a protobuf parser. What changes single fields of a valid message does, and
reaches the checks behind it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

MOST_CHANGES: Final = 4
MOST_REPEATS: Final = 40
INTEGERS: Final = (0, 1, 2, 7, 255, 256, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 1, 10**9, 2**62, 2**63 - 1)
FLOATS: Final = (0.0, -0.0, 1.0, -1.0, 1e-38, 3e38, 1e300, float("inf"), float("-inf"), float("nan"))
TEXTS: Final = (
    "",
    "a",
    "/",
    "a/b/c",
    "*",
    "{}",
    "%2F",
    "..",
    "\x00",
    "é" * 300,
    "x" * 2000,
    "off",
    "log8",
    "f2",
)
_UNSIGNED: Final = {
    FieldDescriptor.TYPE_UINT32: 2**32 - 1,
    FieldDescriptor.TYPE_FIXED32: 2**32 - 1,
    FieldDescriptor.TYPE_UINT64: 2**64 - 1,
    FieldDescriptor.TYPE_FIXED64: 2**64 - 1,
}


def mutated(data: bytes, kind: type[Message], rng: random.Random) -> bytes:
    """`data` with some changes: of fields, or of bytes, sometimes and where it is no message of that kind."""
    if rng.random() < 0.25:
        return mutated_bytes(data, rng)
    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError:
        return mutated_bytes(data, rng)
    parts = list(_parts(message))
    for _ in range(rng.randint(1, MOST_CHANGES)):
        _change(rng.choice(parts), rng)
    try:
        return message.SerializeToString()
    except ValueError:  # it grew beyond what protobuf writes
        return data


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    """`data` with bits turned over, bytes cut out, repeated, or put in."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, MOST_CHANGES)):
        at = rng.randrange(len(changed) + 1)
        how = rng.randrange(5)
        if how == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            del changed[at : at + rng.randint(1, 64)]
        elif how == 2:
            changed[at:at] = changed[at : at + rng.randint(1, 64)]
        elif how == 3:
            changed[at:at] = rng.randbytes(rng.randint(1, 16))
        else:
            del changed[at:]
    return bytes(changed)


def _parts(message: Any) -> Iterator[Any]:
    """The message and every message in it."""
    yield message
    for field, value in message.ListFields():
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            continue
        if _is_map(field):
            continue
        for part in value if field.is_repeated else (value,):
            yield from _parts(part)


def _is_map(field: Any) -> bool:
    return bool(field.message_type is not None and field.message_type.GetOptions().map_entry)


def _change(message: Any, rng: random.Random) -> None:
    """One field of it."""
    fields = message.DESCRIPTOR.fields
    if not fields:
        return
    present = [field for field, _ in message.ListFields()]
    field = rng.choice(present) if present and rng.random() < 0.7 else rng.choice(fields)
    if rng.random() < 0.1:
        message.ClearField(field.name)
    elif _is_map(field):
        _change_map(getattr(message, field.name), field, rng)
    elif field.is_repeated:
        _change_list(getattr(message, field.name), field, rng)
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        getattr(message, field.name).SetInParent()
    else:
        setattr(message, field.name, _value(field, getattr(message, field.name), rng))


def _change_map(entries: Any, field: Any, rng: random.Random) -> None:
    key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
    if value.type != FieldDescriptor.TYPE_MESSAGE:
        for _ in range(rng.choice((1, 1, MOST_REPEATS))):
            entries[_value(key, "k" if key.type == key.TYPE_STRING else 1, rng)] = _value(value, "v", rng)


def _change_list(values: Any, field: Any, rng: random.Random) -> None:
    how = rng.randrange(4)
    if how == 0 and len(values):
        del values[rng.randrange(len(values))]
    elif how == 1 and len(values):
        values.extend([values[rng.randrange(len(values))]] * rng.choice((1, 2, MOST_REPEATS)))
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        values.add()
    elif how == 2 and len(values):
        at = rng.randrange(len(values))
        values[at] = _value(field, values[at], rng)
    else:
        values.append(_value(field, b"", rng))


def _value(field: Any, before: Any, rng: random.Random) -> Any:
    """A value that such a field may hold."""
    kind = field.type
    if kind == FieldDescriptor.TYPE_BYTES:
        return mutated_bytes(before if isinstance(before, bytes) else b"", rng)
    if kind == FieldDescriptor.TYPE_STRING:
        return rng.choice((*TEXTS, before if isinstance(before, str) else "", str(before)[:-1]))
    if kind == FieldDescriptor.TYPE_BOOL:
        return rng.random() < 0.5
    if kind in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
        return rng.choice((*FLOATS, rng.gauss(0, 1e3)))
    if kind == FieldDescriptor.TYPE_ENUM:
        return rng.choice([0, *(value.number for value in field.enum_type.values)])
    return _integer(kind, before, rng)


def _integer(kind: int, before: Any, rng: random.Random) -> int:
    near = [before - 1, before + 1, 2 * before] if isinstance(before, int) else []
    chosen = int(rng.choice((*INTEGERS, *near)))
    if kind in _UNSIGNED:
        return max(0, min(chosen, _UNSIGNED[kind]))
    is_32 = kind in (FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_SINT32, FieldDescriptor.TYPE_SFIXED32)
    most = 2**31 - 1 if is_32 else 2**63 - 1
    signed = chosen if rng.random() < 0.8 else -chosen
    return max(-most - 1, min(signed, most))
