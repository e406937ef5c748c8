"""Floor 5. Resume tokens: how far a watch has read the log of each shard that it watches.

A token is bound to the arguments of its watch, as a page token is, and holds whoever leads by then: an index of a
shard's log means the same on every replica. It is not a secret and grants nothing.

    token = base64url( version u8 ‖ digest of the other arguments 8 B ‖ index varint, a shard each ‖ crc32 of all before )

Must never import: rooms below but `errors`.
"""

import zlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Sequence
from typing import Final

from tickwheel.server.api.paging import digest_of
from tickwheel.server.errors import InvalidArgument, Violation

_VERSION: Final = 1
_HEAD_BYTES: Final = 9
_CHECK_BYTES: Final = 4
_INDEX_BITS_MAX: Final = 64
_MORE: Final = 0x80


def encode_resume(indexes: Sequence[int], *arguments: str) -> str:
    """The token of a watch with these other arguments that has read its shards, in their order, so far."""
    data = bytearray([_VERSION]) + digest_of(arguments)
    for index in indexes:
        data += _varint(index)
    data += zlib.crc32(data).to_bytes(_CHECK_BYTES)
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def decode_resume(token: str, count: int, *arguments: str) -> list[int]:
    """How far each of `count` shards was read.

    Raises InvalidArgument: RESUME_TOKEN_INVALID for what was never a token, RESUME_TOKEN_MISMATCH for another watch's.
    """
    data = _checked(token)
    if data[1:_HEAD_BYTES] != digest_of(arguments):
        raise _refused("it belongs to a watch with other arguments", "MISMATCH")
    indexes = _indexes(data[_HEAD_BYTES:])
    if len(indexes) != count:
        raise _refused("it belongs to another cluster", "MISMATCH")
    return indexes


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    data = bytearray()
    while number >= _MORE:
        data.append(number % _MORE | _MORE)
        number //= _MORE
    data.append(number)
    return bytes(data)


def _checked(token: str) -> bytes:
    try:
        data = urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except (Base64Error, ValueError):
        data = b""
    body, check = data[:-_CHECK_BYTES], data[-_CHECK_BYTES:]
    if len(body) < _HEAD_BYTES or zlib.crc32(body).to_bytes(_CHECK_BYTES) != check:
        raise _refused("it is no token that this server gave out", "INVALID")
    if body[0] != _VERSION:
        raise _refused("it comes from another version; watch anew, without it", "INVALID")
    return body


def _indexes(data: bytes) -> list[int]:
    found: list[int] = []
    index = shift = 0
    for byte in data:
        index |= byte % _MORE << shift
        shift += 7
        if byte < _MORE:
            found.append(index)
            index = shift = 0
    if shift or any(number.bit_length() > _INDEX_BITS_MAX for number in found):
        raise _refused("it is no token that this server gave out", "INVALID")
    return found


def _refused(why: str, kind: str) -> InvalidArgument:
    return InvalidArgument.of([Violation("resume_token", why, f"RESUME_TOKEN_{kind}")])
