"""Floor 5. Update masks (AIP-134, AIP-161): which fields of a message a request changes.

A path names a field, or a field of a message inside (`retry_policy.max_attempts`), or one label (`labels.team`). A path
that names nothing is refused; one that names an output-only field is ignored. A field that is named but not set goes
back to its default.

Must never import: rooms below but `errors`.
"""

from collections.abc import Sequence
from typing import cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from tickwheel.server.errors import InvalidArgument, Violation


def usable_paths(paths: Sequence[str], message: Message, writable: frozenset[str]) -> list[str]:
    """The paths that change something. No path at all means every writable field that is set.

    Raises InvalidArgument for a path that names nothing.
    """
    if not paths:
        return [field.name for field, _ in message.ListFields() if field.name in writable]
    if "*" in paths and len(paths) > 1:
        raise _refused("*", "stands alone: it replaces everything")
    kept: list[str] = []
    for path in paths:
        if path != "*" and not _names_field(path, cast(Descriptor, message.DESCRIPTOR)):
            raise _refused(path, "names no field")
        if path == "*" or path.partition(".")[0] in writable:
            kept.append(path)
    return kept


def copy_paths(source: Message, target: Message, paths: Sequence[str]) -> None:
    """Make the fields of `target` that the paths name equal to those of `source`."""
    for path in paths:
        _copy(source, target, path)


def _names_field(path: str, descriptor: Descriptor) -> bool:
    head, _, rest = path.partition(".")
    field = descriptor.fields_by_name.get(head)
    if field is None or not rest:
        return field is not None and not path.endswith(".")
    if _is_map(field):
        return True
    if field.message_type is None or field.is_repeated:
        return False
    return _names_field(rest, field.message_type)


def _copy(source: Message, target: Message, path: str) -> None:
    head, _, rest = path.partition(".")
    field = cast(FieldDescriptor, target.DESCRIPTOR.fields_by_name[head])
    if rest and _is_map(field):
        there, here = getattr(source, head), getattr(target, head)
        here.pop(rest, None)
        if rest in there:
            here[rest] = there[rest]
    elif rest:
        _copy(getattr(source, head), getattr(target, head), rest)
    else:
        _replace(source, target, field)


def _replace(source: Message, target: Message, field: FieldDescriptor) -> None:
    name = field.name
    target.ClearField(name)
    if field.is_repeated:
        getattr(target, name).MergeFrom(getattr(source, name))
    elif field.has_presence and not source.HasField(name):
        return
    elif field.message_type is not None:
        getattr(target, name).CopyFrom(getattr(source, name))
    else:
        setattr(target, name, getattr(source, name))


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _refused(path: str, why: str) -> InvalidArgument:
    return InvalidArgument.of([Violation("update_mask", f"{path!r} {why}", "MASK_PATH")])
