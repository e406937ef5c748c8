"""Page sizes and page tokens."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickwheel.server.api.paging import decode_token, encode_token, page_size
from tickwheel.server.errors import InvalidArgument
from tickwheel.server.query import Key

KEYS = st.builds(
    Key,
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**16 - 1),
)


@pytest.mark.parametrize(("asked", "given_"), [(0, 100), (1, 1), (1000, 1000), (1001, 1000)])
def test_page_sizes(asked: int, given_: int) -> None:
    assert page_size(asked) == given_


def test_a_negative_page_size_is_refused() -> None:
    with pytest.raises(InvalidArgument) as raised:
        page_size(-1)
    assert raised.value.violations[0].field == "page_size"


def test_no_token_is_the_first_page() -> None:
    assert decode_token("", "ListJobs", "a") is None


@given(KEYS, st.lists(st.text()))
def test_a_token_comes_back_and_is_url_safe(key: Key, arguments: list[str]) -> None:
    token = encode_token(key, *arguments)
    assert re.fullmatch(r"[A-Za-z0-9_-]+", token)
    assert decode_token(token, *arguments) == key


@pytest.mark.parametrize("arguments", [("a",), ("ab", ""), ("", "ab"), ("a", "c"), ("a", "b", "")])
def test_other_arguments_are_refused(arguments: tuple[str, ...]) -> None:
    token = encode_token(Key(1, 2, 3), "a", "b")
    with pytest.raises(InvalidArgument) as raised:
        decode_token(token, *arguments)
    assert raised.value.reason == "PAGE_TOKEN_MISMATCH"


@given(st.text(min_size=1))
def test_what_was_never_a_token_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        decode_token(text, "a")
    assert raised.value.reason in {"PAGE_TOKEN_INVALID", "PAGE_TOKEN_MISMATCH"}


def test_a_token_of_another_version_is_refused() -> None:
    token = "B" + encode_token(Key(1, 2, 3), "a")[1:]
    with pytest.raises(InvalidArgument, match="another version"):
        decode_token(token, "a")
