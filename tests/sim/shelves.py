"""Copies of dict stores: what `copies.Shelves` does, without SQLite. The files that come in are real ones, small."""

import pickle
import shutil
from collections.abc import Generator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from tests.sim.store import DictStore

from tickwheel.server.store.compare import StateHash
from tickwheel.server.store.snapshot import Snapshot, SnapshotFile, damaged, main_name


@dataclass(frozen=True)
class DictCopy:
    """A store's content as bytes."""

    snapshot: Snapshot
    data: bytes

    def read(self, number: int, offset: int, size: int) -> bytes:
        """A piece of it."""
        assert number == 0, "there is one file"
        return self.data[offset : offset + size]

    def remove(self) -> None:
        """Nothing is left anyway."""


class DictShelves:
    """Implements `copies.Shelves` over the stores of one node."""

    def __init__(self, stores: dict[int, DictStore], scratch: Path) -> None:
        self._stores = stores
        self._scratch = scratch
        self.installed = 0

    def take(self, shard: int) -> DictCopy:
        """A copy of what is there now."""
        store = self._stores[shard]
        data = pickle.dumps(store.content())
        file = SnapshotFile(main_name(shard), len(data), sha256(data).hexdigest())
        at = store.applied
        return DictCopy(Snapshot(shard, at.index, at.epoch, at.next_row, at.time_ms, (file,)), data)

    def stage(self, shard: int) -> Path:
        """An empty directory."""
        directory = self._scratch / f"shard-{shard}.new"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        return directory

    def hashing(self, shard: int) -> Generator[None, None, StateHash]:
        """Of everything but the history. FileNotFoundError as the real one."""
        yield
        store = self._stores.get(shard)
        if store is None:
            raise FileNotFoundError(f"shard {shard}")
        content, at = store.content(), store.applied
        kept = [sorted(content.jobs.items()), sorted(content.live.items())]
        digest = sha256(repr(kept).encode()).digest()
        return StateHash(at.index, at.epoch, len(content.jobs), len(content.live), digest)

    def verifying(self, directory: Path, snapshot: Snapshot) -> Generator[None, None, None]:
        """By the digest."""
        snapshot.check()
        yield
        data = (directory / snapshot.files[0].name).read_bytes()
        if sha256(data).hexdigest() != snapshot.files[0].sha256:
            raise damaged("its digest is another")

    def install(self, directory: Path, snapshot: Snapshot) -> None:
        """A new store, durable at once."""
        content = pickle.loads((directory / snapshot.files[0].name).read_bytes())
        self._stores[snapshot.shard] = DictStore.of(snapshot.shard, content)
        shutil.rmtree(directory)
        self.installed += 1
