"""What a benchmark leaves: a table to read, and a JSON file with the machine and the versions beside the figures."""

import json
import os
import platform
import sqlite3
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.table import Table

from bench.node import ROOT

RESULTS = ROOT / "bench" / "results"
PACKAGES = ("grpcio", "protobuf", "uvloop", "aiohttp", "httptools")
Row = dict[str, Any]


def machine() -> dict[str, Any]:
    """The hardware, as far as Linux tells; elsewhere less."""
    facts: dict[str, Any] = {
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
    }
    cpu = Path("/proc/cpuinfo")
    if cpu.exists():
        models = [
            s.partition(":")[2].strip()
            for s in cpu.read_text().splitlines()
            if s.startswith("model name")
        ]
        facts["processor"] = models[0] if models else facts["processor"]
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        facts["memory_gib"] = round(pages / 2**30, 1)
        facts["load_before"] = round(os.getloadavg()[0], 2)
    return facts


def versions() -> dict[str, str]:
    """Python, SQLite and the packages on the hot path."""
    found = {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "-"
    return found


def commit() -> str:
    """The checkout's commit, with a + when files differ from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=10"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 — our own
    return answer.stdout.strip() or "unknown"


def table(scenario: str, rows: list[Row]) -> Table:
    """One line a row, one column a figure; nested figures become `name.part`."""
    flat = [flatten(row) for row in rows]
    columns = list(dict.fromkeys(key for row in flat for key in row))
    out = Table(*columns, title=scenario)
    for row in flat:
        out.add_row(*(show(row.get(column, "")) for column in columns))
    return out


def flatten(row: Row, prefix: str = "") -> Row:
    """`{"a": {"b": 1}}` becomes `{"a.b": 1}`."""
    flat: Row = {}
    for key, value in row.items():
        name = prefix + key
        if isinstance(value, dict):
            flat |= flatten(cast("Row", value), name + ".")
        else:
            flat[name] = value
    return flat


def show(value: Any) -> str:
    """A figure for people."""
    if isinstance(value, float):
        return f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def publish(
    scenario: str, rows: list[Row], facts: dict[str, Any], out: Path, console: Console
) -> Path:
    """Print the table; write the JSON file. Returns its path."""
    console.print(table(scenario, rows))
    now = datetime.now(UTC)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{scenario}-{now:%Y%m%dT%H%M%S}.json"
    body = {
        "scenario": scenario,
        "date": now.isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": facts,
        "versions": versions(),
        "rows": rows,
    }
    path.write_text(json.dumps(body, indent=1) + "\n")
    console.print(f"written: {path}")
    return path
