"""Random messages of any type, from its descriptor: fields set or not, with values at the edges of their types. Seeded.

A message that is nothing but random is refused at its first field. So most are made from a good one by changing a few
fields: those come deep into the doors.
"""

from random import Random
from typing import Any, Final, cast

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

DEPTH_MAX: Final = 6
TEXTS: Final = (
    "", "a", "*", "ä", "\0", "x" * 5_000, "v\r\nx", "namespaces/default", "namespaces/default/jobs/a",
    "namespaces/default/jobs/a/executions/x:1", "*/5 * * * *", "0 0 29 2 1#5", "0 0 L * *", "@daily",
    "Europe/Berlin", "America/Sao_Paulo", "2027-01-01", "2027-03-28T02:30:00", "https://127.0.0.1:65001/", "GET",
    "http://127.0.0.1:65001/", "content-type", "state = PAUSED", 'labels.a = "b"', "(" * 3_000,
    "NOT " * 2_000 + "state = PAUSED", "schedule", "labels.a", "http_target.body",
)  # fmt: skip
NUMBERS: Final = (0, 1, 2, 5, 100, 1_000, -1, 2**31 - 1, -(2**31), 2**62, -(2**62), 4_000_000_000)
FLOATS: Final = (0.0, 1.5, -1.0, float("nan"), float("inf"), 1e300)


def fill(rng: Random, message: Message, depth: int = 0) -> None:
    """Set about half of the fields, and theirs."""
    for field in fields_of(message):
        if rng.random() < 0.5:
            set_field(rng, message, field, depth)


def change(rng: Random, message: Message, count: int) -> None:
    """Set some of the fields of a message anew."""
    for field in rng.sample(fields_of(message), count):
        set_field(rng, message, field, 1)


def fields_of(message: Message) -> list[FieldDescriptor]:
    """The fields of its type."""
    return cast("list[FieldDescriptor]", list(message.DESCRIPTOR.fields))


def set_field(rng: Random, message: Message, field: FieldDescriptor, depth: int) -> None:
    """Give a field a random value; one that the type does not hold leaves it as it was."""
    values: Any = getattr(message, field.name)
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        for number in range(rng.choice((1, 2, 70))):
            values[rng.choice((f"k{number}", rng.choice(TEXTS)))] = rng.choice(TEXTS)
    elif field.is_repeated:
        for _ in range(rng.choice((1, 2, 3))):
            if kind is None:
                values.append(scalar(rng, field))
            else:
                fill(rng, values.add(), depth + 1)
    elif kind is None:
        value = scalar(rng, field)
        try:
            setattr(message, field.name, value)
        except ValueError:  # out of the type's range
            message.ClearField(field.name)
    elif depth < DEPTH_MAX:
        values.SetInParent()
        fill(rng, values, depth + 1)


def scalar(rng: Random, field: FieldDescriptor) -> str | bytes | bool | int | float:
    """A value of the field's kind, perhaps out of its range."""
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
            return rng.randbytes(rng.choice((0, 1, 100)))
        case FieldDescriptor.CPPTYPE_STRING:
            return rng.choice(TEXTS)
        case FieldDescriptor.CPPTYPE_BOOL:
            return rng.random() < 0.5
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return rng.choice(FLOATS)
        case FieldDescriptor.CPPTYPE_ENUM:
            return rng.choice((0, 1, 2, 3, 99))
        case _:
            return rng.choice(NUMBERS)
