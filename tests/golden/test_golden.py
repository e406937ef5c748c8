"""Transcripts: each `*.txt` here is a story told to the machine, and what it answered; they must not change unnoticed.

A block is comments (`#`) and commands, `----`, what happened, and an empty line. `pytest tests/golden --rewrite` writes
anew what happened.
"""

from pathlib import Path

import pytest
from tests.golden.teller import Teller, instant, length

from tickwheel.server.model import Ms

STORIES = sorted(Path(__file__).parent.glob("*.txt"))
RULE = "----"


def retell(text: str) -> str:
    """The same story with what happens now."""
    teller = Teller()
    blocks = [block for block in text.split("\n\n") if block.strip()]
    return "\n\n".join(_retell_block(teller, block) for block in blocks) + "\n"


def _retell_block(teller: Teller, block: str) -> str:
    asked = block.strip("\n").split(f"\n{RULE}")[0]
    lines = [line for line in asked.splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        return asked
    return f"{asked}\n{RULE}\n" + "\n".join(teller.tell(line) for line in lines)


@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_story(path: Path, request: pytest.FixtureRequest) -> None:
    text = path.read_text("utf-8")
    now = retell(text)
    if request.config.getoption("rewrite", default=False):
        path.write_text(now, "utf-8")
    else:
        assert now == text, "if this is meant: pytest tests/golden --rewrite"


def test_there_are_stories_and_each_says_what_happened() -> None:
    assert len(STORIES) >= 5
    for path in STORIES:
        assert RULE in path.read_text("utf-8"), path.name


def test_another_outcome_is_another_transcript() -> None:
    told = retell("create a once +1h\n\ntick 1h\n\nsend a\n\noutcome a succeeded\n")
    other = retell("create a once +1h\n\ntick 1h\n\nsend a\n\noutcome a fail\n")
    assert "SUCCEEDED" in told
    assert "SUCCEEDED" not in other


@pytest.mark.parametrize(
    ("text", "ms", "told"),
    [("1h30m", 5_400_000, "+1h30m"), ("-5s", -5_000, "-5s"), ("250ms", 250, "+250ms")],
)
def test_times_are_told_from_the_beginning(text: str, ms: Ms, told: str) -> None:
    assert length(text) == ms
    assert instant(1_800_000_000_000 + ms) == told
