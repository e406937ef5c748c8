"""Floor 2. The port to a flat directory of files, and its implementation by the operating system.

Rules that every implementation keeps: a name that `create_filled` returned from exists after any crash, with all its
bytes; `pwrite` writes everything or raises; nothing written is durable before `fdatasync` came back; no unlink is
durable before `sync_directory` came back. All raise OSError.

Must never import: anything of this project.
"""

import contextlib
import os
from pathlib import Path
from typing import Protocol

TEMPORARY_SUFFIX = ".tmp"
_CHUNK_BYTES = 1 << 20
_SYNC_EVERY_BYTES = 4 << 20
"""A long fill is synced in slices, so that another file's fdatasync never queues behind all of it."""


class Handle(Protocol):
    """An open file of fixed size."""

    def pwrite(self, data: bytes, offset: int) -> None:
        """Write all of `data` at `offset`."""
        ...

    def fdatasync(self) -> None:
        """Return when everything written so far is durable. After an error nothing is known: never call it again."""
        ...

    def close(self) -> None:
        """Give the handle back; says nothing about durability."""
        ...


class Files(Protocol):
    """A flat directory."""

    def list(self) -> list[str]:
        """Names, sorted."""
        ...

    def create_filled(self, name: str, size: int) -> None:
        """Make a file of `size` zero bytes, durable with its name; nothing of that name is left if it raises."""
        ...

    def read(self, name: str) -> bytes:
        """The whole content."""
        ...

    def open(self, name: str) -> Handle:
        """Open an existing file for writing in place."""
        ...

    def unlink(self, name: str) -> None:
        """Remove a name; durable only after `sync_directory`."""
        ...

    def sync_directory(self) -> None:
        """Make earlier unlinks durable."""
        ...

    def free_bytes(self) -> int:
        """How much more the disk takes from this process."""
        ...


class OsHandle:
    """A file descriptor."""

    __slots__ = ("_descriptor",)

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)

    def pwrite(self, data: bytes, offset: int) -> None:
        """Write all of `data` at `offset`."""
        _write_all(self._descriptor, data, offset)

    def fdatasync(self) -> None:
        """Return when everything written so far is durable."""
        _fdatasync(self._descriptor)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._descriptor)


class OsFiles:
    """A directory of the host's file system."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def list(self) -> list[str]:
        """Names, sorted."""
        return sorted(entry.name for entry in self.path.iterdir())

    def create_filled(self, name: str, size: int) -> None:
        """Fill under a temporary name, sync, rename, sync the directory."""
        draft = self.path / (name + TEMPORARY_SUFFIX)
        made = self.path / name
        assert not made.exists(), f"{made} is there already"
        try:
            _fill(draft, size)
            draft.rename(made)
            self.sync_directory()
        except OSError:
            for path in (draft, made):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
            raise

    def read(self, name: str) -> bytes:
        """The whole content."""
        return (self.path / name).read_bytes()

    def open(self, name: str) -> OsHandle:
        """Open an existing file for writing in place."""
        return OsHandle(self.path / name)

    def unlink(self, name: str) -> None:
        """Remove a name."""
        (self.path / name).unlink()

    def sync_directory(self) -> None:
        """Make names durable."""
        sync_directory(self.path)

    def free_bytes(self) -> int:
        """What `statvfs` says an ordinary user may still take."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize


def _fill(path: Path, size: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        for offset in range(0, size, _CHUNK_BYTES):
            _write_all(descriptor, bytes(min(_CHUNK_BYTES, size - offset)), offset)
            if offset % _SYNC_EVERY_BYTES == 0:
                _fdatasync(descriptor)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    done = os.pwrite(descriptor, data, offset)
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], offset + done)


_fdatasync = getattr(os, "fdatasync", os.fsync)
"""Where there is no fdatasync (macOS), fsync does at least as much."""


def sync_directory(path: Path) -> None:
    """Make creations, renames and unlinks in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
