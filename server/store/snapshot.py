"""Floor 3. A snapshot: a whole copy of one shard's store, as of one entry of its log, that does not change any more.

    shard-0007/                      any directory; while it is being taken it has no manifest.json
      shard-0007.db                  jobs, live executions, `applied` = (index, epoch)
      shard-0007-day-20657.db        ended executions, that day's
      manifest.json                  {format, shard, index, epoch, next_row, time_ms, files: [{name, size_bytes, sha256}]}

`take` reads through SQLite, on connections of its own: the main file within one read transaction, so that the copy is
of exactly one `applied`; then the days, each within its own. What ended is committed to its day before the main file
says so, hence the days may be ahead of the main file, as after a crash, and never behind it. The shard goes on
meanwhile; only its checkpoint has to wait, so the journal is kept a little longer. The files of a running store are
never opened but by SQLite: closing such a descriptor would drop the locks of this process.

What goes wrong here is not the node's end: a full backup disk or a damaged copy is refused, with a reason.

Must never import: rooms of floor 3 or higher but this package's and `files`; no threads, no clock.
"""

import asyncio
import errno
import json
import os
import re
import sqlite3
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple, Protocol, TypeVar, cast

from tickwheel.server.errors import FailedPrecondition, ResourceExhausted
from tickwheel.server.files import sync_directory
from tickwheel.server.model import Ms, Row
from tickwheel.server.store import history, shard_store, sqlite

T = TypeVar("T")
Slices = Generator[None, None, T]
"""Work in bounded pieces: each `next` does one, and the last one returns the result."""

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
MANIFEST_BYTES_MAX: Final = 1 << 20
KEEP_FREE_BYTES: Final = 256 << 20
"""Disk that a snapshot leaves free, beside what it takes itself."""
_CHUNK_BYTES: Final = 4 << 20
_PAGES_PER_STEP: Final = 1024
_SHARDS_MAX: Final = 1 << 16
_CHECK_CACHE_BYTES: Final = 8 << 20
_ROOM_ERRNOS: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NAME: Final = re.compile(r"shard-([0-9]{4,5})(?:-day-([0-9]{1,7}))?\.db")


class SnapshotFile(NamedTuple):
    """One file of a snapshot. `sha256` in hexadecimal."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a snapshot is of: everything up to entry `index` of the shard's log. `files`: the main file, then the days."""

    shard: int
    index: int
    epoch: int
    next_row: Row
    time_ms: Ms
    files: tuple[SnapshotFile, ...]

    @property
    def size_bytes(self) -> int:
        """The size of all files."""
        return sum(file.size_bytes for file in self.files)

    def to_json(self) -> bytes:
        """The manifest."""
        fields = asdict(self) | {"files": [file._asdict() for file in self.files]}
        return json.dumps({"format": FORMAT, **fields}, indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "Snapshot":
        """The snapshot of a manifest. Raises FailedPrecondition for anything that is none."""
        try:
            fields = json.loads(data)
            known = fields["format"]
            files = tuple(_file_of(item) for item in fields["files"])
            numbers = [fields[name] for name in ("shard", "index", "epoch", "next_row", "time_ms")]
        except (ValueError, KeyError, TypeError) as error:
            raise damaged(f"its manifest can't be read: {error!r}") from error
        if known != FORMAT:
            raise damaged(f"it has format {known}, this program knows {FORMAT}")
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise damaged("its manifest has a number that is none")
        shard, index, epoch, next_row, time_ms = numbers
        made = cls(shard, index, epoch, next_row, time_ms, files)
        made.check()
        return made

    def check(self) -> None:
        """Refuse names that are not this shard's: what another machine sent must not reach outside its directory."""
        if self.shard >= _SHARDS_MAX:
            raise damaged(f"there is no shard {self.shard}")
        names = [file.name for file in self.files]
        if len(set(names)) != len(names):
            raise damaged("it names a file twice")
        for name in names:
            if shard_of_file(name) != self.shard:
                raise damaged(f"{name[:100]!r} is no file of shard {self.shard}")
        if names and names[0] != main_name(self.shard):
            raise damaged("its first file is not the main one")


def _file_of(item: Mapping[str, object]) -> SnapshotFile:
    name, size, digest = item["name"], item["size_bytes"], item["sha256"]
    if not (isinstance(name, str) and isinstance(digest, str) and type(size) is int and size > 0):
        raise ValueError("a file has a name, a size and a digest")
    return SnapshotFile(name, size, digest)


def damaged(what: str) -> FailedPrecondition:
    """The error of a snapshot that can't be used: it is taken again, or another copy is used."""
    return FailedPrecondition(f"the snapshot is not whole: {what}", reason="SNAPSHOT_DAMAGED")


def main_name(shard: int) -> str:
    """The name of a shard's main file."""
    return f"shard-{shard:04d}.db"


def shard_of_file(name: str) -> int | None:
    """The shard whose file has this name (main or day); None for any other name."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    shard = int(found[1])
    return shard if name.startswith(main_name(shard)[:-3]) else None


# --- slices ----------------------------------------------------------------------------------------------------------


def whole(slices: Slices[T]) -> T:
    """Do it at once."""
    try:
        while True:
            next(slices)
    except StopIteration as end:
        return cast("T", end.value)


class Call(Protocol):
    """A port of the store: `StorePort.query`, or `flush`."""

    def __call__(self, work: Callable[[], T], /) -> Awaitable[T]:
        """Run it in the port's thread."""
        ...


async def in_turns(call: Call, slices: Slices[T]) -> T:
    """Do it piece by piece through a port of the store, so that others get their turn between."""

    def piece() -> bool:
        try:
            next(slices)
        except StopIteration as end:
            results.append(cast("T", end.value))
            return True
        return False

    results: list[T] = []
    try:
        while not await call(piece):
            pass
    except asyncio.CancelledError:
        call(slices.close)  # in the thread that has its connection, behind the piece under way
        raise
    return results[0]


# --- taking ----------------------------------------------------------------------------------------------------------


def take(
    store: Path, shard: int, directory: Path, *, keep_free_bytes: int = KEEP_FREE_BYTES
) -> Snapshot:
    """Copy the shard whose files are in `store` into `directory`, which is made, or empty. In any one thread.

    The main file and the days are durable, and the manifest is written last. Raises ResourceExhausted
    (SNAPSHOT_NO_ROOM) when the disk has too little room, FailedPrecondition (SNAPSHOT_FAILED) when it can't be read or
    written; then nothing of it is left.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        empty = not any(directory.iterdir())
    except OSError as error:
        raise reported(error, directory) from error
    if not empty:
        raise _failed(f"{directory} is not empty")
    try:
        return _take(store, shard, directory, keep_free_bytes)
    except BaseException as error:
        with suppress(OSError):
            for path in directory.iterdir():
                path.unlink()
        if isinstance(error, OSError | sqlite3.Error):
            raise reported(error, directory) from error
        raise


def _take(store: Path, shard: int, directory: Path, keep_free_bytes: int) -> Snapshot:
    main = store / main_name(shard)
    want_room(directory, files_bytes(store, shard), keep_free_bytes)
    with reading(main) as source:
        found = source.execute("SELECT * FROM applied").fetchone()
        if found is None:
            found = (0, shard, 0, 0, 1, 0)  # nothing was ever flushed: the store of an empty log
        _id, number, index, epoch, next_row, time_ms = found
        if number != shard:
            raise _failed(f"{main.name} holds shard {number}")
        files = [_copy(source, directory / main.name)]
    for day in _days(store, shard):
        with suppress(FileNotFoundError), reading(day) as source:  # retention may take it
            files.append(_copy(source, directory / day.name))
    snapshot = Snapshot(shard, index, epoch, next_row, time_ms, tuple(files))
    write_durably(directory / MANIFEST, snapshot.to_json())
    sync_directory(directory)
    return snapshot


@contextmanager
def reading(path: Path) -> Generator[sqlite3.Connection, None, None]:
    """A read transaction on a file of a running store. FileNotFoundError if it is not there."""
    try:
        db = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, isolation_level=None)
    except sqlite3.OperationalError as error:
        if path.exists():
            raise
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
    with closing(db):
        db.execute("PRAGMA wal_autocheckpoint = 0").fetchone()
        db.execute("BEGIN")
        db.execute("SELECT count(*) FROM sqlite_schema").fetchone()  # from here on it is one moment
        yield db


def _copy(source: sqlite3.Connection, to: Path) -> SnapshotFile:
    """Copy what the transaction sees, make it durable, and say what is there now."""
    os.close(os.open(to, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    with closing(sqlite3.connect(to, isolation_level=None)) as target:
        target.execute("PRAGMA synchronous = OFF")  # synced below, once
        target.execute("PRAGMA journal_mode = OFF").fetchone()
        source.backup(target, pages=_PAGES_PER_STEP)
    digest = sha256()
    size = 0
    with to.open("rb+") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
        os.fsync(file.fileno())
    return SnapshotFile(to.name, size, digest.hexdigest())


def _days(store: Path, shard: int) -> list[Path]:
    """The day files of a shard, newest first, so that retention meets the reader late."""
    found = {path: _NAME.fullmatch(path.name) for path in store.glob(f"shard-{shard:04d}-day-*.db")}
    days = {path: int(match[2]) for path, match in found.items() if match}
    return sorted(days, key=days.__getitem__, reverse=True)


def files_bytes(store: Path, shard: int) -> int:
    """The most that a snapshot of the shard can take."""
    paths = [store / main_name(shard), *_days(store, shard)]
    return sum(history.sqlite_bytes(path) for path in paths)


def want_room(directory: Path, wanted_bytes: int, keep_free_bytes: int = KEEP_FREE_BYTES) -> None:
    """Raise ResourceExhausted (SNAPSHOT_NO_ROOM) unless the disk takes so much and keeps some free."""
    found = os.statvfs(directory)
    free_bytes = found.f_bavail * found.f_frsize
    if free_bytes < wanted_bytes + keep_free_bytes:
        raise ResourceExhausted(
            f"the disk of {directory} has {free_bytes:,} bytes free; a snapshot of the shard takes up to "
            f"{wanted_bytes:,} and leaves {keep_free_bytes:,}",
            reason="SNAPSHOT_NO_ROOM",
            metadata={"free_bytes": str(free_bytes), "wanted_bytes": str(wanted_bytes)},
        )


def _failed(what: str) -> FailedPrecondition:
    return FailedPrecondition(f"no snapshot was taken: {what}", reason="SNAPSHOT_FAILED")


def reported(
    error: OSError | sqlite3.Error, directory: Path
) -> ResourceExhausted | FailedPrecondition:
    """A failing backup disk is not a failing store: the node goes on."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL or getattr(error, "errno", None) in _ROOM_ERRNOS:
        return ResourceExhausted(f"the disk of {directory} is full", reason="SNAPSHOT_NO_ROOM")
    return _failed(f"{directory}: {error}")


def write_durably(path: Path, data: bytes) -> None:
    """Write a small file under another name, sync it, and rename it. The directory is not synced."""
    draft = path.with_name(path.name + ".new")
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)


def load_manifest(directory: Path) -> Snapshot:
    """The snapshot that a directory says it is. Raises FailedPrecondition when it says nothing."""
    try:
        with (directory / MANIFEST).open("rb") as file:
            data = file.read(MANIFEST_BYTES_MAX + 1)
    except FileNotFoundError:
        raise damaged(f"{directory} has no {MANIFEST}: it was never finished") from None
    if len(data) > MANIFEST_BYTES_MAX:
        raise damaged(f"{MANIFEST} is longer than any")
    return Snapshot.from_json(data)


# --- verifying -------------------------------------------------------------------------------------------------------


def verify(directory: Path, snapshot: Snapshot) -> None:
    """Is every file there, whole, and what the snapshot says? Raises FailedPrecondition (SNAPSHOT_DAMAGED)."""
    whole(verifying(directory, snapshot))


def verifying(directory: Path, snapshot: Snapshot) -> Slices[None]:
    """`verify` in slices: sizes, digests, SQLite's own check a table, format, and `applied` against the manifest."""
    snapshot.check()
    if not snapshot.files:
        raise damaged("it has no files")
    for file in snapshot.files:
        yield from _verify_bytes(directory, file)
    for file in snapshot.files:
        main = file.name == main_name(snapshot.shard)
        try:
            with reading_still(directory / file.name) as db:
                known = shard_store.FORMAT if main else history.FORMAT
                _verify_format(db, file.name, known)
                if main:
                    _verify_applied(db, snapshot)
                complaints = yield from check_tables(db)
        except sqlite3.Error as error:
            raise damaged(f"{file.name}: {error}") from error
        if complaints:
            raise damaged(f"{file.name}: {complaints[0]}")


def _verify_bytes(directory: Path, file: SnapshotFile) -> Slices[None]:
    path = directory / file.name
    size = path.stat().st_size if path.is_file() and not path.is_symlink() else -1
    if size < 0:
        raise damaged(f"{file.name} is missing")
    if size != file.size_bytes:
        raise damaged(f"{file.name} has {size:,} bytes, not {file.size_bytes:,}")
    digest = sha256()
    with path.open("rb") as content:
        while chunk := content.read(_CHUNK_BYTES):
            digest.update(chunk)
            yield
    if digest.hexdigest() != file.sha256:
        raise damaged(f"{file.name} does not have the digest of its manifest")


@contextmanager
def reading_still(path: Path) -> Generator[sqlite3.Connection, None, None]:
    """A connection to a file that nobody changes: no locks, and no journal is made beside it."""
    uri = f"{path.as_uri()}?mode=ro&immutable=1"
    with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as db:
        db.execute(f"PRAGMA cache_size = -{_CHECK_CACHE_BYTES // 1024}")
        yield db


def _verify_format(db: sqlite3.Connection, name: str, known: int) -> None:
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if (application, version) != (sqlite.APPLICATION_ID, known):
        raise damaged(
            f"{name} has format {version} of {application:08x}, this program knows {known}"
        )


def _verify_applied(db: sqlite3.Connection, snapshot: Snapshot) -> None:
    found = db.execute("SELECT shard, entry, epoch, next_row, time_ms FROM applied").fetchone()
    if found is None:
        found = (snapshot.shard, 0, 0, 1, 0)
    said = (snapshot.shard, snapshot.index, snapshot.epoch, snapshot.next_row, snapshot.time_ms)
    if found != said:
        raise damaged(
            f"it is of (shard, index, epoch, next row, time) {found}, its manifest says {said}"
        )


def check_tables(db: sqlite3.Connection) -> Slices[list[str]]:
    """SQLite's quick_check, a table a slice; what it complains of, at most a few lines."""
    sql = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    complaints: list[str] = []
    for (table,) in db.execute(sql).fetchall():
        found = db.execute(f"PRAGMA quick_check('{table}')").fetchmany(5)
        complaints += [f"{table}: {line}" for (line,) in found if line != "ok"]
        yield
    return complaints
