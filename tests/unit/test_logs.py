"""Log lines: one record is one line, fields are beside the message, secrets are nowhere."""

import io
import json
import logging
import re
from collections.abc import Iterator

import pytest

from tickwheel.server.logs import REDACTED, configure, get_logger, redact_headers

log = get_logger("tickwheel.server.wal")


@pytest.fixture(autouse=True)
def quiet_again() -> Iterator[None]:
    logger = logging.getLogger("tickwheel")
    before = (list(logger.handlers), logger.level, logger.propagate)
    yield
    logger.handlers[:], logger.level, logger.propagate = before
    logger.setLevel(before[1])


def lines(log_format: str, level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    configure(log_format, level, stream)
    return stream


def test_text_is_time_level_room_message_fields() -> None:
    out = lines("text")
    log.info("segment %s deleted", 7, extra={"segment": "0007.wal", "why": "it is old", "n": 3})
    line = out.getvalue()
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO    wal: segment 7 deleted "
        r'segment=0007\.wal why="it is old" n=3\n',
        line,
    )


def test_json_is_one_object_a_line() -> None:
    out = lines("json")
    log.warning("slow", extra={"ms": 12, "on": True, "none": None, "path": ["a", 1], "who": {1: 2}})
    body = json.loads(out.getvalue())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", body.pop("ts"))
    assert body == {
        "level": "warning",
        "logger": "wal",
        "message": "slow",
        "ms": 12,
        "on": True,
        "none": None,
        "path": '["a", 1]',
        "who": '{"1": 2}',
    }


def test_the_time_is_of_the_record_cut_to_milliseconds() -> None:
    out = lines("json")
    record = log.makeRecord(log.name, logging.INFO, "", 0, "m", (), None)
    record.created = 1_772_366_400.9996
    log.handle(record)
    assert json.loads(out.getvalue())["ts"] == "2026-03-01T12:00:00.999Z"


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_nobody_can_forge_a_line(log_format: str) -> None:
    out = lines(log_format)
    evil = "x\n2026-01-01T00:00:00.000Z INFO wal: forged\r\x1b[31m\u2028"
    log.info("job %s", evil, extra={"job": evil})
    assert out.getvalue().count("\n") == 1
    assert not re.search(r"[\r\x1b\u2028]", out.getvalue())


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_long_value_is_cut(log_format: str) -> None:
    out = lines(log_format)
    log.info("m" * 5_000, extra={"body": "b" * 5_000})
    assert len(out.getvalue()) < 4_400


def test_a_traceback_is_indented_or_a_field() -> None:
    for log_format in ("text", "json"):
        out = lines(log_format)
        try:
            int("boom")
        except ValueError:
            log.exception("it failed")
        first, *rest = out.getvalue().splitlines()
        if log_format == "text":
            assert all(line.startswith("    ") for line in rest)
            assert "ValueError: " in rest[-1]
        else:
            assert not rest
            assert "ValueError: " in json.loads(first)["error"]


def test_a_field_does_not_overwrite_the_lines_own() -> None:
    out = lines("json")
    log.info("m", extra={"level": "forged", "ts": 1})
    body = json.loads(out.getvalue())
    assert (body["level"], body["level_"], body["ts_"]) == ("info", "forged", 1)


def test_the_level_holds_and_configuring_again_replaces() -> None:
    first = lines("text", "warning")
    log.info("unseen")
    second = lines("text", "debug")
    log.debug("seen")
    assert first.getvalue() == ""
    assert second.getvalue().endswith("wal: seen\n")


def test_headers_that_may_be_secret_are_hidden() -> None:
    headers = [("Authorization", "Bearer s3cret"), ("Content-Type", "text/plain"), ("x-key", "s")]
    assert redact_headers(headers) == [
        ("Authorization", REDACTED),
        ("Content-Type", "text/plain"),
        ("x-key", REDACTED),
    ]
