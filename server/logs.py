"""Floor 1. Log lines: text for people, JSON for machines; fields beside the message, secrets nowhere.

    log = get_logger(__name__)
    log.info("segment deleted", extra={"segment": name})

    text   2026-03-01T12:00:00.123Z INFO  wal: segment deleted segment=0000000000000007.wal
    json   {"ts":"2026-03-01T12:00:00.123Z","level":"info","logger":"wal","message":"segment deleted","segment":"..."}

One record is one line, whatever a value holds: line breaks and control characters are escaped, so that nobody who
chooses a job's name can forge a line. A value longer than 2 KiB is cut.

Must never import: any room of this project.
"""

import json
import logging
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, TextIO

ROOT: Final = "tickwheel"
LIBRARIES: Final = ("asyncio", "aiohttp", "grpc")
"""Whose warnings go the same way: they, too, hold what peers chose."""

VALUE_CHARS_MAX: Final = 2_048
REDACTED: Final = "[redacted]"

SHOWN_HEADERS: Final = frozenset(
    [
        "accept",
        "accept-encoding",
        "accept-language",
        "content-encoding",
        "content-length",
        "content-type",
        "date",
        "retry-after",
        "server",
        "tickwheel-attempt",
        "tickwheel-epoch",
        "tickwheel-job",
        "tickwheel-retry",
        "tickwheel-scheduled-time",
        "traceparent",
        "user-agent",
        "webhook-id",
        "webhook-timestamp",
    ]
)
"""Headers whose values may be read by anyone who reads logs; all others may hold a secret."""

_STANDARD: Final = frozenset(
    {*vars(logging.LogRecord("", 0, "", 0, "", None, None)), "message", "asctime", "taskName"}
)
_OWN: Final = frozenset({"ts", "level", "logger", "error"})
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_PLAIN: Final = re.compile(r"[^\s\"=]+")


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a room, given its `__name__`."""
    return logging.getLogger(name)


def configure(log_format: str, level: str, stream: TextIO) -> None:
    """Send what this project and its libraries log to `stream`. Calling it again replaces what was set."""
    formatter = JsonFormatter() if log_format == "json" else TextFormatter()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    for name in (ROOT, *LIBRARIES):
        logger = logging.getLogger(name)
        for old in list(logger.handlers):
            logger.removeHandler(old)
        logger.addHandler(handler)
        logger.setLevel(level.upper() if name == ROOT else logging.WARNING)
        logger.propagate = False


def redact_headers(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the headers with every value hidden that may be a secret."""
    return [(name, value if name.lower() in SHOWN_HEADERS else REDACTED) for name, value in headers]


def fields(record: logging.LogRecord) -> dict[str, object]:
    """Return what `extra` carried. A field that clashes with one of the line's own gets an underscore."""
    return {
        f"{key}_" if key in _OWN else key: value
        for key, value in vars(record).items()
        if key not in _STANDARD
    }


class TextFormatter(logging.Formatter):
    """`time LEVEL room: message key=value ...`; a traceback follows on lines of its own, each indented."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one record."""
        pairs = "".join(f" {key}={_quoted(value)}" for key, value in fields(record).items())
        message = _escape(_cut(record.getMessage()))
        line = f"{_time(record)} {record.levelname:<7} {_room(record)}: {message}{pairs}"
        if record.exc_info:
            trace = self.formatException(record.exc_info)
            line += "".join(f"\n    {_escape(part)}" for part in trace.splitlines())
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one record."""
        body: dict[str, object] = {
            "ts": _time(record),
            "level": record.levelname.lower(),
            "logger": _room(record),
            "message": _cut(record.getMessage()),
        }
        body |= {key: _jsonable(value) for key, value in fields(record).items()}
        if record.exc_info:
            body["error"] = self.formatException(record.exc_info)
        return json.dumps(body, separators=(",", ":"), ensure_ascii=True)


def _time(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1_000:03d}Z"


def _room(record: logging.LogRecord) -> str:
    return record.name.removeprefix(f"{ROOT}.").removeprefix("server.")


def _cut(text: str) -> str:
    return text if len(text) <= VALUE_CHARS_MAX else f"{text[:VALUE_CHARS_MAX]}…"


def _escape(text: str) -> str:
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def _quoted(value: object) -> str:
    text = _escape(_cut(str(value)))
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def _jsonable(value: Any) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping | list | tuple):
        return _cut(json.dumps(value, default=str))
    return _cut(str(value))
