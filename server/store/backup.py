"""Floor 3. A backup: a directory with a snapshot of every shard of one node, and what is said of them together.

    nightly/
      backup.json       {format, shards, start_ms, end_ms, version, cluster, store}, written last
      shard-0000/       a snapshot (`snapshot`), of one moment between start_ms and end_ms
      shard-0001/

Shards know nothing of each other, so each may be of a moment of its own. A directory without backup.json was never
finished.

Must never import: rooms of floor 3 or higher but this package's; no threads, no clock.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tickwheel.server.errors import FailedPrecondition
from tickwheel.server.model import Ms
from tickwheel.server.store.snapshot import write_durably

FORMAT: Final = 1
MANIFEST: Final = "backup.json"
SHARDS_MAX: Final = 1_024
_BYTES_MAX: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Backup:
    """What a backup is of. `cluster` and `store`: whose it was, in hexadecimal; `version`: the program that made it."""

    shards: int
    start_ms: Ms
    end_ms: Ms
    version: str
    cluster: str
    store: str


def shard_directory(backup: Path, shard: int) -> Path:
    """Where a shard's snapshot lies."""
    return backup / f"shard-{shard:04d}"


def write_manifest(directory: Path, backup: Backup) -> None:
    """The last file. The directory is not synced."""
    data = json.dumps({"format": FORMAT, **asdict(backup)}, indent=1)
    write_durably(directory / MANIFEST, data.encode())


def load_backup(directory: Path) -> Backup:
    """What a directory says it is a backup of. Raises FailedPrecondition."""
    try:
        with (directory / MANIFEST).open("rb") as file:
            data = file.read(_BYTES_MAX)
    except (FileNotFoundError, NotADirectoryError):
        raise _refused(f"{directory} is no backup, or was never finished: no {MANIFEST}") from None
    try:
        fields = json.loads(data)
        known, backup = fields.pop("format"), None
        if known == FORMAT:
            backup = Backup(**fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _refused(f"{directory / MANIFEST} can't be read: {error!r}") from error
    if backup is None:
        raise _refused(f"{directory} has format {known}, this program knows {FORMAT}")
    if type(backup.shards) is not int or not 0 < backup.shards <= SHARDS_MAX:
        raise _refused(f"{directory} says that it has {backup.shards!r} shards")
    return backup


def _refused(text: str) -> FailedPrecondition:
    return FailedPrecondition(text, reason="BACKUP_DAMAGED")
