"""Floor 3. Whose data directory this is: the lock that keeps a second process out, and the file that names the store.

    data_dir/
      LOCK            flock, held as long as the process lives
      identity.json   {format, cluster, store, shards}; made once, never changed
      restored        made by a restore, and no node has started on it yet: it may begin a cluster of its own
      journal/        %020d.log
      shards/         SQLite files

A wiped directory gets a new `store` uuid: it is a stranger to whoever knew the old one.

Must never import: `shard`, `wal`, `store`, the doors.
"""

import errno
import fcntl
import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

from tickwheel.server.errors import DirectoryLocked, FailedPrecondition
from tickwheel.server.files import sync_directory

FORMAT = 1
RESTORED = "restored"
"""A mark for one start only: a directory that was in use must never begin a cluster when etcd is empty, since others may
hold what was acknowledged behind its back."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a data directory says of itself. `shards` is fixed when it is made."""

    cluster: bytes
    store: bytes
    shards: int


class DataDirectory:
    """An opened and locked data directory. Raises DirectoryLocked, FailedPrecondition."""

    def __init__(self, path: Path, *, shards: int, cluster: bytes | None = None) -> None:
        """`cluster` is whose a new directory will be, and whose one that is there must be; None: its own."""
        self.path = path
        self.path.mkdir(
            mode=0o700, parents=True, exist_ok=True
        )  # bodies and headers may hold secrets
        self._lock = self._take_lock()
        self.identity = _load(path) or self._make(shards, cluster or uuid.uuid4().bytes)
        if cluster not in {None, self.identity.cluster}:
            raise FailedPrecondition(
                f"{path} belongs to another cluster; give this node a directory of its own, or join that cluster",
                reason="CLUSTER_DIFFERS",
                metadata={"data_dir": str(path), "cluster": self.identity.cluster.hex()},
            )
        check_shards(path, self.identity, shards)
        for part in ("journal", "shards"):
            (path / part).mkdir(exist_ok=True)
        sync_directory(path)

    def settle_in(self) -> None:
        """A node runs on it from now on: whoever restored it, it is a directory like any other."""
        mark = self.path / RESTORED
        if mark.exists():
            mark.unlink()
            sync_directory(self.path)

    def close(self) -> None:
        """Let another process have it."""
        os.close(self._lock)

    def _take_lock(self) -> int:
        lock = os.open(self.path / "LOCK", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            if error.errno not in {errno.EAGAIN, errno.EACCES}:
                raise
            raise DirectoryLocked(
                f"{self.path} is in use by another tickwheel process; stop it, or give this one its own --data-dir",
                metadata={"data_dir": str(self.path)},
            ) from None
        return lock

    def _make(self, shards: int, cluster: bytes) -> Identity:
        identity = Identity(cluster, uuid.uuid4().bytes, shards)
        data = {
            "format": FORMAT,
            "cluster": identity.cluster.hex(),
            "store": identity.store.hex(),
            "shards": shards,
        }
        draft = self.path / "identity.json.new"
        with draft.open("w") as file:
            json.dump(data, file)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(self.path / "identity.json")
        sync_directory(self.path)
        return identity


def check_shards(path: Path, identity: Identity, shards: int) -> None:
    """Raise FailedPrecondition unless the directory was made with so many."""
    if identity.shards != shards:
        raise FailedPrecondition(
            f"{path} was made with {identity.shards} shards, the configuration says {shards}; "
            f"the number can't change: set shards = {identity.shards}",
            reason="SHARDS_FIXED",
            metadata={"made_with": str(identity.shards), "configured": str(shards)},
        )


def mark_restored(path: Path) -> None:
    """Say of a directory that it may begin a cluster. Durable."""
    with (path / RESTORED).open("wb") as file:
        os.fsync(file.fileno())
    sync_directory(path)


def restored(path: Path) -> Identity | None:
    """Whose a directory is that was restored, and that no node has started on; None of any other. FailedPrecondition."""
    return _load(path) if (path / RESTORED).exists() else None


def _load(path: Path) -> Identity | None:
    file = path / "identity.json"
    if not file.exists():
        if any((path / "journal").glob("*.log")):
            raise FailedPrecondition(
                f"{path} has a journal but no identity.json: it is not whole; restore it from a backup",
                reason="IDENTITY_MISSING",
            )
        return None
    data = json.loads(file.read_text())
    if data["format"] != FORMAT:
        raise FailedPrecondition(
            f"{path} has format {data['format']}, this version reads {FORMAT}",
            reason="FORMAT_UNKNOWN",
        )
    return Identity(bytes.fromhex(data["cluster"]), bytes.fromhex(data["store"]), data["shards"])
