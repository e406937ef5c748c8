"""Floor 5. Page sizes and page tokens (AIP-158).

A token is url-safe text that says where the next page begins and, as a digest, which request it belongs to: with other
arguments it would silently skip or repeat, so it is refused. It is not a secret and grants nothing: who lists is checked
on every page, and a forged token only moves the beginning.

    token = base64url( version u8 ‖ digest of the other arguments 8 B ‖ create_ms u64 ‖ row u64 ‖ shard u16 )

Must never import: rooms below but `errors`, `query`.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from hashlib import blake2b
from struct import Struct
from typing import Final

from tickwheel.server.api.limits import PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX
from tickwheel.server.errors import InvalidArgument, Violation
from tickwheel.server.query import Key

_VERSION: Final = 1
_TOKEN: Final = Struct("<B8sQQH")


def page_size(asked: int) -> int:
    """How many items a page gets. 0 means the default, more than the maximum means the maximum.

    Raises InvalidArgument when it is negative.
    """
    if asked < 0:
        raise InvalidArgument.of(
            [Violation("page_size", "must not be negative; 0 means the default", "OUT_OF_RANGE")]
        )
    return min(asked or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)


def encode_token(after: Key, *arguments: str) -> str:
    """The token of the page behind `after`, for a request with these other arguments."""
    packed = _TOKEN.pack(_VERSION, digest_of(arguments), after.create_ms, after.row, after.shard)
    return urlsafe_b64encode(packed).rstrip(b"=").decode()


def decode_token(token: str, *arguments: str) -> Key | None:
    """Where the page begins; None for the first one.

    Raises InvalidArgument: PAGE_TOKEN_INVALID for what was never a token, PAGE_TOKEN_MISMATCH for another request's.
    """
    if not token:
        return None
    version, digest, create_ms, row, shard = _unpack(token)
    if version != _VERSION:
        raise _refused("it comes from another version; begin again at the first page", "INVALID")
    if digest != digest_of(arguments):
        raise _refused(
            "it belongs to a request with other arguments; repeat them all, or begin again",
            "MISMATCH",
        )
    return Key(create_ms, row, shard)


def _unpack(token: str) -> tuple[int, bytes, int, int, int]:
    try:
        data = urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except (Base64Error, ValueError):
        data = b""
    if len(data) != _TOKEN.size:
        raise _refused("it is no token that this server gave out", "INVALID")
    version, digest, create_ms, row, shard = _TOKEN.unpack(data)
    return version, digest, create_ms, row, shard


def _refused(why: str, kind: str) -> InvalidArgument:
    return InvalidArgument.of([Violation("page_token", why, f"PAGE_TOKEN_{kind}")])


def digest_of(arguments: tuple[str, ...]) -> bytes:
    """Each argument with its length, so that two different lists never read the same."""
    text = "".join(f"{len(argument)}:{argument}" for argument in arguments)
    return blake2b(text.encode(), digest_size=8).digest()
