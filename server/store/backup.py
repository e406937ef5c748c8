"""Floor 3. A backup: a directory with a snapshot of every shard, and what is said of them together.

    nightly/
      backup.json       {format, shards, start_ms, end_ms, version, cluster, store, namespaces, parts}, written last
      shard-0000/       a snapshot (`snapshot`), of one moment between start_ms and end_ms
      shard-0001/

Shards know nothing of each other, so each may be of a moment of its own, and in a cluster of another node: `parts` says
which. It names each shard's manifest by its digest, and that names the files by theirs: so a shard of another backup is
met as a damaged one. A directory without backup.json was never finished.

Must never import: rooms of floor 3 or higher but this package's; no threads, no clock.
"""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from tickwheel.server.errors import FailedPrecondition
from tickwheel.server.model import Ms
from tickwheel.server.store import snapshot as one
from tickwheel.server.store.snapshot import Snapshot, load_manifest, reading_still, write_durably

FORMAT: Final = 2
MANIFEST: Final = "backup.json"
SHARDS_MAX: Final = 1_024
NAMESPACES_MAX: Final = 1_000
"""Those with the most jobs are named in the manifest; the others are counted under "" there."""
_BYTES_MAX: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Part:
    """One shard: what its snapshot is of, which node it is from, and the digest of its manifest, in hexadecimal."""

    shard: int
    index: int
    epoch: int
    time_ms: Ms
    size_bytes: int
    node: str
    manifest_sha256: str


@dataclass(frozen=True, slots=True)
class Backup:
    """What a backup is of. `cluster` and `store`: whose it was, and which node made it, in hexadecimal; `version`: of
    the program that did; `namespaces`: how many jobs each has; `parts`: a shard each, in their order."""

    shards: int
    start_ms: Ms
    end_ms: Ms
    version: str
    cluster: str
    store: str
    namespaces: Mapping[str, int]
    parts: tuple[Part, ...]


def shard_directory(backup: Path, shard: int) -> Path:
    """Where a shard's snapshot lies."""
    return backup / f"shard-{shard:04d}"


# --- making ----------------------------------------------------------------------------------------------------------


def part_of(directory: Path, snapshot: Snapshot, node: str) -> Part:
    """What is said of a snapshot that lies in a directory, whole. Raises OSError."""
    digest = sha256((directory / one.MANIFEST).read_bytes()).hexdigest()
    return Part(
        snapshot.shard, snapshot.index, snapshot.epoch, snapshot.time_ms, snapshot.size_bytes, node,
        digest,
    )  # fmt: skip


def count_namespaces(directory: Path, shards: Iterable[int]) -> dict[str, int]:
    """How many jobs each namespace has in a backup. Raises FailedPrecondition when a copy can't be read."""
    counts = Counter[str]()
    sql = (
        "SELECT namespace.name, sum(tally.jobs) FROM tally JOIN namespace"
        " ON namespace.id = tally.namespace GROUP BY namespace.id"
    )
    for shard in shards:
        main = shard_directory(directory, shard) / one.main_name(shard)
        try:
            with reading_still(main) as db:
                counts.update(dict(db.execute(sql)))
        except sqlite3.Error as error:
            raise _refused(f"{main} can't be read: {error}") from error
    named = dict(counts.most_common(NAMESPACES_MAX))
    rest = counts.total() - sum(named.values())
    return named | ({"": rest} if rest else {})


def write_manifest(directory: Path, backup: Backup) -> None:
    """The last file. The directory is not synced."""
    data = json.dumps({"format": FORMAT, **asdict(backup)}, indent=1)
    write_durably(directory / MANIFEST, data.encode())


# --- reading ---------------------------------------------------------------------------------------------------------


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
            parts = tuple(Part(**part) for part in fields.pop("parts"))
            backup = Backup(parts=parts, **fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _refused(f"{directory / MANIFEST} can't be read: {error!r}") from error
    if backup is None:
        raise _refused(f"{directory} has format {known}, this program knows {FORMAT}")
    if type(backup.shards) is not int or not 0 < backup.shards <= SHARDS_MAX:
        raise _refused(f"{directory} says that it has {backup.shards!r} shards")
    if [part.shard for part in backup.parts] != list(range(backup.shards)):
        raise _refused(f"{directory / MANIFEST} does not name each of {backup.shards} shards once")
    return backup


def load_part(directory: Path, part: Part) -> Snapshot:
    """The snapshot that a backup's part is. Raises FailedPrecondition if it is not there, or another one is."""
    found = shard_directory(directory, part.shard)
    snapshot = load_manifest(found)
    if part_of(found, snapshot, part.node) != part:
        raise _refused(
            f"{found / one.MANIFEST} is not the one that {MANIFEST} names: it is of another backup, or was changed"
        )
    return snapshot


def _refused(text: str) -> FailedPrecondition:
    return FailedPrecondition(text, reason="BACKUP_DAMAGED")
