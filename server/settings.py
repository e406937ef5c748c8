"""Floor 1. Where the settings of a node come from, and the page that explains them.

    flags         --table-bytes-max 1GiB
    environment   TICKWHEEL_TABLE_BYTES_MAX=1GiB
    file          table_bytes_max = "1GiB"          in tickwheel.toml
    docs          docs/CONFIG.md                    `reference()`; a test keeps the two equal

in this order of precedence, defaults last. A name that nobody knows is refused in flags and in the file. In the
environment only one that looks like a slip of an option's name is: others share the prefix (Kubernetes sets
TICKWHEEL_SERVICE_HOST and more beside a Service called `tickwheel`).

Errors name the option, where the value came from and what is allowed, all of them at once.

Must never import: any room but `config`, `errors`.
"""

import argparse
import difflib
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from tickwheel.server.config import BY_NAME, ENV_PREFIX, OPTIONS, UNITS, Config, Option, Value, show
from tickwheel.server.errors import InvalidArgument, Violation

FILE_NAME = "tickwheel.toml"
FILE_BYTES_MAX = 1 << 20
TRUE = frozenset({"true", "yes", "on", "1"})
FALSE = frozenset({"false", "no", "off", "0"})


def load(
    flags: Mapping[str, object], env: Mapping[str, str], toml_path: str | Path | None = None
) -> Config:
    """Put a Config together: flags, then environment, then file, then defaults. Raises InvalidArgument.

    `flags` are option names with text or ready values; None means not given. `toml_path` must exist if it is given.
    """
    layers = [
        ("file", _read_file(toml_path) if toml_path is not None else {}),
        ("environment", _read_env(env)),
        ("flag", {name: value for name, value in flags.items() if value is not None}),
    ]
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    wrong: list[Violation] = []
    for source, given in layers:
        for name, raw in given.items():
            line = BY_NAME.get(name)
            if line is None:
                wrong.append(Violation(name, f"no such option ({source}){_hint(name)}", "UNKNOWN"))
                continue
            try:
                values[name] = _parse(line, raw)
                sources[name] = _spelled(line, source, toml_path)
            except ValueError:
                words = f"{raw!r} is not {line.allowed} (from {_spelled(line, source, toml_path)})"
                wrong.append(Violation(name, words))
    if wrong:
        raise InvalidArgument.of(wrong)
    try:
        return Config(**values)
    except InvalidArgument as error:
        raise InvalidArgument.of([_with_source(v, sources) for v in error.violations]) from None


def _with_source(violation: Violation, sources: Mapping[str, str]) -> Violation:
    source = sources.get(violation.field, "default")
    return violation._replace(description=f"{violation.description} (from {source})")


def _spelled(line: Option, source: str, toml_path: str | Path | None) -> str:
    return {"flag": line.flag, "environment": line.env}.get(source, str(toml_path))


def _hint(name: str, cutoff: float = 0.6) -> str:
    close = difflib.get_close_matches(name, BY_NAME, n=1, cutoff=cutoff)
    return f"; did you mean {close[0]}?" if close else ""


def _read_file(path: str | Path) -> dict[str, object]:
    try:
        with Path(path).open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise ValueError(f"is longer than {FILE_BYTES_MAX} bytes, so it is no file of settings")  # noqa: TRY301
        return tomllib.loads(data.decode())
    except (OSError, ValueError) as error:
        raise InvalidArgument.of([Violation("config", f"{path}: {error}")]) from None


def _read_env(env: Mapping[str, str]) -> dict[str, object]:
    """Take the options, and what looks like a slip of one; leave alone what others may have put there."""
    found: dict[str, object] = {}
    for key, value in env.items():
        name = key.removeprefix(ENV_PREFIX).lower()
        if key.startswith(ENV_PREFIX) and (name in BY_NAME or _hint(name, cutoff=0.85)):
            found[name] = value
    return found


def _parse(line: Option, raw: object) -> Value:
    """Turn text, or a value of TOML, into the option's type. Raises ValueError; limits are checked later."""
    if isinstance(line.default, tuple):
        return _parse_list(raw)
    if isinstance(raw, bool | int | str) and type(raw) is type(line.default):
        return raw
    if not isinstance(raw, str):
        raise ValueError  # noqa: TRY004 - the one error of parsing
    if isinstance(line.default, bool):
        return _parse_bool(raw)
    return parse_number(raw, line.unit)


def _parse_list(raw: object) -> tuple[str, ...]:
    if isinstance(raw, str):
        return tuple(part.strip() for part in raw.split(",") if part.strip())
    if not isinstance(raw, list | tuple):
        raise ValueError  # noqa: TRY004 - the one error of parsing
    texts = [part for part in cast(Sequence[object], raw) if isinstance(part, str)]
    if len(texts) != len(cast(Sequence[object], raw)):
        raise ValueError
    return tuple(texts)


def _parse_bool(text: str) -> bool:
    word = text.strip().lower()
    if word in TRUE | FALSE:
        return word in TRUE
    raise ValueError


def parse_number(text: str, unit: str) -> int:
    """Read `512`, `512MiB`, `2s`. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+)\s*([A-Za-z]*)\s*", text)
    factor = UNITS[unit].get(match[2]) if match else None
    if match is None or factor is None:
        raise ValueError
    return int(match[1]) * factor


# --- what is made from the table ---------------------------------------------------------------


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Give a parser one flag for each option, and `--config`."""
    parser.add_argument("--config", metavar="FILE", help=f"default: ./{FILE_NAME} if it is there")
    for line in OPTIONS:
        words = f"{line.rule.help} Allowed: {line.allowed}.".replace("%", "%%")
        if isinstance(line.default, bool):
            parser.add_argument(line.flag, action=argparse.BooleanOptionalAction, help=words)
        else:
            parser.add_argument(line.flag, metavar="VALUE", help=words)


def find_file(given: str | None, env: Mapping[str, str]) -> str | None:
    """Return the file to read: the flag's, the environment's, or `tickwheel.toml` here if it is there."""
    named = given or env.get(ENV_PREFIX + "CONFIG")
    return named or (FILE_NAME if Path(FILE_NAME).is_file() else None)


def load_from_environment(argv: Sequence[str]) -> Config:
    """Read the command line, this process's environment and the file. Ends the process with 2 when they are wrong."""
    parser = argparse.ArgumentParser(
        prog="tickwheel serve", usage="%(prog)s [OPTION ...]; -h lists them", allow_abbrev=False
    )
    parser.add_argument("command", nargs="?", choices=["serve"], help="the only one there is")
    add_flags(parser)
    given = vars(parser.parse_args(argv))
    given.pop("command")
    try:
        return load(given, os.environ, find_file(given.pop("config"), os.environ))
    except InvalidArgument as error:
        parser.error("\n".join(f"{v.field}: {v.description}" for v in error.violations))


def reference() -> str:
    """Write docs/CONFIG.md."""
    lines = [
        "# Configuration",
        "",
        "Flags go before the environment, that before `tickwheel.toml`, that before the default. The file is the one of",
        "`--config`, of `TICKWHEEL_CONFIG`, or `./tickwheel.toml` if it is there; its keys are the names of the first column.",
        "Sizes take B, KiB, MiB, GiB and TiB, times ms, s, m, h and d; bare numbers are bytes and milliseconds. An unknown name",
        "is an error, and so is a value outside its limits: nothing is ignored.",
        "",
        "This page is made from the table in `server/config.py` (`settings.reference()`).",
    ]
    section = ""
    for line in OPTIONS:
        if line.rule.section != section:
            section = line.rule.section
            lines += ["", f"## {section}", ""]
            lines += ["| name | default | allowed | meaning |", "| --- | --- | --- | --- |"]
        lines.append(_row(line))
    lines += [
        "",
        "## Flags and environment",
        "",
        "| name | flag | environment |",
        "| --- | --- | --- |",
    ]
    lines += [f"| `{line.name}` | `{_flag_words(line)}` | `{line.env}` |" for line in OPTIONS]
    return "\n".join(lines) + "\n"


def _flag_words(line: Option) -> str:
    if isinstance(line.default, bool):
        return f"{line.flag}`, `--no-{line.flag[2:]}"
    return f"{line.flag} VALUE"


def _row(line: Option) -> str:
    if isinstance(line.default, bool):
        default = str(line.default).lower()
    elif isinstance(line.default, int):
        default = show(line.default, line.unit)
    else:
        default = line.default if isinstance(line.default, str) else ",".join(line.default)
    shown = f"`{default}`" if default else "none"
    return f"| `{line.name}` | {shown} | {line.allowed} | {line.rule.help} |"
