"""Resume tokens: what comes out is what went in, and nothing else is taken for one."""

from base64 import urlsafe_b64decode, urlsafe_b64encode

import pytest

from tickwheel.server.api.resume import decode_resume, encode_resume
from tickwheel.server.errors import InvalidArgument

ARGUMENTS = ("WatchExecutions", "namespaces/a/jobs/-", "state = FAILED")
INDEXES = [0, 1, 127, 128, 16_383, 16_384, 2**40, 2**64 - 1]


def reason(token: str, count: int, *arguments: str) -> str:
    with pytest.raises(InvalidArgument) as caught:
        decode_resume(token, count, *arguments)
    assert caught.value.violations[0].field == "resume_token"
    return caught.value.reason


def test_a_token_holds_every_index() -> None:
    token = encode_resume(INDEXES, *ARGUMENTS)
    assert decode_resume(token, len(INDEXES), *ARGUMENTS) == INDEXES
    assert decode_resume(encode_resume([7], *ARGUMENTS), 1, *ARGUMENTS) == [7]


def test_a_token_of_another_watch_is_refused() -> None:
    token = encode_resume([1, 2], *ARGUMENTS)
    assert reason(token, 2, "WatchExecutions", "namespaces/b/jobs/-", "state = FAILED") == (
        "RESUME_TOKEN_MISMATCH"
    )
    assert reason(token, 3, *ARGUMENTS) == "RESUME_TOKEN_MISMATCH"


def test_what_was_never_a_token_is_refused() -> None:
    token = encode_resume(INDEXES, *ARGUMENTS)
    data = bytearray(urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    for text in ("x", "ä", "====", token[:-4], token + "AAAA"):
        assert reason(text, len(INDEXES), *ARGUMENTS) == "RESUME_TOKEN_INVALID"
    for at in range(len(data)):
        data[at] ^= 1
        broken = urlsafe_b64encode(data).rstrip(b"=").decode()
        data[at] ^= 1
        assert reason(broken, len(INDEXES), *ARGUMENTS) == "RESUME_TOKEN_INVALID"


@pytest.mark.parametrize("index", [2**64, 2**80])
def test_an_index_that_no_log_has_is_refused(index: int) -> None:
    assert reason(encode_resume([index], *ARGUMENTS), 1, *ARGUMENTS) == "RESUME_TOKEN_INVALID"


def test_a_token_of_another_version_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tickwheel.server.api.resume._VERSION", 2)
    token = encode_resume([1], *ARGUMENTS)
    monkeypatch.undo()
    with pytest.raises(InvalidArgument, match="another version"):
        decode_resume(token, 1, *ARGUMENTS)


def test_an_index_that_is_cut_off_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(_index: int) -> bytes:
        return b"\x80"

    monkeypatch.setattr("tickwheel.server.api.resume._varint", cut)
    token = encode_resume([1], *ARGUMENTS)
    assert reason(token, 1, *ARGUMENTS) == "RESUME_TOKEN_INVALID"
